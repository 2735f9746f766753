"""The normal noise that a whole call of a pipeline draws, from its rows' keys."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffscale.engine import noise
from diffscale.samplers.windowed.latents import steady


class Noises(TorchFunctionMode):
    """Within it torch's normal draws come from `keys` (int64 [B]), and the starting noise is `given`, if not None.

    The starting noise is the last draw of the pipeline's first `prepare_latents`, after what a picture's encoding
    draws, or the first draw of all where there is none. A draw that is not one a row is the same for all rows.
    `start`: number of the starting noise among the draws; None to find it out, as `found` and its `shape`, of one row.
    """

    def __init__(self, keys: Tensor, given: Tensor | None = None, start: int | None = None) -> None:
        super().__init__()
        self._keys, self._given, self._start = keys, given, start
        self._drawn: list[torch.Size] = []
        self._last: int | None = None

    @property
    def found(self) -> int:
        return 0 if self._last is None else self._last

    @property
    def shape(self) -> torch.Size | None:
        return self._drawn[self.found][1:] if self._drawn else None

    def watch(self, pipe: Any) -> None:
        """Notice the draws of `prepare_latents` of `pipe`, a copy of the user's."""
        if (own := getattr(type(pipe), "prepare_latents", None)) is None:
            return

        @functools.wraps(own)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            before = len(self._drawn)
            made = own(pipe, *args, **kwargs)
            if self._last is None and len(self._drawn) > before:
                self._last = len(self._drawn) - 1
            return made

        pipe.__dict__["prepare_latents"] = prepare_latents

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like) or drawn.ndim < 2:
            return drawn
        number = len(self._drawn)
        self._drawn.append(drawn.shape)
        if self._given is not None and number == self._start:
            return self._given.to(drawn)
        if len(drawn) != len(self._keys):
            return steady(drawn, number)
        return noise.normal(noise.fold_rows(self._keys, "draw", number), drawn.shape[1:]).to(drawn)


@contextmanager
def stepping(schedulers: Sequence[Any]) -> Iterator[list[Any]]:
    """Within it every step of `schedulers` is listed."""
    steps: list[Any] = []

    def noted(scheduler: Any) -> Any:
        @functools.wraps(scheduler.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            steps.append(scheduler)
            return type(scheduler).step(scheduler, *args, **kwargs)

        return step

    for scheduler in schedulers:
        scheduler.__dict__["step"] = noted(scheduler)
    try:
        yield steps
    finally:
        for scheduler in schedulers:
            scheduler.__dict__.pop("step", None)
