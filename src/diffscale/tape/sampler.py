"""A tape in the place of a model and its verifier, so that any search runs on it, with its ledger, without networks."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.engine import noise
from diffscale.tape.tape import Tape
from diffscale.types import Drafter, State

_LARGEST: Final = 2**20  # candidates and columns are whole numbers below this, exact in pictures of float64


class TapeSampler:
    """A Sampler whose candidates are those of `tape`: latents are (number of the candidate, column of the tape).

    `keys`: of the searches that may run on it, one a prompt; with `draw` 0 that of a search from the tape's seed, which
    then gets the candidates that it would sample, in their order, else they come in another order for each `draw`. It
    cannot change noises, nor states on their way. A search that asks for more candidates than there are gets an error.
    """

    def __init__(self, tape: Tape, draw: int = 0) -> None:
        self.tape, self.prompts, self.levels, self.steps = tape, list(tape.prompts), list(tape.levels), tape.steps
        self.predictable = [*tape.predictions, self.steps]
        self.forwards, self.flops_per_forward = 0, 1.0
        self.keys = [noise.fold(noise.root(tape.seed), prompt, draw) for prompt in self.prompts]
        self._draw = draw
        self._numbers: dict[int, dict[int, int]] = {}

    def _number(self, key: int, row: int) -> int:
        """The candidate of a prompt that a key stands for."""
        if row not in self._numbers:
            root, count = self.keys[row], self.tape.candidates
            order = list(range(count))
            if self._draw:
                draws = noise.uniform(torch.tensor([noise.fold(root, "order", i) for i in range(count)]))
                order = draws.argsort().tolist()
            self._numbers[row] = {noise.fold(root, "candidate", i): order[i] for i in range(count)}
            self._numbers[row][root] = 0  # by which an environment learns how latents look
        if key not in self._numbers[row]:
            raise DiffscaleError(
                f"The tape has {self.tape.candidates} candidates a prompt, and the search asks for more, or makes "
                "noises of its own: record more, or give a smaller budget."
            )
        return self._numbers[row][key]

    @property
    def drafts(self) -> Sequence[str]:
        return tuple(dict.fromkeys(kind.via for kind in self.tape.drafts))

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        numbers = list(map(self._number, keys.tolist(), rows.tolist()))
        x = torch.tensor([[float(number), -1.0] for number in numbers], dtype=torch.float64).view(-1, 2)
        return State(x, 0, keys, rows)

    def predict(self, state: State) -> State:
        self.forwards += len(state)
        return self.predicted(state, self._at(state, self._column(state.step + 1)))

    def predicted(self, state: State, model_output: Tensor) -> State:
        return replace(state, x0=model_output, model_output=model_output)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        if noise is not None or eta is not None or state.x0 is None:
            self._refuse()
        return self._moved(state, state.step + 1)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        to = self.steps if to is None else to
        held = state.x0 is not None and to > state.step
        self.forwards += len(state) * (to - state.step - held)
        return self._moved(state, to)

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures [B, 3, 1, 1] whose red is the candidate and green its column, as shares of 2**20."""
        return torch.cat([(latents + 1) / _LARGEST, torch.zeros(len(latents), 1, dtype=torch.float64)], 1)[
            ..., None, None
        ]

    def draft_steps(self, via: str = "") -> int:
        recorded = [kind.steps for kind in self.tape.drafts if kind.via == via]
        wanted = self.steps if via else self.steps / 4
        return min(recorded, key=lambda steps: abs(steps - wanted), default=max(1, round(wanted)))

    def drafter(self, steps: int, via: str = "") -> Drafter:
        kind = self.tape.draft_kind(steps, via)
        return _TapeDrafter(self, kind.nfe, kind.scheduler_steps, self.tape.draft_column(steps, via))

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise DiffscaleError(
            "A tape holds whole samples of given noises: replay a search that draws noises and drops some, such as "
            "random, draft or halving."
        )

    renoise = solve = gradient = _refuse

    def _column(self, steps: int) -> int:
        """The column of the x0-prediction after that many steps, -1 if it was not recorded."""
        if steps == self.steps:
            return self.tape.width - 1
        return list(self.tape.predictions).index(steps) if steps in self.tape.predictions else -1

    def _at(self, state: State, column: int) -> Tensor:
        own = list(map(self._number, state.key.tolist(), state.prompt_index.tolist()))
        if state.x[:, 0].tolist() != own:  # such as neighbours, whose keys are fresh like those of new candidates
            self._refuse()
        columns = torch.full((len(state),), float(column), dtype=torch.float64)
        return torch.stack([state.x[:, 0], columns], 1)

    def _moved(self, state: State, step: int) -> State:
        column = self._column(step) if step else -1
        return replace(state, x=self._at(state, column), step=step, x0=None, model_output=None)


@dataclass(eq=False)
class _TapeDrafter:
    sampler: TapeSampler
    nfe: float
    steps: int
    column: int
    forwards: int = 0
    flops_per_forward: float = 1.0

    def run(self, state: State, record: float | None = None) -> State:
        self.forwards += len(state) * self.steps
        return replace(state, x=self.sampler._at(state, self.column), step=self.sampler.steps)

    def decode(self, latents: Tensor) -> Tensor:
        return self.sampler.decode(latents)


class TapeVerifier:
    """What verifier `name` said when `tape` was recorded, or, in the place of that, `scores` [P, N, C]."""

    def __init__(self, tape: Tape, name: str, scores: Tensor | None = None) -> None:
        check_name("verifier of the tape", name, tape.scores)
        self.name, self.scores = name, tape.scores[name].double() if scores is None else scores
        self._rows = {prompt: row for row, prompt in enumerate(tape.prompts)}

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        numbers = (images[:, :2, 0, 0].double() * _LARGEST).round().long() - 1
        if (numbers[:, 1] < 0).any():
            raise DiffscaleError("The tape has no prediction after that many steps: record it, or score after others.")
        rows = torch.tensor([self._rows[prompt] for prompt in prompts])
        return self.scores[rows, numbers[:, 0], numbers[:, 1]]
