"""What a pipeline's loop starts from: latents handed over, or noise that the pipeline mixes with its picture itself.

A pipeline makes its first latents in `prepare_latents`. Latents from the middle of a trajectory are put in the place
of what it returns, whatever layout its `latents` argument has. A pipeline that starts from a noised picture
(`strength`) is given the noise instead, in the place of its own draw. All other draws, such as those of an
autoencoder's posterior, are the same for every row and in every call, so that results do not depend on the batch.
"""

from typing import Any

import torch
from torch import Tensor

from diffscale.engine.flops import uncounted
from diffscale.samplers.arguments import call_parameters
from diffscale.samplers.calls import NormalDraws, same_in_every_row


class InitialLatents:
    """Put in the place of `prepare_latents` on `pipe`, a copy of the user's.

    `latents`, `noise`: what the next call of the pipeline starts from, both None to let it draw. `noise_shape`: of
    one row of the noise that it mixes with its picture, known after its first call; None if it has none.
    `mixes_noise`: whether the pipeline starts from a noised picture. `replaceable`: whether it makes its first latents
    where they can be replaced.
    """

    def __init__(self, pipe: Any) -> None:
        self.latents: Tensor | None = None
        self.noise: Tensor | None = None
        self.noise_shape: torch.Size | None = None
        self.mixes_noise = "strength" in call_parameters(pipe)
        self.replaceable = hasattr(pipe, "prepare_latents")
        self._noise_number: int | None = None
        self._last: Any = None
        if self.replaceable:
            self._prepare = pipe.prepare_latents
            pipe.__dict__["prepare_latents"] = self._replaced

    def _replaced(self, *args: Any, **kwargs: Any) -> Any:
        with NormalDraws(self._draw) as draws, uncounted():
            prepared = self._prepare(*args, **kwargs)
        if self.mixes_noise and self._noise_number is None and draws.shapes:
            # The noise is drawn last, after what the picture's encoding draws.
            self._noise_number = len(draws.shapes) - 1
            self.noise_shape = draws.shapes[-1][1:]
        if self.latents is not None:
            prepared = (self.latents, *prepared[1:]) if isinstance(prepared, tuple) else self.latents
        self._last = prepared[0] if isinstance(prepared, tuple) else prepared
        return prepared

    def _draw(self, drawn: Tensor, number: int) -> Tensor:
        if self.noise is not None and number == self._noise_number:
            return self.noise.to(drawn)
        return same_in_every_row(drawn, number)

    def end_call(self) -> Any:
        """The latents that the call began with, None if it did not get there; the next call draws."""
        last, self._last = self._last, None
        self.latents = self.noise = None
        return last
