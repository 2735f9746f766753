"""An analytic model: a mixture of Gaussians whose best denoiser is known, to try searches on."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from diffscale import noise
from diffscale.errors import DiffscaleError
from diffscale.types import State

_SPREAD = 0.3
_RADIUS = 4.0
_EXTENT = 6.0


class ToySampler:
    """Eight Gaussians on a circle in the plane, under the linear flow x_t = (1 - t) x0 + t eps.

    Latents are points, float64 [B, 2]; a picture is 4x4 pixels whose red and green are the point's
    coordinates, -6 to 6 as 0 to 1. Every prompt means the same mixture.
    """

    def __init__(self, prompts: Sequence[str] = ("a point",), steps: int = 10) -> None:
        self.prompts = list(prompts)
        self.steps = steps
        self.forwards = 0
        angle = torch.arange(8, dtype=torch.float64) * math.pi / 4
        self._means = _RADIUS * torch.stack([angle.cos(), angle.sin()], -1)
        self.flops_per_forward = 20.0 * len(self._means)

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        return State(noise.normal(keys, (2,)).double(), 0, keys, rows)

    def predict(self, state: State) -> State:
        self.forwards += len(state)
        t = 1 - state.step / self.steps
        variance = ((1 - t) * _SPREAD) ** 2 + t**2
        offset = state.x[:, None] - (1 - t) * self._means
        weight = (-offset.square().sum(-1) / (2 * variance)).softmax(-1)
        mean = self._means + (1 - t) * _SPREAD**2 / variance * offset
        x0 = (weight[..., None] * mean).sum(1)
        return replace(state, x0=x0, out=(state.x - x0) / t)

    def step(self, state: State, noise: Tensor | None = None) -> State:
        if state.out is None:
            raise DiffscaleError(f"A step from step {state.step} needs Predict first.")
        if noise is not None:
            raise DiffscaleError("The toy's solver is deterministic and takes no noise.")
        x = state.x - state.out / self.steps
        return replace(state, x=x, step=state.step + 1, x0=None, out=None)

    def renoise(self, state: State, to: int, noise: Tensor) -> State:
        if not 0 <= to <= state.step:
            raise DiffscaleError(f"Renoising goes from step {state.step} back, not to step {to}.")
        t, t_to = 1 - state.step / self.steps, 1 - to / self.steps
        scale = (1 - t_to) / (1 - t) if t < 1 else 1.0
        fresh = max(t_to**2 - (scale * t) ** 2, 0.0) ** 0.5
        return replace(state, x=scale * state.x + fresh * noise, step=to, x0=None, out=None)

    def run(self, state: State, to: int | None = None) -> State:
        to = self.steps if to is None else to
        if not state.step <= to <= self.steps:
            raise DiffscaleError(f"A run from step {state.step} cannot end at step {to}.")
        while state.step < to:
            state = self.step(state if state.out is not None else self.predict(state))
        return state

    def decode(self, latents: Tensor) -> Tensor:
        point = (latents / (2 * _EXTENT) + 0.5).clamp(0, 1).float()
        colour = torch.cat([point, torch.zeros(len(point), 1)], 1)
        return colour[..., None, None].expand(-1, 3, 4, 4)
