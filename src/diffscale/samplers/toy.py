"""An analytic model: a mixture of Gaussians whose best denoiser is known, to try searches and solvers on."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from diffscale.samplers import solvers
from diffscale.samplers.formulas import Marginal, perfect_output
from diffscale.samplers.levels import Schedule, even_levels, karras_levels
from diffscale.samplers.solved import SolvedSampler

_SPREAD = 0.3
_RADIUS = 4.0
_EXTENT = 6.0
_PREDICTION = {"flow": "flow_prediction", "vp": "v_prediction", "ve": "epsilon"}


class ToySampler(SolvedSampler):
    """Eight Gaussians on a circle in the plane, on a schedule of one of `formulas.PROCESSES`.

    Latents are points of `dtype` [B, 2]; a picture is 4x4 pixels whose red and green are the point's coordinates, -6 to
    6 as 0 to 1. Every prompt means the same mixture. The levels fall from 1 to 0 in `steps` equal steps, those of `ve`
    as EDM's do. `solver`: one of `solvers.SOLVERS`, some of which take two evaluations a step; `eta`: of DDIM.
    """

    def __init__(
        self,
        prompts: Sequence[str] = ("a point",),
        steps: int = 10,
        process: str = "flow",
        eta: float | None = None,
        solver: str = "ddim",
        dtype: torch.dtype = torch.float64,
    ) -> None:
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self.means = _RADIUS * torch.stack([angle.cos(), angle.sin()], -1)
        self.flops_per_forward = 20.0 * len(self.means)
        self._process = process
        schedule = Schedule(process, _PREDICTION[process], self._levels_of(steps))
        super().__init__(list(prompts), schedule, solvers.solver(solver, eta), torch.empty(0, 2, dtype=dtype))

    def _levels_of(self, intervals: int) -> tuple[float, ...]:
        return karras_levels(intervals) if self._process == "ve" else even_levels(intervals)

    def decode(self, latents: Tensor) -> Tensor:
        point = (latents / (2 * _EXTENT) + 0.5).clamp(0, 1).float()
        colour = torch.cat([point, torch.zeros(len(point), 1)], 1)
        return colour[..., None, None].expand(-1, 3, 4, 4)

    def _evaluate(self, x: Tensor, at: Marginal, rows: Tensor) -> Tensor:
        self.forwards += len(x)
        alpha, sigma = at
        variance = (alpha * _SPREAD) ** 2 + sigma**2
        offset = x[:, None] - alpha * self.means
        weight = (-offset.square().sum(-1) / (2 * variance)).softmax(-1)[..., None]
        x0 = (weight * (self.means + alpha * _SPREAD**2 / variance * offset)).sum(1)
        eps = (weight * offset).sum(1) * sigma / variance
        return perfect_output(self._schedule.prediction, x0, eps, at).to(x)
