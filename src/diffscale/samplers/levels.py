"""Signal and noise levels of a diffusers scheduler's grid, and the clean prediction there.

With x = alpha x0 + sigma eps: variance preserving (alpha^2 + sigma^2 = 1), noise in units of the
signal (alpha = 1, Euler), or a linear flow (alpha = 1 - sigma).
"""

import math
from typing import Any

from torch import Tensor

from diffscale.errors import DiffscaleError


def level(scheduler: Any, step: int) -> tuple[float, float]:
    """(alpha, sigma) of the latents that enter grid step `step`; (1, 0) after the last one."""
    with scheduler.whole():
        grid = scheduler.timesteps
        if step == len(grid):
            return 1.0, 0.0
        table: Any = getattr(scheduler, "alphas_cumprod", None)
        sigmas: Any = getattr(scheduler, "sigmas", None)
        if hasattr(scheduler, "precondition_outputs") or (table is None and sigmas is None):
            raise DiffscaleError(f"{type(scheduler).__name__} has no known noise levels; use another scheduler.")
        if sigmas is None:
            kept = float(table[int(grid[step])])
            return math.sqrt(kept), math.sqrt(1 - kept)
        if hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
            alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigmas[step])
            return float(alpha), float(sigma)
        sigma = float(sigmas[step])
        return (1 - sigma if predicts(scheduler) == "flow_prediction" else 1.0), sigma


def predicts(scheduler: Any) -> str:
    """What the network's output means: epsilon, v_prediction, sample or flow_prediction."""
    flow = getattr(scheduler, "alphas_cumprod", None) is None
    return "flow_prediction" if flow else str(scheduler.config.prediction_type)


def clean(scheduler: Any, step: int, x: Tensor, out: Tensor) -> Tensor:
    """The x0-prediction from latents `x` and network output `out`, both [B, ...], at `step`."""
    alpha, sigma = level(scheduler, step)
    match predicts(scheduler):
        case "flow_prediction":
            return x - sigma * out
        case "epsilon":
            return (x - sigma * out) / alpha
        case "sample":
            return out
        case "v_prediction":
            norm = math.hypot(alpha, sigma)
            return (alpha * x / norm - sigma * out) / norm
        case other:
            raise DiffscaleError(
                f"Networks that predict {other!r} are not supported; use one that predicts "
                "epsilon, v_prediction, sample or flow_prediction."
            )
