"""Requests until there is an answer that can be read, by all threads together.

These pieces stay by hand: tries that all threads pace together, count, and wait for as long as a server asks (those of
openai's client go request by request, and know 60 seconds at most).
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC
from email.utils import parsedate_to_datetime
from typing import Any, Final, TypeVar

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.client import Client, Refused, Tally, Unanswered, Written
from diffscale.verifiers.grader.endpoint import Endpoint
from diffscale.verifiers.grader.grade import FORMATS, Grade, MalformedGrade, chat_messages, parse_grade, user_message
from diffscale.verifiers.grader.preference import LOGPROBS, pair_messages, preference

T = TypeVar("T")
Asked = TypeVar("Asked")
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


def ask_all(ask: Callable[[Asked, threading.Event], T], asked: Sequence[Asked], concurrency: int) -> list[T]:
    """What `ask` answers for each, so many at once.

    After an error that ends the run, what is under way comes to its end and into the cache, as it is paid for.
    """
    stop = threading.Event()

    def one(each: Asked) -> T:
        try:
            return ask(each, stop)
        except BaseException:
            stop.set()
            raise

    with ThreadPoolExecutor(concurrency, "grader") as pool:
        try:
            return list(pool.map(one, asked))
        finally:
            stop.set()


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
            f"The language model's server {self._url} gave no answer for {_OUTAGE} pictures in a row ({reason}): check "
            "it, its quota and that the model takes pictures, then give the same command again."
        )


@dataclass
class Forms:
    """Options of a request, best first; `known`: those before this one the server refuses."""

    options: Sequence[dict[str, Any]]
    known: int = 0


class RetryingClient:
    """Asks `Client` for grades, preferences and texts; for many threads at once.

    `timeout`, `tally`: as for `Client`. `per_minute`: as for `RateLimit`. `tries`: how often a picture is asked for
    before it is given up, the first time included.
    """

    def __init__(
        self, endpoint: Endpoint, timeout: float, per_minute: float | None, tries: int, tally: Tally, timing: Timing
    ) -> None:
        self._url, self._client = endpoint.url, Client(endpoint, timeout, tally)
        self._limit = RateLimit(per_minute, timing.clock)
        self._outage = Outage(endpoint.url)
        self._tries = tries
        self._tally = tally
        self._timing = timing
        self._formats, self._choices = Forms(FORMATS), Forms(LOGPROBS)
        self._refused_pairs = 0

    def close(self) -> None:
        """Close all connections."""
        self._client.close()

    def grade(self, png: bytes, prompt: str, stop: threading.Event) -> Grade | str:
        """The grade of a PNG picture, or why there is none; "stopped" once `stop` is set.

        Raises DiffscaleError as `Client.complete` and `Outage` do, and if the server wants to be left alone for long.
        """
        return self._of_picture(chat_messages(png, prompt), self._formats, lambda said: parse_grade(said.text), stop)

    def answer(
        self, png: bytes, question: str, forms: Forms, read: Callable[[Written], T], stop: threading.Event
    ) -> T | str:
        """What `read` reads in the answer to a question about a PNG picture, or why there is none.

        Raises DiffscaleError as `grade` does, and what `read` raises but for MalformedGrade, which is asked again.
        """
        return self._of_picture(user_message(question, png), forms, read, stop)

    def prefer(self, first: bytes, second: bytes, prompt: str, aspect: str, stop: threading.Event) -> float | str:
        """How probable it is that the first of two PNG pictures is better in `aspect`, or why that is not known.

        Refusals end no run, as many servers take one picture at a time: after some in a row no pair is sent any more.
        Raises DiffscaleError as `grade` does else.
        """
        if self._refused_pairs >= _OUTAGE:
            return "no answer (the server refused all pairs before)"
        try:
            answer = self._answer(pair_messages(first, second, prompt, aspect), self._choices, preference, stop)
        except Refused as error:
            self._refused_pairs += 1
            return f"no answer ({error})"
        self._refused_pairs = 0
        return answer

    def text(self, question: str, forms: Forms, read: Callable[[Written], T]) -> T:
        """What `read` reads in what the model writes to `question`; raises DiffscaleError where that cannot be had."""
        try:
            return self._retried(user_message(question), forms, read, threading.Event())
        except (MalformedGrade, Unanswered, Refused) as error:
            raise DiffscaleError(
                f"The language model's server {self._url} gave no usable answer ({error}): check it, its quota and the "
                "model, then give the same command again."
            ) from None

    def _of_picture(
        self, messages: list[dict[str, Any]], forms: Forms, read: Callable[[Written], T], stop: threading.Event
    ) -> T | str:
        try:
            return self._answer(messages, forms, read, stop)
        except Refused as error:
            self._outage.failed(str(error))
            return f"no answer ({error})"

    def _answer(
        self, messages: list[dict[str, Any]], forms: Forms, read: Callable[[Written], T], stop: threading.Event
    ) -> T | str:
        """What `read` reads in what the model writes, or why there is nothing; raises Refused."""
        try:
            answer: T | str = self._retried(messages, forms, read, stop)
        except Stopped:
            return "stopped"
        except MalformedGrade as error:
            answer = f"malformed answer ({error})"
        except Unanswered as error:
            self._outage.failed(str(error))
            return f"no answer ({error})"
        self._outage.answered()
        return answer

    def _retried(
        self, messages: list[dict[str, Any]], forms: Forms, read: Callable[[Written], T], stop: threading.Event
    ) -> T:
        """What `read` reads; waits for its turn and between tries.

        Raises MalformedGrade or Unanswered, whichever the last try ended in, Refused, and Stopped once `stop` is set.
        """
        attempt = 1
        while True:
            try:
                return read(self._complete(messages, forms, stop, again=attempt > 1))
            except (MalformedGrade, Unanswered) as error:
                if attempt == self._tries:
                    raise
                if isinstance(error, Unanswered):
                    self._wait(stop, self._pause(attempt, error))
            attempt += 1

    def _complete(self, messages: list[dict[str, Any]], forms: Forms, stop: threading.Event, again: bool) -> Written:
        """What the model writes, asked in the first form that the server knows; found out once."""
        first = forms.known
        for level in range(first, len(forms.options)):
            self._wait(stop, self._limit.reserve())
            self._tally.add(requests=1, retries=int(again or level > first))
            try:
                answer = self._client.complete(messages, **forms.options[level])
            except Refused:
                # The form's fault or the picture's: only an answer in another form tells.
                if level == len(forms.options) - 1:
                    raise
                continue
            forms.known = max(forms.known, level)
            return answer
        raise AssertionError("there is a form")

    def _pause(self, attempt: int, error: Unanswered) -> float:
        """Seconds before the next try: doubled each time, halved by chance, on top of what the server asks for."""
        seconds = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (attempt - 1)) * self._timing.uniform(0.5, 1.0)
        after = retry_after(error.retry_after, self._timing.now())
        if after is None:
            return seconds
        if after > _LONGEST_RETRY_AFTER:
            raise DiffscaleError(
                f"The language model's server asks to be left alone for {after:.0f} s ({error}): wait or raise the "
                "quota, then give the same command again."
            )
        self._limit.pause(after)
        return after + seconds

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        if seconds > 0:
            self._timing.wait(stop, seconds)
        if stop.is_set():
            raise Stopped
