"""One request to a chat endpoint by openai's client, what its answer means, and what it costs.

These pieces stay by hand, because the client has none of them: limits of time and size for a whole answer (httpx's own
time starts anew with every byte, and some servers send blanks to keep awake); a check of the answer's form (the client
takes any JSON for a completion); and the key hidden in whatever a server sends back.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import httpx2
from pydantic import AliasPath, BaseModel, Field, ValidationError

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.endpoint import Endpoint, RedactedLogs
from diffscale.verifiers.grader.grade import MalformedGrade

_PASSING: Final = {408, 409, 425, 429}
_SHOWN: Final = 200  # characters of what a server says that go into a message
_LARGEST: Final = 2**22  # bytes of an answer; a grade has some thousand, long thoughts before it some hundred thousand
_LARGEST_PACKED: Final = 2**16  # of one that is compressed all the same, which may unpack to a thousand times as much


class Unanswered(Exception):
    """The server failed, and may not the next time; `retry_after`: the header by which it asks to wait, if any."""

    def __init__(self, reason: str, retry_after: str | None = None) -> None:
        super().__init__(reason)
        self.retry_after = retry_after


class Refused(Exception):
    """The server will not answer this request, however often it is sent."""


@dataclass(frozen=True)
class GraderCosts:
    """Costs so far of one grader object.

    `prompt_tokens`, `completion_tokens`: as the server's `usage` counts them, unusable answers included. `requests`:
    sent, whatever came back; `retries`: those of them that repeat one for the same picture or pair of pictures, for
    whatever reason. `cache_hits`: pictures graded, and pairs compared in one order, without a request. `dropped`:
    pictures left without a grade. `money`: what the tokens
    cost, in the currency of the prices; None without prices. A server that sends no `usage` leaves tokens at 0.
    """

    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests: int = 0
    retries: int = 0
    cache_hits: int = 0
    dropped: int = 0
    money: float | None = None


class Tally:
    """Counts that threads add to; prices are for a million tokens, and one given alone leaves the other free."""

    def __init__(self, price_in: float | None = None, price_out: float | None = None) -> None:
        self._prices = price_in, price_out
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def add(self, **counts: int) -> None:
        """Add to the counts of these names."""
        with self._lock:
            self._counts.update(counts)

    @property
    def costs(self) -> GraderCosts:
        """All counts at this moment."""
        with self._lock:
            counts = Counter(self._counts)
        if self._prices == (None, None):
            return GraderCosts(**counts)
        tokens = counts["prompt_tokens"], counts["completion_tokens"]
        money = sum((price or 0.0) * n for price, n in zip(self._prices, tokens, strict=True)) / 1e6
        return GraderCosts(**counts, money=money)


class _Likely(BaseModel):
    token: str
    logprob: float = Field(allow_inf_nan=False)


class Token(_Likely):
    """A piece of what the model wrote, and which pieces it found likely there, with the logarithms of how likely."""

    top_logprobs: list[_Likely] = []


@dataclass(frozen=True)
class Written:
    """What the model wrote, and its pieces; none where they were not asked for, or the server does not tell them."""

    text: str
    tokens: tuple[Token, ...] = ()


class _Tokens(BaseModel):
    content: list[Token]


class _Message(BaseModel):
    content: str | None = None


class _Completion(BaseModel):
    message: _Message = Field(validation_alias=AliasPath("choices", 0, "message"))
    prompt_tokens: int | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens"))
    completion_tokens: int | None = Field(None, validation_alias=AliasPath("usage", "completion_tokens"))
    logprobs: Any = Field(None, validation_alias=AliasPath("choices", 0, "logprobs"))

    def tokens(self) -> tuple[Token, ...]:
        """The pieces of the answer, none where they are of another form, which says nothing against the answer."""
        try:
            return tuple(_Tokens.model_validate(self.logprobs).content)
        except ValidationError:
            return ()


class _Limits(httpx2.SyncByteStream):
    """The bytes of `stream` until `end`, a time of `time.monotonic`; raises httpx2.ReadTimeout then.

    Raises MalformedGrade beyond `most` bytes.
    """

    def __init__(self, stream: Any, end: float, seconds: float, most: int) -> None:
        self._stream, self._end, self._seconds, self._most = stream, end, seconds, most

    def __iter__(self) -> Iterator[bytes]:
        size = 0
        for chunk in self._stream:
            if time.monotonic() > self._end:
                raise httpx2.ReadTimeout(f"no whole answer in {self._seconds:g} s")
            size += len(chunk)
            if size > self._most:
                raise MalformedGrade(f"the answer goes on beyond {self._most:,} bytes")
            yield chunk

    def close(self) -> None:
        self._stream.close()


class Client:
    """The endpoint's `/chat/completions`; for many threads at once. `timeout`: seconds for one whole answer."""

    def __init__(self, endpoint: Endpoint, timeout: float, tally: Tally) -> None:
        from openai import OpenAI  # takes most of a second

        def begin(request: httpx2.Request) -> None:
            request.extensions["end"] = time.monotonic() + timeout

        def limit(response: httpx2.Response) -> None:
            most = _LARGEST if response.headers.get("Content-Encoding", "identity") == "identity" else _LARGEST_PACKED
            response.stream = _Limits(response.stream, response.request.extensions["end"], timeout, most)

        self._endpoint = endpoint
        self._tally = tally
        self._logs = RedactedLogs(endpoint)
        # Redirects are not followed: the key is for this address alone.
        http = httpx2.Client(
            timeout=timeout,
            headers={"Accept-Encoding": "identity"},
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None),
            event_hooks={"request": [begin], "response": [limit]},
        )
        key = endpoint.key.get_secret_value() or "none"
        self._openai = OpenAI(api_key=key, admin_api_key="", base_url=endpoint.base, max_retries=0, http_client=http)

    def complete(self, messages: list[Any], **options: Any) -> Written:
        """What the model writes next in the chat `messages`; tokens are counted. `options`: the request's others.

        Raises MalformedGrade if it wrote nothing, Unanswered, Refused, and DiffscaleError for a key, an address or a
        model that will not do for any picture. No message holds the key.
        """
        from openai import APIConnectionError, APIStatusError, Omit

        headers = {} if self._endpoint.key else {"Authorization": Omit()}
        try:
            response = self._openai.chat.completions.with_raw_response.create(
                model=self._endpoint.model, messages=messages, extra_headers=headers, **options
            )
        except APIStatusError as error:
            raise self._failure(error.response) from None
        except APIConnectionError as error:
            cause = error.__cause__ or error
            if isinstance(cause, MalformedGrade):
                raise cause from None
            raise Unanswered(self._shown(f"{type(cause).__name__} {cause}")) from None
        return self._content(response.text)

    def close(self) -> None:
        """Close all connections."""
        self._openai.close()
        self._logs.close()

    def _content(self, text: str) -> Written:
        try:
            completion = _Completion.model_validate_json(text)
        except ValidationError:
            # Such as a proxy's page, or an error under status 200.
            raise Unanswered(f"no chat completion but {self._shown(_message(text))!r}") from None
        self._tally.add(
            prompt_tokens=completion.prompt_tokens or 0, completion_tokens=completion.completion_tokens or 0
        )
        if not completion.message.content:
            raise MalformedGrade("the answer is empty")
        return Written(self._endpoint.redact(completion.message.content), completion.tokens())

    def _failure(self, response: httpx2.Response) -> Exception:
        status = response.status_code
        reason = f"HTTP {status} {self._shown(_message(response.text))}".strip()
        if status == 401:
            what = f"put a key that is valid there into the environment variable {self._endpoint.key_env}"
        elif status == 402:
            what = "pay there, or choose another base_url"
        elif status in (404, 405) or 300 <= status < 400:
            what = f"check base_url, and that the model {self._endpoint.model!r} is there"
        elif status in _PASSING or (status >= 500 and status != 501):
            return Unanswered(reason, response.headers.get("Retry-After"))
        else:
            return Refused(reason)
        server = f"The language model's server {self._endpoint.url}"
        return DiffscaleError(f"{server} refuses every request ({reason}): {what}.")

    def _shown(self, text: str) -> str:
        # Hidden before it is cut: half a key is one too many.
        return " ".join(self._endpoint.redact(text).split())[:_SHOWN]


def _message(text: str) -> str:
    """The sentence in a server's error, `{"error": {"message": ...}}` by convention; all of it where it is none."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return text
