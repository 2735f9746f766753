"""The time axis that a model was trained on, and what its latents mean there, for batches that mix times.

A *time* is a training timestep: what the network is told. Of a variance preserving model it runs from 0 to T - 1
through its table of alphas, of a linear flow from 1 to T and the noise level is time / T. Latents are
x = alpha x0 + sigma eps with alpha and sigma of each row; any time below the first is clean.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers import formulas
from diffscale.samplers.formulas import RowMarginals
from diffscale.samplers.levels import log_ratios_of, prediction_type

CLEAN: Final = -1.0
"""A time at which latents have no noise."""

_PREDICTIONS: Final = ("epsilon", "v_prediction", "sample", "flow_prediction")


@dataclass(frozen=True)
class Times:
    """`table`: alpha^2 by timestep, float64 [T]; None of a linear flow. `count`: T.

    `prediction`: what the network says, see `formulas.x0_and_eps`. `weights`: how often each time is drawn, float64 [T]
    up to a factor, the least noisy one first; None for all alike.
    """

    table: Tensor | None
    count: int
    prediction: str
    weights: Tensor | None = None

    @classmethod
    def of_scheduler(cls, scheduler: Any) -> Times:
        """Those of a diffusers scheduler, whatever solver it is; raises DiffscaleError for a prediction not known."""
        prediction = prediction_type(scheduler)
        if prediction not in _PREDICTIONS:
            raise DiffscaleError(f"Networks that predict {prediction!r} cannot be trained: use another model.")
        table = None if prediction == "flow_prediction" else scheduler.alphas_cumprod.double().cpu()
        return cls(table, int(scheduler.config.num_train_timesteps), prediction)

    @property
    def first(self) -> int:
        """The least noisy time."""
        return 1 if self.table is None else 0

    def draw(self, keys: Tensor) -> Tensor:
        """Whole times by their weights, float64 [B], of `keys` int64 [B] alone."""
        share = noise.uniform(keys)
        if self.weights is None:
            return (share * self.count).floor() + self.first
        upper = self.weights.cumsum(0)
        found = torch.searchsorted(upper, share * upper[-1], right=True).clamp(max=self.count - 1)
        return found.double() + self.first

    def biased(self, multiplier: float, begin: int, end: int) -> Times:
        """The same with those from number `begin` to before `end`, by noise, drawn `multiplier` times as often."""
        weights = torch.ones(self.count, dtype=torch.float64)
        weights[begin:end] *= multiplier
        return replace(self, weights=weights)

    def marginals(self, time: Tensor, x: Tensor) -> RowMarginals:
        """Alpha and sigma at `time` [B], shaped [B, 1, ...] and typed to go with `x` [B, ...]."""
        time = time.double().cpu()
        if self.table is None:
            sigma = time / self.count
            alpha = 1 - sigma
        else:
            # Between two times by the logarithm of noise over signal, as samplers do.
            ratio = torch.from_numpy(log_ratios_of(self.table, time.numpy()))
            alpha, sigma = (-2 * ratio).sigmoid().sqrt(), (2 * ratio).sigmoid().sqrt()
        clean = time < self.first
        shape = len(time), *[1] * (x.ndim - 1)
        alpha, sigma = alpha.masked_fill(clean, 1.0), sigma.masked_fill(clean, 0.0)
        return RowMarginals(alpha.to(x).view(shape), sigma.to(x).view(shape))

    def noised(self, x0: Tensor, eps: Tensor, time: Tensor) -> Tensor:
        """Latents [B, ...] at `time` [B] of clean ones and noise."""
        alpha, sigma = self.marginals(time, x0)
        return alpha * x0 + sigma * eps

    def renoised(self, x: Tensor, time: Tensor, to: Tensor, eps: Tensor) -> Tensor:
        """Forward to the noisier `to` [B], which keeps every marginal, see `formulas.renoise`."""
        return formulas.renoise(x, self.marginals(time, x), self.marginals(to, x), eps)

    def target(self, x0: Tensor, eps: Tensor, time: Tensor) -> Tensor:
        """The output of a perfect network for latents made of `x0` and `eps` [B, ...] at `time` [B]."""
        return formulas.perfect_output(self.prediction, x0, eps, self.marginals(time, x0))

    def weight(self, time: Tensor, gamma: float) -> Tensor:
        """Min-SNR weights float64 [B] of squared errors at `time` [B]: min(SNR, gamma) of the error of x0.

        Hang et al. 2023 (arXiv 2303.09556, section 3.4); with SNR = alpha^2 / sigma^2 and `gamma` 5 the weight is
        5 / SNR where noise is low and epsilon is predicted, and 1 where it is high.
        """
        alpha, sigma = (each.double().flatten() for each in self.marginals(time, time.double()))
        snr = (alpha / sigma) ** 2
        # The error of x0 is that of the output times this.
        share = {"epsilon": 1 / snr, "sample": torch.ones_like(snr)}.get(self.prediction, sigma**2)
        return snr.clamp(max=gamma) * share

    def consistent_target(self, x: Tensor, x0: Tensor, time: Tensor) -> Tensor:
        """The target that leads latents `x` [B, ...] at `time` [B], wherever they came from, to `x0`.

        That of the noise (x - alpha x0) / sigma, which is what now lies between them.
        """
        at = self.marginals(time, x)
        return formulas.perfect_output(self.prediction, x0, (x - at.alpha * x0) / at.sigma, at)

    def clean(self, x: Tensor, output: Tensor, time: Tensor) -> Tensor:
        """The x0-prediction [B, ...] from latents and the network's output, see `formulas.x0_and_eps`."""
        return formulas.x0_and_eps(self.prediction, x, output, self.marginals(time, x))[0]

    def step_mean_and_std(self, x: Tensor, x0: Tensor, time: Tensor, to: Tensor, eta: float) -> tuple[Tensor, Tensor]:
        """Mean [B, ...] and standard deviation [B, 1, ...] of a step from `time` to the cleaner `to`, both [B].

        See `formulas.denoise`: eta 0 is DDIM's step (Song et al. 2021, equation 12) and Euler's of a linear flow, whose
        deviation is 0; eta 1 draws from q(x_s | x_t, x0).
        """
        mean, std = formulas.step_mean_and_std(x, x0, self.marginals(time, x), self.marginals(to, x), eta)
        return mean, torch.as_tensor(std)
