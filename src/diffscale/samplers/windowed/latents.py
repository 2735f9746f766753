"""What a pipeline's loop starts from: latents handed over, or noise that the pipeline mixes with its picture itself.

A pipeline makes its first latents in `prepare_latents`. Latents from the middle of a trajectory are put in the place
of what it returns, whatever layout its `latents` argument has. A pipeline that starts from a noised picture
(`strength`) is given the noise instead, in the place of its own draw. All other draws, such as those of an
autoencoder's posterior, are the same for every row and in every call, so that results do not depend on the batch.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffscale.engine import noise
from diffscale.engine.flops import uncounted


class Opening:
    """Put in the place of `prepare_latents` on `pipe`, a copy of the user's.

    `latents`, `noise`: what the next call of the pipeline starts from, both None to let it draw. `noise_shape`: of
    one row of the noise that it mixes with its picture, known after its first call; None if it has none. `mixes`:
    whether the pipeline starts from a noised picture. `owned`: whether it makes its first latents where they can be
    replaced.
    """

    def __init__(self, pipe: Any) -> None:
        self.latents: Tensor | None = None
        self.noise: Tensor | None = None
        self.noise_shape: torch.Size | None = None
        self.mixes = "strength" in inspect.signature(type(pipe).__call__).parameters
        self.owned = hasattr(pipe, "prepare_latents")
        self._draw: int | None = None
        self._begun: Any = None
        if self.owned:
            self._own = pipe.prepare_latents
            pipe.__dict__["prepare_latents"] = self._prepare

    def _prepare(self, *args: Any, **kwargs: Any) -> Any:
        with Draws(self.noise, self._draw) as draws, uncounted():
            made = self._own(*args, **kwargs)
        if self.mixes and self._draw is None and draws.shapes:
            # The noise is drawn last, after what the picture's encoding draws.
            self._draw = len(draws.shapes) - 1
            self.noise_shape = draws.shapes[-1][1:]
        if self.latents is not None:
            made = (self.latents, *made[1:]) if isinstance(made, tuple) else self.latents
        self._begun = made[0] if isinstance(made, tuple) else made
        return made

    def close(self) -> Any:
        """The latents that the call began with, None if it did not get there; the next call draws."""
        begun, self._begun = self._begun, None
        self.latents = self.noise = None
        return begun


class Draws(TorchFunctionMode):
    """Within it torch's normal draws are the same for every row and in every call; the one numbered `at` is `given`.

    `shapes`: of the draws so far.
    """

    def __init__(self, given: Tensor | None = None, at: int | None = None) -> None:
        super().__init__()
        self.given, self.at = given, at
        self.shapes: list[torch.Size] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like) or drawn.ndim < 2:
            return drawn
        number = len(self.shapes)
        self.shapes.append(drawn.shape)
        if self.given is not None and number == self.at:
            return self.given.to(drawn)
        return steady(drawn, number)


def steady(drawn: Tensor, number: int) -> Tensor:
    """Noise like `drawn` [B, ...], the same for every row, and for every draw of that `number` in a call."""
    key = torch.tensor([noise.fold(0, "opening", number)])
    return noise.normal(key, drawn.shape[1:]).to(drawn).expand_as(drawn)
