"""A pipeline's denoiser at a timestep of its own for every row, as training needs it, called by the pipeline itself."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from diffscale.engine import noise
from diffscale.samplers.windowed.pipeline import Calls
from diffscale.samplers.windowed.scheduler import Window


class PerRow:
    """The denoiser behind `calls`, which must be unguided: told text, sizes and packing as its pipeline does.

    Pipelines hand their timestep on to every row; most take one that is a vector already. Whether this one does is
    tried once, by an evaluation of two rows: if not, rows run together only where their timesteps are equal.
    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. `sizes`: int64 [P, 6], what the network is
    told of each prompt's picture where it is told sizes and crops (SDXL's time ids), in the place of what the pipeline
    says of all; None leaves that.
    """

    def __init__(self, calls: Calls, like: Tensor) -> None:
        self._calls, self._like = calls, like
        self.sizes: Tensor | None = None
        self._names = list(calls.denoisers)
        own = calls.scheduler.timesteps
        self._dtype = own.dtype if own.is_floating_point() else torch.float32
        self.mixes = self._tried()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        """The network's raw output [B, ...], in its own dtype, for latents `x` [B, ...] told `times` [B].

        `rows`: int64 [B], the prompts. A graph is kept where torch's gradients are on. Latents are the network's own
        input: of variance preserving models they are of variance 1, whatever scheduler the pipeline has.
        """
        groups: dict[Hashable, list[int]] = {}
        texts = self._calls.texts
        for i, (row, time) in enumerate(zip(rows.tolist(), times.tolist(), strict=True)):
            alike = None if texts is None else texts.layout(row), None if self.mixes else time
            groups.setdefault(alike, []).append(i)
        if len(groups) == 1:
            return self._run(x, times if self.mixes else times[0], rows)
        parts = [self._run(x[at], times[at] if self.mixes else times[at[0]], rows[at]) for at in groups.values()]
        order = torch.tensor([i for at in groups.values() for i in at]).argsort()
        return torch.cat(parts)[order.to(parts[0].device)]

    def _run(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        window = Window(0, 1, hold=True, times=times.to(x.device, self._dtype))
        with self._calls.differentiated(torch.is_grad_enabled()), self._sized(rows):
            self._calls.run(x.to(self._like), rows.tolist(), window)
        assert window.out is not None
        return window.out

    @contextmanager
    def _sized(self, rows: Tensor) -> Iterator[None]:
        """Within it whatever is the denoiser now is told the sizes of `rows`."""
        if self.sizes is None:
            yield
            return
        sizes = self.sizes[rows]

        def told(network: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            more = kwargs.get("added_cond_kwargs") or {}
            if "time_ids" in more:
                kwargs = {**kwargs, "added_cond_kwargs": {**more, "time_ids": sizes.to(more["time_ids"])}}
            return args, kwargs

        hooks = [self._calls.part(name).register_forward_pre_hook(told, with_kwargs=True) for name in self._names]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _tried(self) -> bool:
        own = self._calls.scheduler.timesteps
        x = noise.normal(torch.arange(2), self._like.shape[1:]).to(self._like)
        times, rows = torch.stack([own[0], own[-1]]).cpu(), torch.zeros(2, dtype=torch.int64)
        apart = torch.cat([self._run(x[i : i + 1], times[i], rows[:1]) for i in range(2)])
        try:
            together = self._run(x, times, rows)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, TypeError):
            return False  # such as one that compares its timestep with a boundary
        # Rows of a batch differ by rounding from rows alone; one told another row's time differs by far more.
        return together.shape == apart.shape and bool((together - apart).abs().max() <= 0.02 * apart.abs().max())
