"""A Sampler over any denoiser, by solvers of our own: what the toy and networks of users' own share."""

import copy
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine.noise import fold_rows, normal
from diffscale.samplers.drafts import DraftingSampler
from diffscale.samplers.formulas import Marginal, denoise, has_x0_and_eps, renoise, x0_and_eps
from diffscale.samplers.grid import GridSampler
from diffscale.samplers.levels import Schedule
from diffscale.samplers.solvers import Euler, Interval
from diffscale.types import State


class SolvedSampler(DraftingSampler, GridSampler):
    """A Sampler on `schedule` by `solver`; a subclass evaluates the denoiser and decodes.

    `like`: an empty tensor [0, ...] shaped, typed and placed as latents are. An interval for which the solver takes two
    evaluations has a grid point in its middle, so that every step has a level of its own.
    """

    forwards: int = 0
    forwards_per_nfe: float = 1

    def __init__(self, prompts: Sequence[str], schedule: Schedule, solver: Euler, like: Tensor) -> None:
        self.prompts = prompts
        self._solver, self._like = solver, like
        self._take_schedule(schedule)

    def _take_schedule(self, schedule: Schedule) -> None:
        self._schedule, solver = schedule, self._solver
        self.intervals = len(schedule.levels) - 1
        self.levels: list[float] = []
        self._whole_ends: list[Marginal | None] = []  # of the interval whose first half a step is
        for here, there in pairwise(schedule.levels):
            end = schedule.marginal(there)
            # The second evaluation of an interval is at its end.
            split = solver.splits(schedule.process, schedule.marginal(here), end)
            split = split and has_x0_and_eps(schedule.prediction, end)
            self.levels += [here, (here + there) / 2] if split else [here]
            self._whole_ends += [end, None] if split else [None]
        self.levels.append(0.0)
        self.steps = len(self.levels) - 1

    @abstractmethod
    def _levels_of(self, intervals: int) -> tuple[float, ...]:
        """The schedule's levels with that many intervals."""

    def in_steps(self, intervals: int) -> "SolvedSampler":
        other = copy.copy(self)
        other.forwards = 0
        other._take_schedule(replace(self._schedule, levels=self._levels_of(intervals)))
        return other

    @property
    def noise_scale(self) -> float:
        # Flows and VP processes start at unit variance, whatever little signal their first level has.
        return self._schedule.marginal(self.levels[0]).sigma if self._schedule.process == "ve" else 1.0

    @abstractmethod
    def _evaluate(self, x: Tensor, at: Marginal, rows: Tensor) -> Tensor:
        """The denoiser's output [B, ...], as `schedule.prediction` says, for latents at one level; counts its rows."""

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        unit = normal(keys, self._like.shape[1:]).to(self._like)
        return State(unit * self.noise_scale, 0, keys, rows)

    def predict(self, state: State) -> State:
        x, at = self._denoiser_input(state)
        return self.predicted(state, self._evaluate(x, at, state.prompt_index))

    def predicted(self, state: State, model_output: Tensor) -> State:
        return replace(state, x0=self._x0_and_eps(state, model_output)[0], model_output=model_output)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        x0, model_output = self._predicted(state)
        interval = self._interval(state)
        noise = noise if noise is None else noise.to(state.x)
        if eta is not None:
            x = denoise(state.x, x0, interval.start, interval.end, eta, noise)
            return self._moved(state, x, state.step + 1)
        if not self._solver.stochastic and noise is not None:
            raise DiffscaleError(f"The solver {self._solver.name} is deterministic and takes no noise.")
        if self._solver.stochastic and noise is None:
            noise = normal(fold_rows(state.key, "step", state.step), state.x.shape[1:]).to(state.x)
        x, memory = self._solver.step(interval, *self._x0_and_eps(state, model_output), noise)
        return self._moved(state, x, state.step + 1, memory if state.step + 1 < self.steps else {})

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        self._check_renoising(state, level)
        here, there = self._schedule.marginal(self._level(state)), self._schedule.marginal(level)
        x = renoise(state.x, here, there, noise.to(state.x))
        return self._placed(state, x, level)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        to, recorded_step = self._run_end(state, to, record)
        while state.step < to:
            state = state if state.x0 is not None else self.predict(state)
            state = self.step(replace(state, recorded=state.x0) if state.step == recorded_step else state)
        return state

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        """As `Sampler.solve`, by Euler steps whatever the solver is, as every level costs one evaluation."""
        down, recorded_step = self._levels_down(state, level, steps, record)
        state = replace(state, solver={})
        for i, (start, end) in enumerate(pairwise(down)):
            state = self.predict(self._placed(state, state.x, start))
            assert state.x0 is not None
            x = denoise(state.x, state.x0, self._schedule.marginal(start), self._schedule.marginal(end))
            state = self._placed(replace(state, recorded=state.x0) if i == recorded_step else state, x, end)
        return state

    def _interval(self, state: State) -> Interval:
        step, marginal = state.step, self._schedule.marginal
        previous = marginal(self.levels[step - 1]) if step else None
        start, end = marginal(self.levels[step]), marginal(self.levels[step + 1])
        return Interval(self._schedule.process, previous, start, end, self._whole_ends[step], state.x, state.solver)

    def _denoiser_input(self, state: State) -> tuple[Tensor, Marginal]:
        """Latents and level at which the denoiser is evaluated for `state`."""
        if not state.solver:
            return state.x, self._schedule.marginal(self._level(state))
        return self._solver.denoiser_input(self._interval(state))

    def _x0_and_eps(self, state: State, model_output: Tensor) -> tuple[Tensor, Tensor]:
        x, at = self._denoiser_input(state)
        return x0_and_eps(self._schedule.prediction, x, model_output, at)
