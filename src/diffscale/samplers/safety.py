"""A pipeline's safety checker: passed by for pictures that nobody is to see, and asked for those that somebody may.

Of diffusers' checkers there are two kinds. Those of Stable Diffusion and of DeepFloyd are called with all pictures, and
give them back, black ones in the place of those that they flag, with their flags. Cosmos' is asked about one video by
its `check_video_safety`, and gives None for one that it flags; its pipelines do not run without it.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Final

import numpy as np

from diffscale.samplers.calls import overridden

_BY_VIDEO: Final = "check_video_safety"


def has_checker(pipe: Any) -> bool:
    """Whether `pipe` looks at its pictures before it gives them."""
    return getattr(pipe, "safety_checker", None) is not None


def unchecked(pipe: Any) -> AbstractContextManager[None]:
    """Within it `pipe`, a copy of the user's, gives pictures as they are."""
    if not has_checker(pipe):
        return nullcontext()
    if hasattr(pipe.safety_checker, _BY_VIDEO):
        return overridden(pipe.safety_checker, **{_BY_VIDEO: lambda frames: frames})
    return overridden(pipe, safety_checker=None)


@contextmanager
def noted_flags(pipe: Any) -> Iterator[list[bool]]:
    """Within it the flag of every picture that `pipe`, a copy of the user's, gives is listed, if it has a checker."""
    flags: list[bool] = []
    if not has_checker(pipe):
        yield flags
        return
    own = pipe.safety_checker

    def called(*args: Any, **kwargs: Any) -> Any:
        answer = own(*args, **kwargs)
        # DeepFloyd's flags watermarks too; people disable checkers by functions that give None, or one False.
        lists = [each for each in answer[1:] if isinstance(each, list | tuple | np.ndarray)]
        flags.extend(any(each) for each in zip(*lists, strict=True))
        return answer

    if not hasattr(own, _BY_VIDEO):
        with overridden(pipe, safety_checker=called):
            yield flags
        return
    look = own.check_video_safety

    def looked(frames: Any) -> Any:
        seen = look(frames)
        flags.append(seen is None)
        return np.zeros_like(frames) if seen is None else seen

    with overridden(own, **{_BY_VIDEO: looked}):
        yield flags


def flags_of_rows(flags: list[bool], rows: int) -> list[bool]:
    """A flag for each of `rows`; of a checker that looks at more or fewer pictures than there are, all or none."""
    return flags if len(flags) == rows else [any(flags)] * rows
