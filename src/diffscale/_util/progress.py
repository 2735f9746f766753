"""Progress of long work, as those who wait for it are told."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """A callback that is told that `done` of `total` units of `what` are done, and figures of the last one by name."""

    def __call__(self, what: str, done: int, total: int, **figures: float) -> None: ...


def silent(what: str, done: int, total: int, **figures: float) -> None:
    """A `Progress` that tells nobody."""
