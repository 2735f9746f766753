"""What samplers with a grid of noise levels do alike: where moves may go, where on the grid they end, gradients."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, set_checkpoint_early_stop

from diffscale._util.errors import DiffscaleError
from diffscale.types import State, nearest


class GridSampler(ABC):
    """A part of a `Sampler`.

    `levels`, `steps`: see there. `mixes_noise`: whether a state at step 0 holds noise that is mixed with something
    else (a picture, data) before the first step; the latents made of it are marked by their level.
    """

    levels: Sequence[float]
    steps: int
    mixes_noise: bool = False

    @abstractmethod
    def run(self, state: State, to: int | None = None, record: float | None = None) -> State: ...
    @abstractmethod
    def predict(self, state: State) -> State: ...
    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor: ...

    def gradient(
        self,
        state: State,
        score: Callable[[Tensor, Tensor | None], Tensor],
        record: float | None = None,
        of_prediction: bool = False,
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        """See `Sampler.gradient`: at the memory of one step, as each step, and the decoding, is recomputed on the way
        back. The network's rows are counted when they are recomputed too; the one evaluation of a prediction is not.
        """
        again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
        with torch.enable_grad(), set_checkpoint_early_stop(False):
            x = state.x.detach().clone().requires_grad_()
            now = replace(state, x=x)
            if of_prediction:
                now = self.predict(replace(now, x0=None, model_output=None))
                if now.x0 is None or not now.x0.requires_grad:
                    raise DiffscaleError(
                        f"At step {state.step} the solver evaluates the network elsewhere than at the latents: take "
                        "the step before with eta, or the gradient of the prediction at another step."
                    )
            else:
                for to in range(state.step + 1, self.steps + 1):
                    now = again(self.run, now, to, record)
            images: Tensor = again(self.decode, now.x0 if of_prediction else now.x)
            early = None if of_prediction else now.recorded
            scores = score(images, None if early is None else again(self.decode, early))
            (grad,) = torch.autograd.grad(scores.sum(), x)
        x0, output = (None if value is None else value.detach() for value in (now.x0, now.model_output))
        end = replace(now, x=now.x.detach(), x0=x0, model_output=output, recorded=None)
        return end, images.detach(), scores.detach(), grad

    def _level(self, state: State) -> float:
        return self.levels[state.step] if state.level is None else state.level

    def _is_on_grid(self, state: State) -> bool:
        return state.level is None or (self.mixes_noise and state.level == self.levels[0])

    def _predicted(self, state: State) -> tuple[Tensor, Tensor]:
        """x0-prediction and network output of a state that a step can be taken from; else raises DiffscaleError."""
        if not self._is_on_grid(state):
            raise DiffscaleError("A step starts on the grid, and this state is between its levels: use env.solve.")
        if state.x0 is None or state.model_output is None:
            raise DiffscaleError(
                f"A step from step {state.step} needs a prediction: write `state = yield from env.predict(state)` "
                "first."
            )
        return state.x0, state.model_output

    def _run_end(self, state: State, to: int | None, record: float | None) -> tuple[int, int | None]:
        """The grid step at which a run ends, and that to `record` at; raises DiffscaleError if it cannot be reached."""
        to = self.steps if to is None else to
        if not self._is_on_grid(state):
            raise DiffscaleError("A run starts on the grid, and this state is between its levels: use env.solve.")
        if not state.step <= to <= self.steps:
            raise DiffscaleError(f"A run from step {state.step} cannot end at step {to}.")
        return to, None if record is None else nearest(self.levels[:-1], record)

    def _check_renoising(self, state: State, level: float) -> None:
        """Raises DiffscaleError unless `level` is from that of the state to the noisiest."""
        here, top = self._level(state), self.levels[0]
        if not here - 1e-9 <= level <= top + 1e-9:
            raise DiffscaleError(f"Renoising goes from level {here:.3g} up to {top:.3g} at most, not to {level:.3g}.")

    def _levels_down(
        self, state: State, level: float, steps: int, record: float | None
    ) -> tuple[list[float], int | None]:
        """The levels of `steps` equal steps from the state's down to `level`, both included, and which to `record` at.

        Raises DiffscaleError if that is no way down.
        """
        here = self._level(state)
        if not 0 <= level < here or steps < 1:
            raise DiffscaleError(
                f"Solving goes from level {here:.3g} down in 1 step or more, not to {level:.3g} in {steps}."
            )
        down = [here + (level - here) * i / steps for i in range(steps)]
        recorded = None if record is None or not level <= record <= down[0] else nearest(down, record)
        return [*down, level], recorded

    def _moved(self, state: State, x: Tensor, step: int, memory: Mapping[str, Tensor] | None = None) -> State:
        """The state with latents `x` at a grid step; it is not predicted, and `memory` is that of the solver."""
        return replace(state, x=x, step=step, level=None, x0=None, model_output=None, solver=memory or {})

    def _placed(self, state: State, x: Tensor, level: float) -> State:
        """The state with latents `x` at any level: off the grid after the last step that is not below it."""
        step = max(i for i, grid in enumerate(self.levels) if grid >= level - 1e-9)
        on_grid = abs(self.levels[step] - level) < 1e-9 and not (self.mixes_noise and step == 0)
        return replace(self._moved(state, x, step), level=None if on_grid else level)
