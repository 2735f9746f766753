"""Signals that ask a process to end: told in a sentence, or noted so that work at hand is finished first."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

ENDING: Final = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""An interrupt at the keyboard, the end of a batch job, and a terminal that was closed."""
AGAIN: Final = "give the same command to go on"


class Stopped(BaseException):
    """A signal asked the process to end; like KeyboardInterrupt it is no Exception, so that nothing swallows it.

    `advice`: how to go on.
    """

    def __init__(self, number: int, advice: str = AGAIN) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}: {advice}")
        self.number = number


@contextmanager
def signals_raised() -> Iterator[None]:
    """Within it the signals of `ENDING` raise Stopped in the main thread."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    with _handled(lambda *_: stop):
        yield


@contextmanager
def signals_kept() -> Iterator[None]:
    """At its end the signals of `ENDING` are handled as at its beginning, whatever a library has done to them."""
    before = {number: signal.getsignal(number) for number in ENDING}
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            for number, handler in before.items():
                signal.signal(number, handler)


@contextmanager
def signals_noted() -> Iterator[threading.Event]:
    """Yield an event that the first signal of `ENDING` sets; a second one does what it did before."""
    event = threading.Event()

    def note(before: Any) -> Callable[[int, FrameType | None], None]:
        def noted(number: int, frame: FrameType | None) -> None:
            event.set()
            signal.signal(number, before)

        return noted

    with _handled(note):
        yield event


@contextmanager
def _handled(handler: Callable[[Any], Callable[[int, FrameType | None], None]]) -> Iterator[None]:
    """Handle the signals of `ENDING` by what `handler` makes of their handlers so far, which are back at the end.

    Those that are ignored, such as SIGHUP under nohup, stay so. Threads other than the first cannot handle any.
    """
    handled = ENDING if threading.current_thread() is threading.main_thread() else ()
    before = {number: signal.getsignal(number) for number in handled}
    before = {number: own for number, own in before.items() if own is not signal.SIG_IGN}
    try:
        for number, own in before.items():
            signal.signal(number, handler(own))
        yield
    finally:
        for number, own in before.items():
            signal.signal(number, own)
