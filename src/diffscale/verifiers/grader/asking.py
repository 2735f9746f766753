"""Asking until there is a grade: turns, formats that the server knows, and patience."""

from __future__ import annotations

import threading
from typing import Final

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.chat import Chat, Refused, Unanswered
from diffscale.verifiers.grader.costs import Tally
from diffscale.verifiers.grader.grade import Grade, MalformedGrade, read
from diffscale.verifiers.grader.pace import Pace, Timing
from diffscale.verifiers.grader.prompt import FORMATS, messages

_FIRST: Final = 1.0  # seconds before the second try
_CAP: Final = 60.0
_LONGEST: Final = 600.0  # seconds that a run may stand still because a server asks for it


class Stopped(Exception):
    """The call that this picture belongs to is over."""


class Asker:
    """Asks `model` for grades; for many threads at once.

    `tries`: how often a picture is asked for before it is given up, the first time included.
    """

    def __init__(self, chat: Chat, model: str, pace: Pace, tries: int, tally: Tally, timing: Timing) -> None:
        self._chat = chat
        self._model = model
        self._pace = pace
        self._tries = tries
        self._tally = tally
        self._timing = timing
        self._format = 0

    def grade(self, png: bytes, prompt: str, stop: threading.Event) -> Grade:
        """The grade of a PNG picture; waits for its turn and between tries.

        Raises MalformedGrade or Unanswered, whichever the last try ended in, Refused, Stopped once `stop` is set, and
        DiffscaleError as `Chat.ask` does or if the server wants to be left alone for long.
        """
        chat = messages(png, prompt)
        for tried in range(self._tries):
            try:
                return read(self._answer(chat, stop, again=tried > 0))
            except MalformedGrade:
                if tried == self._tries - 1:
                    raise
            except Unanswered as error:
                if tried == self._tries - 1:
                    raise
                self._wait(stop, self._patience(tried, error))
        raise AssertionError("tries is at least 1")

    def _answer(self, chat: list[dict[str, object]], stop: threading.Event, again: bool) -> str:
        """What the model writes in the strictest format that the server knows; found out once."""
        first = self._format
        for level in range(first, len(FORMATS)):
            self._wait(stop, self._pace.reserve())
            self._tally.add(requests=1, retries=int(again or level > first))
            try:
                answer = self._chat.ask({"model": self._model, "messages": chat, **FORMATS[level]})
            except Refused:
                # The format's fault or the picture's: only an answer in another format tells.
                if level == len(FORMATS) - 1:
                    raise
                continue
            self._format = max(self._format, level)
            return answer
        raise AssertionError("there is a format")

    def _patience(self, tried: int, error: Unanswered) -> float:
        """Seconds before the next try: doubled each time, halved by chance, on top of what the server asks for."""
        seconds = min(_CAP, _FIRST * 2**tried) * self._timing.uniform(0.5, 1.0)
        if error.after is None:
            return seconds
        if error.after > _LONGEST:
            raise DiffscaleError(
                f"The grader's server asks to be left alone for {error.after:.0f} s ({error}): wait or raise the "
                "quota, then give the same command again."
            )
        self._pace.hold(error.after)
        return error.after + seconds

    def _wait(self, stop: threading.Event, seconds: float) -> None:
        if seconds > 0:
            self._timing.wait(stop, seconds)
        if stop.is_set():
            raise Stopped
