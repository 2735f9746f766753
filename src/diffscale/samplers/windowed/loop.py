"""A pipeline's own call, of whose loop over timesteps only a window is run.

Every diffusers pipeline denoises in `for i, t in enumerate(timesteps)`, or in a loop over its progress bar. The call
is run as it stands, but the names `enumerate` and `progress_bar` that it finds give it the steps of the window alone,
with their true numbers `i`: so what depends on the number of a step, or looks at the next timestep, stays right.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any, Protocol

from diffscale._util.errors import DiffscaleError


class NotWindowed(DiffscaleError):
    """A pipeline or scheduler whose trajectories can only be run whole; its text says why, as a clause."""


class Visiting(Protocol):
    """What decides on the steps, see `window.WindowedScheduler`."""

    def place(self, items: Any) -> int | None: ...
    def visits(self, items: Any, first: int) -> list[tuple[int, Any]]: ...


class _Bar:
    """Timesteps in a progress bar, in which `enumerate` finds them."""

    def __init__(self, visits: Callable[[], list[tuple[int, Any]]]) -> None:
        self.visits = visits

    def __iter__(self) -> Iterator[Any]:
        return iter([t for _, t in self.visits()])


def windowed_call(pipe: Any, scheduler: Visiting, **names: Any) -> Callable[..., Any]:
    """The plain function of `pipe`'s call, without decorators such as no_grad, so that gradients can pass.

    Its loop visits what `scheduler` says, and `names` are put in the place of its module's. `pipe` is a copy, whose
    progress bar is replaced.
    """
    bar = pipe.progress_bar

    def progress_bar(iterable: Iterable[Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        first = scheduler.place(iterable)
        if first is None:
            return bar(iterable, *args, **kwargs)
        return _Bar(lambda: scheduler.visits(iterable, first))

    def numbered(iterable: Iterable[Any], start: int = 0) -> Iterable[tuple[int, Any]]:
        if isinstance(iterable, _Bar):
            return iterable.visits()
        first = scheduler.place(iterable)
        return enumerate(iterable, start) if first is None else scheduler.visits(iterable, first)

    pipe.__dict__["progress_bar"] = progress_bar
    call: Any = inspect.unwrap(type(pipe).__call__)
    own = FunctionType(
        call.__code__,
        {**call.__globals__, "enumerate": numbered, **names},
        call.__name__,
        call.__defaults__,
        call.__closure__,
    )
    own.__kwdefaults__ = call.__kwdefaults__
    return own
