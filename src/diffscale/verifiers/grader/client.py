"""Requests to a chat endpoint by openai's client until there is a grade, what answers mean, and what they cost.

These pieces stay by hand, because the client has none of them: limits of time and size for a whole answer (httpx's own
time starts anew with every byte, and some servers send blanks to keep awake); a check of the answer's form (the client
takes any JSON for a completion); the key hidden in whatever a server sends back; and, in `RetryingClient`, tries that
all threads pace together, count, and wait for as long as a server asks (the client's own go request by request, and
know 60 seconds at most).
"""

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

import httpx2
from pydantic import AliasPath, BaseModel, Field, ValidationError

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.endpoint import Endpoint, RedactedLogs
from diffscale.verifiers.grader.grade import FORMATS, Grade, MalformedGrade, chat_messages, parse_grade

_PASSING: Final = {408, 409, 425, 429}
_SHOWN: Final = 200  # characters of what a server says that go into a message
_FIRST_PAUSE: Final = 1.0  # seconds before the second try
_LONGEST_PAUSE: Final = 60.0
_LONGEST_RETRY_AFTER: Final = 600.0  # seconds that a run may stand still because a server asks for it
_OUTAGE: Final = 4  # pictures in a row without an answer
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
    sent, whatever came back; `retries`: those of them that repeat one for the same picture, for whatever reason.
    `cache_hits`: pictures graded without a request. `dropped`: pictures left without a grade. `money`: what the tokens
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


class _Message(BaseModel):
    content: str | None = None


class _Completion(BaseModel):
    message: _Message = Field(validation_alias=AliasPath("choices", 0, "message"))
    prompt_tokens: int | None = Field(None, validation_alias=AliasPath("usage", "prompt_tokens"))
    completion_tokens: int | None = Field(None, validation_alias=AliasPath("usage", "completion_tokens"))


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

    def complete(self, messages: list[Any], **options: Any) -> str:
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

    def _content(self, text: str) -> str:
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
        return self._endpoint.redact(completion.message.content)

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
        return DiffscaleError(f"The grader's server {self._endpoint.url} refuses every picture ({reason}): {what}.")

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


class Stopped(Exception):
    """The call that this picture belongs to is over."""


@dataclass(frozen=True)
class Timing:
    """Where time and chance come from.

    `clock`: monotonic seconds. `now`: seconds since the epoch. `wait(stop, seconds)`: sleep until then, or until the
    event is set. `uniform(low, high)`: the jitter, a generator of its own.
    """

    clock: Callable[[], float] = time.monotonic
    now: Callable[[], float] = time.time
    wait: Callable[[threading.Event, float], object] = threading.Event.wait
    uniform: Callable[[float, float], float] = random.Random().uniform


class RateLimit:
    """One queue for the requests of all threads: at most `per_minute` of them (None: no limit), evenly spaced."""

    def __init__(self, per_minute: float | None, clock: Callable[[], float]) -> None:
        self._gap = 0.0 if per_minute is None else 60 / per_minute
        self._clock = clock
        self._free = clock()
        self._lock = threading.Lock()

    def reserve(self) -> float:
        """Seconds until the turn that is now the caller's."""
        with self._lock:
            now = self._clock()
            turn = max(now, self._free)
            self._free = turn + self._gap
            return turn - now

    def pause(self, seconds: float) -> None:
        """Give no turns for so long, to any thread."""
        with self._lock:
            self._free = max(self._free, self._clock() + seconds)


def retry_after(header: str | None, now: float) -> float | None:
    """Seconds to wait by a Retry-After header (RFC 9110, 10.2.3: seconds or a date); None if it says nothing.

    `now`: seconds since the epoch.
    """
    text = (header or "").strip()
    if text.isascii() and text.isdigit():
        return float(text)
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    # "-0000" as the zone parses to a naive time, which is UTC.
    return max(0.0, (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - now)


class Outage:
    """Counts pictures in a row that the server at `url` gave up on, over all threads and calls.

    One such picture is one lost candidate; a row of them is a server that loses every candidate of the search, and
    then stopping is cheaper, as a run goes on where it was.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._failures = 0
        self._lock = threading.Lock()

    def answered(self) -> None:
        """The server answered, usably or not."""
        with self._lock:
            self._failures = 0

    def failed(self, reason: str) -> None:
        """Raise DiffscaleError with the last reason if this is the fourth picture in a row."""
        with self._lock:
            self._failures = (self._failures + 1) % _OUTAGE
            if self._failures:
                return
        raise DiffscaleError(
            f"The grader's server {self._url} gave no answer for {_OUTAGE} pictures in a row ({reason}): check it, its "
            "quota and that the model takes pictures, then give the same command again."
        )


class RetryingClient:
    """Asks `Client` for grades; for many threads at once.

    `timeout`, `tally`: as for `Client`. `per_minute`: as for `RateLimit`. `tries`: how often a picture is asked for
    before it is given up, the first time included.
    """

    def __init__(
        self, endpoint: Endpoint, timeout: float, per_minute: float | None, tries: int, tally: Tally, timing: Timing
    ) -> None:
        self._client = Client(endpoint, timeout, tally)
        self._limit = RateLimit(per_minute, timing.clock)
        self._outage = Outage(endpoint.url)
        self._tries = tries
        self._tally = tally
        self._timing = timing
        self._format = 0

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def grade(self, png: bytes, prompt: str, stop: threading.Event) -> Grade | str:
        """The grade of a PNG picture, or why there is none; "stopped" once `stop` is set.

        Raises DiffscaleError as `Client.complete` and `Outage` do, and if the server wants to be left alone for long.
        """
        try:
            answer: Grade | str = self._retried(chat_messages(png, prompt), stop)
        except Stopped:
            return "stopped"
        except MalformedGrade as error:
            answer = f"malformed answer ({error})"
        except (Unanswered, Refused) as error:
            self._outage.failed(str(error))
            return f"no answer ({error})"
        self._outage.answered()
        return answer

    def _retried(self, messages: list[dict[str, Any]], stop: threading.Event) -> Grade:
        """The grade; waits for its turn and between tries.

        Raises MalformedGrade or Unanswered, whichever the last try ended in, Refused, and Stopped once `stop` is set.
        """
        attempt = 1
        while True:
            try:
                return parse_grade(self._complete(messages, stop, again=attempt > 1))
            except (MalformedGrade, Unanswered) as error:
                if attempt == self._tries:
                    raise
                if isinstance(error, Unanswered):
                    self._wait(stop, self._pause(attempt, error))
            attempt += 1

    def _complete(self, messages: list[dict[str, Any]], stop: threading.Event, again: bool) -> str:
        """What the model writes in the strictest format that the server knows; found out once."""
        first = self._format
        for level in range(first, len(FORMATS)):
            self._wait(stop, self._limit.reserve())
            self._tally.add(requests=1, retries=int(again or level > first))
            try:
                answer = self._client.complete(messages, **FORMATS[level])
            except Refused:
                # The format's fault or the picture's: only an answer in another format tells.
                if level == len(FORMATS) - 1:
                    raise
                continue
            self._format = max(self._format, level)
            return answer
        raise AssertionError("there is a format")

    def _pause(self, attempt: int, error: Unanswered) -> float:
        """Seconds before the next try: doubled each time, halved by chance, on top of what the server asks for."""
        seconds = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)) * self._timing.uniform(0.5, 1.0)
        after = retry_after(error.retry_after, self._timing.now())
        if after is None:
            return seconds
        if after > _LONGEST_RETRY_AFTER:
            raise DiffscaleError(
                f"The grader's server asks to be left alone for {after:.0f} s ({error}): wait or raise the quota, then "
                "give the same command again."
            )
        self._limit.pause(after)
        return after + seconds

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        if seconds > 0:
            self._timing.wait(stop, seconds)
        if stop.is_set():
            raise Stopped
