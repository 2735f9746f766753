"""Progress of long work, as those who wait for it are told."""

from collections.abc import Callable
from typing import Any, Protocol


class Progress(Protocol):
    """A callback that is told that `done` of `total` units of `what` are done, and figures of the last one by name.

    Where many workers compute them, `workers` says in a line what each does.
    """

    def __call__(self, what: str, done: int, total: int, **figures: Any) -> None: ...


Counter = Callable[..., None]
"""`partial(progress, what)`: what does one thing calls it with `done`, `total` and figures."""


def silent(*counts: Any, **figures: Any) -> None:
    """A `Progress`, and a `Counter`, that tells nobody."""
