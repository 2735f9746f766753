"""Noise levels and moves between them, for any schedule x = alpha x0 + sigma eps.

A *level* is the time t = sigma / (alpha + sigma) in [0, 1], which is the time of the linear flow and means the same
signal-to-noise ratio on every schedule; 1 is pure noise, 0 is clean. `Marginal` holds alpha and sigma there.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from torch import Tensor

from diffscale.errors import DiffscaleError

FORMS: Final = ("flow", "vp", "ve")
"""alpha + sigma = 1; alpha^2 + sigma^2 = 1; alpha = 1."""


class Marginal(NamedTuple):
    """x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def level(self) -> float:
        return self.sigma / (self.alpha + self.sigma)


def marginal(form: str, level: float) -> Marginal:
    """Alpha and sigma at `level` in [0, 1] of a schedule of one of `FORMS`; `ve` has no level 1."""
    norm = {"flow": 1.0, "vp": (level**2 + (1 - level) ** 2) ** 0.5, "ve": 1 - level}[form]
    return Marginal((1 - level) / norm, level / norm)


def denoise(x: Tensor, x0: Tensor, at: Marginal, to: Marginal, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
    """One step from `at` to the cleaner `to`, with a share of fresh noise; [B, ...].

    x_s = alpha_s x0 + sqrt(sigma_s^2 - c^2) eps + c z, where eps = (x_t - alpha_t x0) / sigma_t and
    c^2 = eta^2 sigma_s^2 (1 - (alpha_t sigma_s / (alpha_s sigma_t))^2): DDIM (Song et al. 2021, equations 12 and 16)
    written for any schedule. eta = 0 is the Euler step of a linear flow's ODE and of a VE schedule's; eta = 1 draws
    from the posterior q(x_s | x_t, x0), and so samples an ODE-trained flow stochastically with the same marginals.
    """
    eps = (x - at.alpha * x0) / at.sigma
    if not eta or not to.sigma:
        return to.alpha * x0 + to.sigma * eps
    if noise is None:
        raise DiffscaleError("A stochastic step (eta > 0) needs noise.")
    carried = at.alpha * to.sigma / (to.alpha * at.sigma)
    fresh = eta * to.sigma * (1 - min(carried, 1.0) ** 2) ** 0.5
    return to.alpha * x0 + (to.sigma**2 - fresh**2) ** 0.5 * eps + fresh * noise


def noised(x: Tensor, at: Marginal, to: Marginal, noise: Tensor) -> Tensor:
    """Forward noising from `at` to the noisier `to`, which keeps every marginal; [B, ...].

    x_s = (a_s / a_t) x_t + sqrt(s_s^2 - (a_s / a_t)^2 s_t^2) eps, as search over paths needs it (paper A, Ma et al.
    2025, arXiv 2501.09732, section 3.2).
    """
    scale = to.alpha / at.alpha if at.alpha else 1.0
    return scale * x + max(to.sigma**2 - (scale * at.sigma) ** 2, 0.0) ** 0.5 * noise
