"""Short trajectories from noised data as a Sampler, so that any search can make and choose them.

Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146): clean latents are noised to one random time and taken m
sampler steps of T / 25 down; the reward of the trajectory is the mean reward of its x0-predictions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Final, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.grid import GridSampler
from diffscale.train.policy import Policy
from diffscale.train.times import CLEAN
from diffscale.types import State

SHARE: Final = 25
"""A step is this part of all training times: the steps of a whole sample in the authors' code."""
Form = Literal["consistent", "published"]
Data = Tensor | Callable[[Tensor, Tensor, Tensor], Tensor]
"""The clean latents that trajectories begin from: [R, ...], one of each row, or a function of the noise [B, ...] that
they are noised with, its keys int64 [B] and the policy's rows int64 [B], such as `Policy.sample`."""


@dataclass(frozen=True)
class Trajectory:
    """The points at which one trajectory evaluated the network, in their order.

    `x` [V, ...]: latents; `time`: float64 [V]; `x0`: the data [...] that it began from; `eps`: the unit noise
    [...] that they were noised with at first. `plain`: whether each point follows from the one before by a sampler step
    without noise.
    """

    x: Tensor
    time: Tensor
    x0: Tensor
    eps: Tensor
    plain: bool = True

    def first(self) -> Trajectory:
        """Its first point alone."""
        return replace(self, x=self.x[:1], time=self.time[:1])


@dataclass(frozen=True)
class TrajectoryBatch:
    """The S steps of trajectories: latents `x` [S, ...] at `time` float64 [S] for the prompts `rows` int64 [S].

    `x0`: the data [S, ...] that the step's trajectory began from; `number`: int64 [S], which trajectory it is.
    """

    x: Tensor
    time: Tensor
    rows: Tensor
    x0: Tensor
    number: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """The mean of `values` [S] over the steps of each of the B trajectories: [B]."""
        number = self.number.to(values.device)
        count = number.bincount().to(values)
        return values.new_zeros(len(count)).index_add(0, number, values) / count


def batch_of(trajectories: Sequence[Trajectory], rows: Tensor) -> TrajectoryBatch:
    """The steps of `trajectories`, each for its prompt of `rows` int64 [B]."""
    lengths = torch.tensor([len(one.time) for one in trajectories])
    number = torch.arange(len(trajectories)).repeat_interleave(lengths)
    x, time = (torch.cat([getattr(one, name) for one in trajectories]) for name in ("x", "time"))
    x0 = torch.stack([one.x0 for one in trajectories])[number.to(x.device)]
    return TrajectoryBatch(x, time, rows[number], x0, number)


def followed_errors(policy: Policy, trajectories: Sequence[Trajectory], rows: Tensor) -> Tensor:
    """Squared errors [B] of `Form` published, means over each trajectory's steps; `rows` int64 [B]: its prompts.

    As in the authors' code, the target at every step is that of the first one, which is off once the latents have
    moved, and the gradient goes through the sampler's steps too, since latents are what the network made of those
    before. Steps are computed one after the other, and the graphs of all are held until the way back. Raises
    DiffscaleError for trajectories with other moves than the sampler's.
    """
    if not all(one.plain for one in trajectories):
        raise DiffscaleError(
            "The published form goes back through the sampler's steps, and this search takes others (with noise, or "
            "forward): leave the search out, or the form."
        )
    x, x0, eps = (
        torch.stack(each) for each in zip(*((one.x[0], one.x0, one.eps) for one in trajectories), strict=True)
    )
    target = policy.times.target(x0, eps, torch.stack([one.time[0] for one in trajectories]))
    lengths, errors = torch.tensor([len(one.time) for one in trajectories]), x.new_zeros(len(rows))
    for step in range(int(lengths.max())):
        left = (lengths > step).nonzero().flatten()
        time = torch.stack([trajectories[i].time[step] for i in left.tolist()])
        output = policy.output(x, time, rows[left])
        here = policy.distances(output, time, target[left.to(target.device)])
        errors = errors.index_add(0, left.to(errors.device), here.to(errors))
        on = (lengths[left] > step + 1).nonzero().flatten()
        if len(on):
            to = torch.stack([trajectories[i].time[step + 1] for i in left[on].tolist()])
            at, time = on.to(x.device), time[on]
            x0 = policy.times.clean(x[at], output[at], time)
            x = policy.times.step_mean_and_std(x[at], x0, time, to, 0.0)[0]
    return errors / lengths.to(errors)


class TrajectorySampler(GridSampler):
    """A Sampler whose step 0 is data noised to a time of its own in every row, and whose end is `steps` evaluations on.

    `x0`: the `Data`; `time` float64 [R]; `rows` int64 [R]: prompts of the policy. `State.prompt_index` points
    into these R. As with pipelines that start from a picture, a state's latents at step 0 are unit noise, so that
    searches over noises work: the data are noised with it.

    `levels` are shares of the way that is left, from 1 to 0 in equal steps, since every row has other times. The
    latents of a finished state are all its x0-predictions [B, V, ...]: its picture is the strip of them, which a
    verifier scores by the mean over them, as the frames of a video. `finished`: the trajectories, by row and key.
    """

    flops_per_forward = 0.0
    mixes_noise = True

    def __init__(self, policy: Policy, x0: Data, time: Tensor, rows: Tensor, steps: int) -> None:
        hop = step_length(policy)
        if steps < 1 or bool((time - (steps - 1) * hop < policy.times.first).any()):
            raise DiffscaleError(f"A trajectory of {steps} steps of {hop} does not fit below its time: take fewer.")
        self.steps, self.prompts = steps, [policy.prompts[row] for row in rows.tolist()]
        self.levels: Sequence[float] = [1 - i / steps for i in range(steps)] + [0.0]
        self.forwards = 0
        self.finished: dict[tuple[int, int], Trajectory] = {}
        self._policy, self._x0, self._time, self._rows, self._hop = policy, x0, time, rows, hop

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        return State(self._policy.prior(keys), 0, keys, rows)

    def predict(self, state: State) -> State:
        state = self._noised(state)
        # The network's weights ask for gradients; only latents that do so get any.
        with torch.set_grad_enabled(torch.is_grad_enabled() and state.x.requires_grad):
            out = self._policy.output(state.x, self._now(state), self._rows[state.prompt_index])
        self.forwards += len(state)
        return self.predicted(state, out)

    def predicted(self, state: State, model_output: Tensor) -> State:
        state, now = self._noised(state), self._now(state)
        x0 = self._policy.times.clean(state.x, model_output, now)
        visit = {"x": state.x, "x0": x0, "time": now.to(state.x)}
        earlier = {name: [state.solver[name]] if name in state.solver else [] for name in visit}
        visits = {name: torch.cat([*earlier[name], value[:, None]], 1) for name, value in visit.items()}
        return replace(state, x0=x0, model_output=model_output, solver={**state.solver, **visits})

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        x0, _ = self._predicted(state)
        to = self.levels[state.step + 1]
        x = self._stepped(state, x0, to, eta or 0.0, noise)
        return self._placed(_marked(state) if eta else state, x, to)

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        state = self._noised(state)
        self._check_renoising(state, level)
        times, to = self._policy.times, self._times(state, level)
        x = times.renoised(state.x, self._now(state), to, noise.to(state.x))
        return self._placed(_marked(state), x, level)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        to, _ = self._run_end(state, to, record)
        while state.step < to:
            state = self.step(state if state.x0 is not None else self.predict(state))
        return state

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        state = _marked(self._noised(state))
        for at, to in pairwise(self._levels_down(state, level, steps, record)[0]):
            state = self.predict(self._placed(state, state.x, at))
            assert state.x0 is not None
            state = self._placed(state, self._stepped(state, state.x0, to, 0.0, None), to)
        return state

    def decode(self, latents: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            if latents.ndim == self._policy.like.ndim:
                return self._policy.decode(latents)
            return self._policy.decode(latents.flatten(0, 1)).unflatten(0, latents.shape[:2])

    def _noised(self, state: State) -> State:
        """Noised data in the place of their noise; marked as such by their level."""
        if state.step or state.level is not None:
            return state
        if isinstance(self._x0, Tensor):
            x0 = self._x0[state.prompt_index.to(self._x0.device)].to(state.x)
        else:
            x0 = self._x0(state.x.detach(), state.key, self._rows[state.prompt_index])
        x = self._policy.times.noised(x0, state.x, self._time[state.prompt_index])
        plain = torch.ones(len(x), dtype=torch.bool, device=x.device)
        return replace(state, x=x, level=1.0, solver={**state.solver, "data": x0, "eps": state.x, "plain": plain})

    def _now(self, state: State) -> Tensor:
        return self._times(state, self._level(state))

    def _times(self, state: State, level: float) -> Tensor:
        """The rows' times at `level`, float64 [B]; where time runs out the end is clean."""
        time = self._time[state.prompt_index] - (1 - level) * self.steps * self._hop
        # Grid times are whole, whatever the shares round to.
        time = torch.where((time - time.round()).abs() < 1e-6, time.round(), time)
        first = self._policy.times.first
        return time.clamp(min=first) if level else torch.where(time < first, CLEAN, time)

    def _stepped(self, state: State, x0: Tensor, to: float, eta: float, noise: Tensor | None) -> Tensor:
        if to == 0:
            return state.x  # a finished trajectory is what it visited
        there = self._times(state, to)
        mean, deviation = self._policy.times.step_mean_and_std(state.x, x0, self._now(state), there, eta)
        if not eta:
            return mean
        if noise is None:
            raise DiffscaleError("A stochastic step (eta > 0) needs noise.")
        return mean + deviation * noise.to(mean)

    def _placed(self, state: State, x: Tensor, level: float) -> State:
        state = replace(super()._placed(state, x, level), solver=state.solver)
        return state if state.step < self.steps else self._finished(state)

    def _finished(self, state: State) -> State:
        x, data, eps = (state.solver[name].detach() for name in ("x", "data", "eps"))
        time, plain = state.solver["time"].double().cpu(), state.solver["plain"].tolist()
        for i, end in enumerate(zip(state.prompt_index.tolist(), state.key.tolist(), strict=True)):
            self.finished[end] = Trajectory(x[i], time[i], data[i], eps[i], plain[i])
        return replace(state, x=state.solver["x0"])


def _marked(state: State) -> State:
    """The state of trajectories that are no longer plain."""
    return replace(state, solver={**state.solver, "plain": torch.zeros_like(state.solver["plain"])})


def step_length(policy: Policy) -> int:
    """The length of a step in training timesteps."""
    return max(1, policy.times.count // SHARE)
