"""Noise levels, what a network says there, and moves between them, for any schedule x = alpha x0 + sigma eps.

A *level* is the time t = sigma / (alpha + sigma) in [0, 1], which is the time of the linear flow and means the same
signal-to-noise ratio on every schedule; 1 is pure noise, 0 is clean. `Marginal` holds alpha and sigma there.
"""

import math
from typing import Final, NamedTuple

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError

PROCESSES: Final = ("flow", "vp", "ve")
"""alpha + sigma = 1; alpha^2 + sigma^2 = 1; alpha = 1."""


class Marginal(NamedTuple):
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        return self.sigma / (self.alpha + self.sigma)


class RowMarginals(NamedTuple):
    """A `Marginal` of its own for each row of a batch: float [B, 1, ...] each, to go with latents [B, ...]."""

    alpha: Tensor
    sigma: Tensor


def marginal(process: str, level: float) -> Marginal:
    """Alpha and sigma at `level` in [0, 1] of one of `PROCESSES`; `ve` has no level 1."""
    norm = {"flow": 1.0, "vp": (level**2 + (1 - level) ** 2) ** 0.5, "ve": 1 - level}[process]
    return Marginal((1 - level) / norm, level / norm)


def x0_and_eps(prediction: str, x: Tensor, output: Tensor, at: Marginal | RowMarginals) -> tuple[Tensor, Tensor]:
    """Return the clean prediction x0 and the noise eps in latents `x` [B, ...], by a network's `output` [B, ...].

    `prediction`: `flow_prediction` is v = eps - x0; `v_prediction` is alpha eps - sigma x0, with alpha and sigma of the
    latents brought to variance 1 (Salimans and Ho 2022, arXiv 2202.00512); `epsilon` is eps and `sample` x0.
    """
    alpha, sigma = at
    match prediction:
        case "flow_prediction":
            return x - sigma * output, x + alpha * output
        case "epsilon":
            return (x - sigma * output) / alpha, output
        case "sample":
            return output, (x - alpha * output) / sigma
        case "v_prediction":
            norm = torch.hypot(*at) if isinstance(at, RowMarginals) else math.hypot(*at)
            return (alpha * x / norm - sigma * output) / norm, (sigma * x / norm + alpha * output) / norm
        case other:
            raise DiffscaleError(
                f"Networks that predict {other!r} are not supported; use one that predicts "
                "epsilon, v_prediction, sample or flow_prediction."
            )


def has_x0_and_eps(prediction: str, at: Marginal) -> bool:
    """Whether an output tells both x0 and eps there, see `x0_and_eps`: eps tells no x0 of pure noise, nor x0 an eps of
    clean latents.
    """
    return not ((prediction == "epsilon" and at.alpha == 0) or (prediction == "sample" and at.sigma == 0))


def perfect_output(prediction: str, x0: Tensor, eps: Tensor, at: Marginal | RowMarginals) -> Tensor:
    """What a network that knows `x0` and `eps` [B, ...] says of the latents made of them: turns `x0_and_eps` around.

    Of variance preserving latents and of a linear flow's.
    """
    match prediction:
        case "flow_prediction":
            return eps - x0
        case "v_prediction":
            return at.alpha * eps - at.sigma * x0
        case _:
            return {"epsilon": eps, "sample": x0}[prediction]


def step_mean_and_std(
    x: Tensor, x0: Tensor, at: Marginal | RowMarginals, to: Marginal | RowMarginals, eta: float
) -> tuple[Tensor, float | Tensor]:
    """Mean [B, ...] and standard deviation of a step from `at` to the cleaner `to`, see `denoise`."""
    eps = (x - at.alpha * x0) / at.sigma
    carried = _clamped(at.alpha * to.sigma / (to.alpha * at.sigma), 0.0, 1.0)
    std = eta * to.sigma * (1 - carried**2) ** 0.5
    return to.alpha * x0 + (to.sigma**2 - std**2) ** 0.5 * eps, std


def denoise(x: Tensor, x0: Tensor, at: Marginal, to: Marginal, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """One step from `at` to the cleaner `to`, with a share of fresh noise; [B, ...].

    x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z, where eps = (x_t - alpha_t x0) / sigma_t and
    c^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2): DDIM (Song et al. 2021, equations 12 and 16)
    written for any schedule. eta = 0 is the Euler step of a linear flow's ODE and of a VE schedule's; eta = 1 draws
    from the posterior q(x_s | x_t, x0), and so samples an ODE-trained flow stochastically with the same marginals.
    """
    if not eta or not to.sigma:
        return to.alpha * x0 + to.sigma * ((x - at.alpha * x0) / at.sigma)
    if noise is None:
        raise DiffscaleError("A stochastic step (eta > 0) needs noise.")
    mean, std = step_mean_and_std(x, x0, at, to, eta)
    return mean + std * noise


def finite_slopes(process: str, start: Marginal, end: Marginal) -> bool:
    """Whether a step has finite times and slopes at both ends, see `scale_and_time`: a linear flow's always has."""
    return process == "flow" or (start.alpha > 0 and end.sigma > 0)


def scale_and_time(process: str, at: Marginal) -> tuple[float, float]:
    """(scale, time) there: the curve time -> x / scale is the one whose Euler step is `denoise` with eta = 0.

    A linear flow's time is its level and the slope v = eps - x0; of other processes it is sigma / alpha, where the
    slope is eps (Song et al. 2021, equation 14; Karras et al. 2022, arXiv 2206.00364, equation 4).
    """
    return (1.0, at.sigma) if process == "flow" else (at.alpha, at.sigma / at.alpha)


def flow_slope(process: str, x0: Tensor, eps: Tensor) -> Tensor:
    """d(x / scale) / d(time) along the probability flow, see `scale_and_time`."""
    return eps - x0 if process == "flow" else eps


def linear_step(process: str, x: Tensor, slope: Tensor, start: Marginal, end: Marginal) -> Tensor:
    """One step of x / scale along a straight line. With the mean of the slopes at both ends it is Heun's."""
    (scale, time), (scale_end, time_end) = scale_and_time(process, start), scale_and_time(process, end)
    return scale_end * (x / scale + (time_end - time) * slope)


def sde_std(process: str, start: Marginal, end: Marginal) -> float:
    """Standard deviation of the fresh noise of a step of the reverse SDE, in x.

    dx = (slope + eps) d time + sqrt(2 time) dW, in the scale of `scale_and_time`: the SDE with the flow's marginals
    whose diffusion coefficient w is the time itself (SiT, Ma et al. 2024, arXiv 2401.08740, equation 6, w = sigma as
    its authors' `sample.py` has by default; of a VE process it is that of Song et al. 2021, arXiv 2011.13456). The
    noise is that of the whole step, integrated, where the authors of SiT take w at its start.
    """
    (_, time), (scale, time_end) = scale_and_time(process, start), scale_and_time(process, end)
    return scale * (time**2 - time_end**2) ** 0.5


def multistep_x0(x0: Tensor, earlier: Tensor, before: Marginal, at: Marginal, to: Marginal) -> Tensor:
    """The x0-prediction for `denoise` that makes its step from `at` to `to` second order, given an earlier one.

    DPM-Solver++ 2M (Lu et al. 2022, arXiv 2211.01095, algorithm 2): x0 + (x0 - earlier) h / (2 h_before), h the
    differences of log(alpha / sigma). Steps from pure noise and to the clean end are endless there: first order.
    """
    if not before.alpha or not to.sigma:
        return x0
    first, here, there = (math.log(m.alpha / m.sigma) for m in (before, at, to))
    return x0 + (there - here) / (2 * (here - first)) * (x0 - earlier)


def renoise(x: Tensor, at: Marginal | RowMarginals, to: Marginal | RowMarginals, noise: Tensor) -> Tensor:
    """Forward noising from `at` to the noisier `to`, which keeps every marginal; [B, ...].

    x_s = (a_s / a_t) x_t + sqrt(s_s^2 - (a_s / a_t)^2 s_t^2) eps, as search over paths needs it (paper A, Ma et al.
    2025, arXiv 2501.09732, section 3.2).
    """
    scale: float | Tensor
    if isinstance(at, RowMarginals):
        scale = torch.where(at.alpha > 0, to.alpha / at.alpha, 1.0)
    else:
        scale = to.alpha / at.alpha if at.alpha else 1.0
    return scale * x + _clamped(to.sigma**2 - (scale * at.sigma) ** 2, 0.0, math.inf) ** 0.5 * noise


def _clamped(value: float | Tensor, low: float, high: float) -> float | Tensor:
    return value.clamp(low, high) if isinstance(value, Tensor) else min(max(value, low), high)
