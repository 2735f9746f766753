"""A Sampler over any denoiser, by solvers of our own: what the toy and class-conditional networks share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.formulas import Marginal, denoise, marginal, noised, parts
from diffscale.samplers.gradients import checkpointed
from diffscale.samplers.grid import check_renoising, place, stops
from diffscale.samplers.schedules import Schedule
from diffscale.samplers.solvers import Euler, Leg
from diffscale.types import State, nearest


class SolvedSampler(ABC):
    """A Sampler on `schedule` by `solver`; a subclass evaluates the denoiser and decodes.

    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. An interval for which the solver takes two
    evaluations has a grid point in its middle, so that every step has a level of its own.
    """

    flops_per_forward: float

    def __init__(self, prompts: Sequence[str], schedule: Schedule, solver: Euler, like: Tensor) -> None:
        self.prompts = prompts
        self.forwards = 0
        self._schedule, self._solver, self._like = schedule, solver, like
        self.levels: list[float] = []
        self._ends: list[float | None] = []  # of the interval whose first half a step is
        for here, there in pairwise(schedule.levels):
            halved = solver.halves(schedule.form, marginal(schedule.form, here), marginal(schedule.form, there))
            self.levels += [here, (here + there) / 2] if halved else [here]
            self._ends += [there, None] if halved else [None]
        self.levels.append(0.0)
        self.steps = len(self.levels) - 1

    @abstractmethod
    def _evaluate(self, x: Tensor, at: Marginal, rows: Tensor) -> Tensor:
        """The denoiser's output [B, ...], as `schedule.prediction` says, for latents at one level; counts its rows."""

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of clean latents: float32 [B, 3, H, W] in [0, 1]."""

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        unit = noise.normal(keys, self._like.shape[1:]).to(self._like)
        # Flows and VP schedules start at unit variance, whatever little signal their first level has.
        scale = self._marginal(self.levels[0]).sigma if self._schedule.form == "ve" else 1.0
        return State(unit * scale, 0, keys, rows)

    def predict(self, state: State) -> State:
        x, at = self._looks(state)
        return self.predicted(state, self._evaluate(x, at, state.prompt_index))

    def predicted(self, state: State, out: Tensor) -> State:
        x, at = self._looks(state)
        return replace(state, x0=parts(self._schedule.prediction, x, out, at)[0], model_output=out)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        if state.x0 is None or state.model_output is None or state.level is not None:
            raise DiffscaleError(f"A step from step {state.step} needs a state on the grid, and Predict first.")
        leg = self._leg(state.step)
        noise = noise if noise is None else noise.to(state.x)
        if eta is not None:
            x = denoise(state.x, state.x0, leg.at, leg.to, eta, noise)
            return replace(state, x=x, step=state.step + 1, x0=None, model_output=None, solver={})
        if not self._solver.stochastic and noise is not None:
            raise DiffscaleError(f"The solver {self._solver.name} is deterministic and takes no noise.")
        if self._solver.stochastic and noise is None:
            noise = _drawn(state)
        looked, at = self._looks(state)
        x0, eps = parts(self._schedule.prediction, looked, state.model_output, at)
        x, memory = self._solver.step(leg, state.x, x0, eps, state.solver, noise)
        memory = memory if state.step + 1 < self.steps else {}
        return replace(state, x=x, step=state.step + 1, x0=None, model_output=None, solver=memory)

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        here = self._level(state)
        check_renoising(here, level, self.levels[0])
        x = noised(state.x, self._marginal(here), self._marginal(level), noise.to(state.x))
        return self._placed(state, x, level)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        to = self.steps if to is None else to
        if not state.step <= to <= self.steps or state.level is not None:
            raise DiffscaleError(f"A run from step {state.step} cannot end at step {to}.")
        noted = None if record is None else nearest(self.levels[:-1], record)
        while state.step < to:
            state = state if state.x0 is not None else self.predict(state)
            state = self.step(replace(state, recorded=state.x0) if state.step == noted else state)
        return state

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        """As `Sampler.solve`, by Euler steps whatever the solver is, as every level costs one evaluation."""
        here = self._level(state)
        down = stops(here, level, steps)
        noted = None if record is None or not level <= record <= here else nearest(down[:-1], record)
        state = replace(state, solver={})
        for i, (at, to) in enumerate(pairwise(down)):
            state = self.predict(self._placed(state, state.x, at))
            assert state.x0 is not None
            x = denoise(state.x, state.x0, self._marginal(at), self._marginal(to))
            state = self._placed(replace(state, recorded=state.x0) if i == noted else state, x, to)
        return state

    def gradient(
        self, state: State, score: Callable[[Tensor, Tensor | None], Tensor], record: float | None = None
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        return checkpointed(self, state, score, record)

    def _marginal(self, level: float) -> Marginal:
        return marginal(self._schedule.form, level)

    def _level(self, state: State) -> float:
        return self.levels[state.step] if state.level is None else state.level

    def _leg(self, step: int) -> Leg:
        end = self._ends[step]
        return Leg(
            self._schedule.form,
            self._marginal(self.levels[step - 1]) if step else None,
            self._marginal(self.levels[step]),
            self._marginal(self.levels[step + 1]),
            None if end is None else self._marginal(end),
        )

    def _looks(self, state: State) -> tuple[Tensor, Marginal]:
        """Latents and level at which the denoiser is evaluated for `state`."""
        if not state.solver:
            return state.x, self._marginal(self._level(state))
        return self._solver.looks(self._leg(state.step), state.x, state.solver)

    def _placed(self, state: State, x: Tensor, level: float) -> State:
        step, on_grid = place(self.levels, level)
        return replace(state, x=x, step=step, level=None if on_grid else level, x0=None, model_output=None, solver={})


def _drawn(state: State) -> Tensor:
    """A stochastic solver's own noise, from the rows' keys."""
    return noise.normal(noise.fold_rows(state.key, "step", state.step), state.x.shape[1:]).to(state.x)
