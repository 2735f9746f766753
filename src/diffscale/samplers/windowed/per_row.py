"""A pipeline's denoiser at a timestep of its own for every row, as training needs it, called by the pipeline itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from diffscale.engine import noise
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.samplers.windowed.scheduler import StepWindow


class PerRowDenoiser:
    """The denoiser of `pipeline`, which must be unguided: given text, sizes and packing as its pipeline does.

    Pipelines hand their timestep on to every row; most take one that is a vector already. Whether this one does is
    tried once, by an evaluation of two rows: if not, rows run together only where their timesteps are equal.
    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. `sizes`: int64 [P, 6], what the network is
    told of each prompt's picture where it is told sizes and crops (SDXL's time ids), in the place of what the pipeline
    says of all; None leaves that.
    """

    def __init__(self, pipeline: WindowedPipeline, like: Tensor) -> None:
        self._pipeline, self._like = pipeline, like
        self.sizes: Tensor | None = None
        self._names = list(pipeline.denoisers)
        own = pipeline.scheduler.timesteps
        self._dtype = own.dtype if own.is_floating_point() else torch.float32
        self.mixes_times = self._try_mixed_times()

    def __call__(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        """The network's raw output [B, ...], in its own dtype, for latents `x` [B, ...] told `times` [B].

        `rows`: int64 [B], the prompts. A graph is kept where torch's gradients are on. Latents are the network's own
        input: of variance preserving models they are of variance 1, whatever scheduler the pipeline has.
        """
        groups = self._pipeline.groups(rows.tolist(), None if self.mixes_times else times.tolist())
        if len(groups) == 1:
            return self._run(x, times if self.mixes_times else times[0], rows)
        outputs = [self._run(x[g], times[g] if self.mixes_times else times[g[0]], rows[g]) for g in groups]
        order = torch.tensor([i for group in groups for i in group]).argsort()
        return torch.cat(outputs)[order.to(outputs[0].device)]

    def _run(self, x: Tensor, times: Tensor, rows: Tensor) -> Tensor:
        window = StepWindow(0, 1, predict_only=True, times=times.to(x.device, self._dtype))
        with self._pipeline.graph_kept(torch.is_grad_enabled()), self._with_sizes(rows):
            self._pipeline.run(x.to(self._like), rows.tolist(), window)
        assert window.model_output is not None
        return window.model_output

    @contextmanager
    def _with_sizes(self, rows: Tensor) -> Iterator[None]:
        """Within it whatever is the denoiser now is told the sizes of `rows`."""
        sizes = None if self.sizes is None else self.sizes[rows]

        def replaced(network: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
            more = kwargs.get("added_cond_kwargs") or {}
            if sizes is not None and "time_ids" in more:
                kwargs = {**kwargs, "added_cond_kwargs": {**more, "time_ids": sizes.to(more["time_ids"])}}
            return args, kwargs

        with ExitStack() as hooks:
            for name in self._names if sizes is not None else ():
                network = self._pipeline.components[name]
                hooks.enter_context(network.register_forward_pre_hook(replaced, with_kwargs=True))
            yield

    @torch.no_grad()
    def _try_mixed_times(self) -> bool:
        own = self._pipeline.scheduler.timesteps
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
