"""What a search sees: fresh keys, the sampler's free algebra, and how much it may still spend."""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.limits import check_rows, most_rows
from diffscale.engine import noise
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.engine.ledger import Ledger, drafter_of, drafting
from diffscale.types import (
    Aggregate,
    Answer,
    Decide,
    Draft,
    Drafts,
    Evaluate,
    Gradient,
    Predict,
    PredictGradient,
    Run,
    Sampler,
    Score,
    Solve,
    State,
    Wording,
)

_DRAWS_A_ROW: Final = 64  # uniform draws that count as a row, since they are single numbers


@dataclass
class SearchEnvironment:
    """The Environment of one search on prompt `prompt_index`; all its randomness descends from `key`."""

    sampler: Sampler
    prompt_index: int
    key: int
    ledger: Ledger
    chunk: int
    aggregate: Aggregate | None = None
    predicts: Sequence[int] = ()
    wanted: int = 1
    drawn: int = 0

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def levels(self) -> Sequence[float]:
        return self.sampler.levels

    @property
    def nfe_left(self) -> int:
        return self.ledger.left

    @property
    def most_rows(self) -> int:
        return most_rows(self._one.row_bytes)

    @property
    def drafts(self) -> Sequence[str]:
        return self.sampler.drafts if isinstance(self.sampler, Drafts) else ()

    @property
    def wordings(self) -> Sequence[str]:
        return [self.sampler.prompts[row] for row in self._rows]

    def draft_nfe(self, steps: int, via: str = "") -> float:
        return drafter_of(self.sampler, steps, via).nfe

    def draft_steps(self, via: str = "") -> int:
        return drafting(self.sampler).draft_steps(via)

    def prior(self, n: int) -> State:
        check_rows(n, self._one.row_bytes)
        return self.sampler.prior(self._fresh_keys(n), torch.full((n,), self.prompt_index))

    def start(self, x: Tensor) -> State:
        like = self._one.x
        if not isinstance(x, Tensor) or x.ndim != like.ndim or x.shape[1:] != like.shape[1:]:
            given = f"shaped {list(x.shape)}" if isinstance(x, Tensor) else f"of type {type(x).__name__}"
            shape = ", ".join(map(str, ("rows", *like.shape[1:])))
            raise DiffscaleError(f"env.start takes latents shaped [{shape}], as env.prior gives them, not {given}.")
        return self._at_start(x.to(like), torch.full((len(x),), self.prompt_index))

    def reword(self, state: State, wordings: Sequence[int]) -> State:
        if len(wordings) != len(state) or not all(0 <= number < len(self._rows) for number in wordings):
            raise DiffscaleError(
                f"env.reword takes the number of a wording, 0 to {len(self._rows) - 1}, for each of the {len(state)} "
                f"rows, not {list(wordings)}."
            )
        rows = torch.tensor([self._rows[number] for number in wordings], dtype=torch.int64)
        return replace(state, prompt_index=rows, x0=None, model_output=None)

    def neighbours(self, state: State, n: int, cosine: float) -> State:
        if state.step or state.level is not None:
            raise DiffscaleError(
                f"Neighbours are of noises at step 0, and these are at step {state.step}: branch and renoise a state "
                "that is on its way."
            )
        if not -1 <= cosine <= 1:
            raise DiffscaleError(f"A cosine between noises is from -1 to 1, not {cosine}.")
        check_rows(len(state) * n, state.row_bytes)
        near = noise.neighbours(state.x.repeat_interleave(n, 0), self._fresh_keys(len(state) * n), cosine)
        return self._at_start(near, state.prompt_index.repeat_interleave(n))

    def mutate(self, state: State, cosine: float) -> State:
        return self.neighbours(state, 1, cosine)

    def branch(self, state: State, n: int) -> State:
        copies = state.repeat(n)
        return replace(copies, key=self._fresh_keys(len(copies)))

    def noise(self, state: State) -> Tensor:
        return noise.normal(self._fresh_keys(len(state)), state.x.shape[1:]).to(state.x.device)

    def uniform(self, n: int) -> Tensor:
        check_rows(n // _DRAWS_A_ROW)
        return noise.uniform(self._fresh_keys(n))

    def value(self, scores: Tensor) -> Tensor:
        if isinstance(scores, Generator):
            raise DiffscaleError(
                "A search did not wait for scores: write `yield from env.evaluate(state)`, not `env.evaluate(state)`."
            )
        return aggregate_pool(scores, self.aggregate)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        if eta and noise is None and state.step + 1 < self.steps:
            noise = self.noise(state)
        return self.sampler.step(state, noise, eta)

    def renoise(self, state: State, level: float) -> State:
        return self.sampler.renoise(state, level, self.noise(state))

    def evaluate(self, state: State) -> Answer[Tensor]:
        scores: Tensor = yield Evaluate(state)
        return scores

    def run(self, state: State, to: int | None = None) -> Answer[State]:
        there: State = yield Run(state, to)
        return there

    def solve(self, state: State, level: float, steps: int) -> Answer[State]:
        there: State = yield Solve(state, level, steps)
        return there

    def predict(self, state: State) -> Answer[State]:
        predicted: State = yield Predict(state)
        return predicted

    def score(self, state: State) -> Answer[Tensor]:
        scores: Tensor = yield Score(state)
        return scores

    def draft(self, state: State, steps: int, via: str = "") -> Answer[Tensor]:
        scores: Tensor = yield Draft(state, steps, via)
        return scores

    def gradient(self, state: State) -> Answer[tuple[Tensor, Tensor]]:
        scores_and_gradients: tuple[Tensor, Tensor] = yield Gradient(state)
        return scores_and_gradients

    def predict_gradient(self, state: State) -> Answer[tuple[State, Tensor, Tensor]]:
        answer: tuple[State, Tensor, Tensor] = yield PredictGradient(state)
        return answer

    def decide(self, choice: int, why: str) -> Answer[int]:
        settled: int = yield Decide(choice, why)
        return settled

    @cached_property
    def _one(self) -> State:
        """A noise of one row, as all of this sampler are shaped, typed and placed."""
        return self.sampler.prior(torch.tensor([self.key]), torch.tensor([self.prompt_index]))

    @cached_property
    def _rows(self) -> list[int]:
        """The sampler's rows of this prompt: the user's own, and those of other wordings."""
        own, prompts = self.sampler.prompts[self.prompt_index], self.sampler.prompts
        others = [row for row, each in enumerate(prompts) if isinstance(each, Wording) and each.own == own]
        return [self.prompt_index, *others]

    def _at_start(self, x: Tensor, prompt_index: Tensor) -> State:
        return State(x, 0, self._fresh_keys(len(x)), prompt_index)

    def _fresh_keys(self, n: int) -> Tensor:
        first, self.drawn = self.drawn, self.drawn + n
        keys = [noise.fold(self.key, "candidate", i) for i in range(first, self.drawn)]
        return torch.tensor(keys, dtype=torch.int64)
