"""A pipeline's own call, of whose loop over timesteps only a window is run.

Every diffusers pipeline denoises in `for i, t in enumerate(timesteps)`, or in a loop over its progress bar. The call
is run as it stands, but the names `enumerate` and `progress_bar` that it finds give it the steps of the window alone,
with their true numbers `i`: so what depends on the number of a step, or looks at the next timestep, stays right.
"""

import inspect
from collections.abc import Callable, Iterable, Iterator
from types import FunctionType
from typing import Any

from diffscale._util.errors import DiffscaleError


class NotWindowed(DiffscaleError):
    """A pipeline or scheduler whose trajectories can only be run whole; its text says why, as a clause."""


Visits = list[tuple[int, Any]]
"""Number and timestep of the steps that a loop visits."""


class _Bar:
    """Timesteps in a progress bar, in which `enumerate` finds them."""

    def __init__(self, visits: Callable[[], Visits]) -> None:
        self.visits = visits

    def __iter__(self) -> Iterator[Any]:
        return iter([t for _, t in self.visits()])


def windowed_call(
    pipe: Any, visits_of: Callable[[Any], Callable[[], Visits] | None], **names: Any
) -> Callable[..., Any]:
    """The plain function of `pipe`'s call, without decorators such as no_grad, so that gradients can pass.

    `visits_of` is asked of everything that the call loops over: it gives the steps to visit in its place, to be asked
    for when the loop begins; or None for what is no timesteps. `names` are put in the place of globals of the call's
    module. `pipe` is a copy, whose progress bar is replaced.
    """
    own_bar = pipe.progress_bar

    def progress_bar(iterable: Iterable[Any] | None = None, *args: Any, **kwargs: Any) -> Any:
        visits = visits_of(iterable)
        return own_bar(iterable, *args, **kwargs) if visits is None else _Bar(visits)

    def windowed_enumerate(iterable: Iterable[Any], start: int = 0) -> Iterable[tuple[int, Any]]:
        visits = iterable.visits if isinstance(iterable, _Bar) else visits_of(iterable)
        return enumerate(iterable, start) if visits is None else visits()

    pipe.__dict__["progress_bar"] = progress_bar
    # The same code with other globals: `enumerate` is a builtin, which a global of that name hides.
    own: Any = inspect.unwrap(type(pipe).__call__)
    namespace = {**own.__globals__, "enumerate": windowed_enumerate, **names}
    call = FunctionType(own.__code__, namespace, own.__name__, own.__defaults__, own.__closure__)
    call.__kwdefaults__ = own.__kwdefaults__
    return call
