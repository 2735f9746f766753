"""Asking until there is a grade: the rate limit, the formats that the server knows, retries, and when to stop."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.client import Client, Refused, Tally, Unanswered
from diffscale.verifiers.grader.grade import FORMATS, Grade, MalformedGrade, chat_messages, parse_grade

_FIRST_PAUSE: Final = 1.0  # seconds before the second try
_LONGEST_PAUSE: Final = 60.0
_LONGEST_RETRY_AFTER: Final = 600.0  # seconds that a run may stand still because a server asks for it
_OUTAGE: Final = 4  # pictures in a row without an answer


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
    """Asks `client` for grades; for many threads at once.

    `tries`: how often a picture is asked for before it is given up, the first time included.
    """

    def __init__(self, client: Client, limit: RateLimit, tries: int, tally: Tally, timing: Timing) -> None:
        self._client = client
        self._limit = limit
        self._tries = tries
        self._tally = tally
        self._timing = timing
        self._format = 0

    def grade(self, png: bytes, prompt: str, stop: threading.Event) -> Grade:
        """The grade of a PNG picture; waits for its turn and between tries.

        Raises MalformedGrade or Unanswered, whichever the last try ended in, Refused, Stopped once `stop` is set, and
        DiffscaleError as `Client.complete` does or if the server wants to be left alone for long.
        """
        messages = chat_messages(png, prompt)
        for attempt in range(1, self._tries + 1):
            try:
                return parse_grade(self._complete(messages, stop, again=attempt > 1))
            except (MalformedGrade, Unanswered) as error:
                if attempt == self._tries:
                    raise
                if isinstance(error, Unanswered):
                    self._wait(stop, self._pause(attempt, error))
        raise AssertionError("tries is at least 1")

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
