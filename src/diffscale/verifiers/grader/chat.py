"""One request to a chat endpoint, and what its answer means."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any, Final

import httpx2
from pydantic import BaseModel, Field, ValidationError

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.costs import Tally
from diffscale.verifiers.grader.discreet import Discreet
from diffscale.verifiers.grader.endpoint import Endpoint
from diffscale.verifiers.grader.grade import MalformedGrade
from diffscale.verifiers.grader.pace import Timing, retry_after

_PASSING: Final = {408, 409, 425, 429}
_SHOWN: Final = 200  # characters of what a server says that go into a message


class Unanswered(Exception):
    """The server failed, and may not the next time; `after`: seconds that it asks to wait."""

    def __init__(self, reason: str, after: float | None = None) -> None:
        super().__init__(reason)
        self.after = after


class Refused(Exception):
    """The server will not answer this request, however often it is sent."""


class _Usage(BaseModel):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Message(BaseModel):
    content: str | None = None


class _Choice(BaseModel):
    message: _Message


class _Completion(BaseModel):
    choices: list[_Choice] = Field(min_length=1)
    usage: _Usage | None = None


@dataclass(frozen=True)
class _Reply:
    status: int
    text: str
    retry_after: str | None


class Chat:
    """The endpoint's `/chat/completions`; for many threads at once. `timeout`: seconds for one whole answer."""

    def __init__(self, endpoint: Endpoint, timeout: float, tally: Tally, timing: Timing) -> None:
        self._endpoint = endpoint
        self._timeout = timeout
        self._tally = tally
        self._timing = timing
        self._logs = Discreet(endpoint.key)
        self._logs.begin()
        limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
        self._http = httpx2.Client(headers=endpoint.key.header(), timeout=timeout, limits=limits)

    def ask(self, body: dict[str, Any]) -> str:
        """What the model wrote; tokens are counted.

        Raises MalformedGrade if it wrote nothing, Unanswered, Refused, and DiffscaleError for a key, an address or a
        model that will not do for any picture. No message holds the key.
        """
        try:
            reply = self._send(body)
        except httpx2.RequestError as error:
            raise Unanswered(self._shown(f"{type(error).__name__} {error}")) from None
        if 200 <= reply.status < 300:
            return self._written(reply.text)
        said = f"HTTP {reply.status} {self._shown(_message(reply.text))}".strip()
        self._settings_at_fault(reply.status, said)
        if reply.status in _PASSING or (reply.status >= 500 and reply.status != 501):
            raise Unanswered(said, retry_after(reply.retry_after, self._timing.now()))
        raise Refused(said)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()
        self._logs.end()

    def _send(self, body: dict[str, Any]) -> _Reply:
        deadline = time.monotonic() + self._timeout
        with self._http.stream("POST", self._endpoint.url, json=body) as response:
            received = b""
            for chunk in response.iter_bytes():
                received += chunk
                # httpx's own time-out starts anew with every byte, and some servers send blanks to keep awake.
                if time.monotonic() > deadline:
                    raise httpx2.ReadTimeout(f"no whole answer in {self._timeout:g} s")
            text = received.decode(errors="replace")
            return _Reply(response.status_code, text, response.headers.get("Retry-After"))

    def _written(self, text: str) -> str:
        try:
            completion = _Completion.model_validate_json(text)
        except ValidationError:
            # Such as a proxy's page, or an error under status 200.
            raise Unanswered(f"no chat completion but {self._shown(_message(text))!r}") from None
        if usage := completion.usage:
            self._tally.add(
                prompt_tokens=usage.prompt_tokens or 0,
                completion_tokens=usage.completion_tokens or 0,
            )
        content = completion.choices[0].message.content
        if not content:
            raise MalformedGrade("the answer is empty")
        return self._endpoint.key.hide(content)

    def _settings_at_fault(self, status: int, said: str) -> None:
        key, where = self._endpoint.key_env, self._endpoint.url
        if status == 401:
            what = f"put a key that is valid there into the environment variable {key}"
        elif status == 402:
            what = "pay there, or choose another base_url"
        elif status in (404, 405) or 300 <= status < 400:
            what = f"check base_url, and that the model {self._endpoint.model!r} is there"
        else:
            return
        raise DiffscaleError(f"The grader's server {where} refuses every picture ({said}): {what}.")

    def _shown(self, text: str) -> str:
        # Hidden before it is cut: half a key is one too many.
        return " ".join(self._endpoint.key.hide(text).split())[:_SHOWN]


def _message(text: str) -> str:
    """The sentence in a server's error, `{"error": {"message": ...}}` by convention; all of it where it is none."""
    try:
        error = json.loads(text)["error"]
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, LookupError, TypeError):
        return text
