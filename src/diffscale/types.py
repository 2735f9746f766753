"""The vocabulary: states, requests, results, and what samplers, verifiers and searches look like.

A search is a generator of priced requests: it yields what costs something, receives the answer,
and knows nothing of devices, batches, budgets or progress bars.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from diffscale.ledger import Ledger


@dataclass(frozen=True)
class State:
    """A batch of B partial trajectories, all at the same step of the sampler's grid.

    `x`: latents [B, ...]. `step`: denoiser evaluations done, 0 (noise) to `sampler.steps` (clean).
    `key`: random key of each row, int64 [B], on the CPU. `row`: index of each row's prompt,
    int64 [B], on the CPU. `x0`, `out`: clean prediction and raw output (after guidance), shaped
    like `x`, set by `Predict` and cleared by a step. `solver`: what the solver remembers of earlier
    steps; entries of shape [B] are scalars of the solver, and rows run together only where they
    agree; all others are per row.
    """

    x: Tensor
    step: int
    key: Tensor
    row: Tensor
    x0: Tensor | None = None
    out: Tensor | None = None
    solver: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: slice | Tensor | list[int]) -> State:
        """The rows at `index`: a slice, a list or an int64 or bool tensor."""

        def take(value: Tensor) -> Tensor:
            return value[index.to(value.device) if isinstance(index, Tensor) else index]

        return self._map(take)

    def repeat(self, n: int) -> State:
        """Each row `n` times, copies of a row next to each other: [B * n]."""
        return self._map(lambda value: value.repeat_interleave(n, 0))

    @property
    def kin(self) -> Hashable:
        """States with equal `kin` can be concatenated and run together."""
        memory = ((name, value[0].item() if value.ndim == 1 else None) for name, value in sorted(self.solver.items()))
        return self.step, self.x0 is not None, tuple(self.x.shape[1:]), tuple(memory)

    def _map(self, change: Callable[[Tensor], Tensor]) -> State:
        return replace(
            self,
            x=change(self.x),
            key=change(self.key),
            row=change(self.row),
            x0=None if self.x0 is None else change(self.x0),
            out=None if self.out is None else change(self.out),
            solver={name: change(value) for name, value in self.solver.items()},
        )


def concat(states: Sequence[State]) -> State:
    """One state with the rows of all, in order; raises ValueError if they are of unequal kin."""
    if len({state.kin for state in states}) != 1:
        raise ValueError("only states at the same step and with the same solver history concatenate")
    first = states[0]

    def join(values: Sequence[Tensor | None]) -> Tensor | None:
        held = [value for value in values if value is not None]
        return torch.cat(held) if held else None

    return replace(
        first,
        x=torch.cat([state.x for state in states]),
        key=torch.cat([state.key for state in states]),
        row=torch.cat([state.row for state in states]),
        x0=join([state.x0 for state in states]),
        out=join([state.out for state in states]),
        solver={name: torch.cat([state.solver[name] for state in states]) for name in first.solver},
    )


@dataclass(frozen=True)
class Run:
    """Denoise up to grid step `to` (None: to the end). Answer: the State there."""

    state: State
    to: int | None = None


@dataclass(frozen=True)
class Predict:
    """One denoiser evaluation a row. Answer: the same State with `x0` and `out` set."""

    state: State


@dataclass(frozen=True)
class Score:
    """Judge the pictures of a finished State, or the x0-predictions of an unfinished one.

    Answer: float64 [B], higher is better; -inf where a candidate was dropped.
    """

    state: State


Request = Run | Predict | Score
Search = Generator[Request, Any, None]


class Sampler(Protocol):
    """One model with its time grid, solver, guidance and prompts.

    `steps`: denoiser evaluations of one whole trajectory. `prompts`: what `State.row` points into.
    `forwards`: rows sent through the network so far, guidance's extra rows included; only grows.
    `flops_per_forward`: floating point operations of one row through the network.
    """

    @property
    def steps(self) -> int: ...
    @property
    def prompts(self) -> Sequence[str]: ...
    @property
    def forwards(self) -> int: ...
    @property
    def flops_per_forward(self) -> float: ...

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        """Noise at step 0, a function of `keys` (int64 [B]) alone, for prompts `rows` (as long)."""

    def predict(self, state: State) -> State:
        """One denoiser evaluation a row: the state with `x0` and `out` set. Costs 1 NFE a row."""

    def step(self, state: State, noise: Tensor | None = None) -> State:
        """The solver's update of a predicted state; free. A stochastic solver uses `noise`
        ([B, ...]), or draws it from the rows' keys."""

    def renoise(self, state: State, to: int, noise: Tensor) -> State:
        """Back to the noisier grid step `to`, keeping the marginal law; free. Clears the solver."""

    def run(self, state: State, to: int | None = None) -> State:
        """Predict and step until grid step `to` (None: the end)."""

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of clean latents: float32 [B, 3, H, W] in [0, 1]."""


class Verifier(Protocol):
    """Scores pictures. `name` is what tables and commands call it."""

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] or [B, 1] of float `images` [B, 3, H, W] in [0, 1]; higher is better."""


class Environment(Protocol):
    """All that a search sees of the world; everything on it is free of NFE.

    `steps`: NFE of one whole trajectory. `nfe_left`: what the budget still pays.
    `chunk`: how many rows to ask for at once, so that memory stays bounded.
    """

    @property
    def steps(self) -> int: ...
    @property
    def nfe_left(self) -> int: ...
    @property
    def chunk(self) -> int: ...

    def prior(self, n: int) -> State:
        """`n` fresh noises [n, ...] at step 0, with keys never used before in this search."""

    def branch(self, state: State, n: int) -> State:
        """Each row `n` times [B * n], every copy with a fresh key and so its own noise to come."""

    def step(self, state: State, noise: Tensor | None = None) -> State:
        """The solver's update of a predicted state, see `Sampler.step`."""

    def renoise(self, state: State, to: int) -> State:
        """Back to grid step `to` with noise from the rows' keys, see `Sampler.renoise`."""


@dataclass(frozen=True)
class Candidate:
    """One finished picture: `image` float32 [3, H, W] in [0, 1] and `latents`, both on the CPU.

    `key` replays it: `sampler.run(sampler.prior(key, row))`, unless the search intervened on the
    way. `nfe`: what the search had spent when it was done.
    """

    image: Tensor
    latents: Tensor
    key: int
    score: float
    nfe: int


@dataclass(frozen=True)
class Result:
    """What a search found. `baseline` is its first candidate, what one plain sample would give.

    `trace`: (NFE, best score so far), a point wherever the best improved and one at the end.
    `dropped`: candidates without a usable score.
    """

    best: Candidate
    baseline: Candidate
    trace: list[tuple[int, float]]
    ledger: Ledger
    dropped: int


class Observer(Protocol):
    """Told of every micro-batch of finished candidates, as it is scored."""

    def __call__(self, search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        """`search`: index of the task; `keys` int64 [b]; `scores` float64 [b], -inf if dropped;
        `images` float32 [b, 3, H, W]; `nfe`: what the search had spent at each candidate."""
