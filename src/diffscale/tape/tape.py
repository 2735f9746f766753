"""A tape: scores of the same candidates after every step, by drafts, and when they are finished."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name, explained
from diffscale._util.files import replacing

_FORMAT: Final = "diffscale tape 1"
_VIEWS: Final = "views of "  # before a verifier's name: what the file calls a tensor of views


@dataclass(frozen=True)
class DraftKind:
    """One way of drafting that was recorded; see `types.Draft`, and `types.Drafter` for `nfe`."""

    steps: int
    via: str
    nfe: float
    scheduler_steps: int


@dataclass(frozen=True)
class Tape:
    """P prompts x N candidates, scored by some verifiers.

    `scores`: by verifier, float32 [P, N, C]; the C columns are those of `predictions` (numbers of steps after which the
    x0-prediction was scored), then those of `drafts`, then the finished sample. Candidate i of a prompt is the i-th
    that random search samples from `seed`. `levels`: the grid's noise levels, one more than steps. `seconds`: means for
    one row: of a `step`, of `decode` and of each verifier. `about`: what was recorded, as settings; of these `judge` is
    the verifier that is the judge of the model's world. `views`: by verifier, where they were asked for, what it sees
    of all columns but the finished samples (`types.Teachable`), float16 [P, N, C - 1, F]; NaN where it could not score.
    """

    prompts: Sequence[str]
    levels: Sequence[float]
    seed: int
    predictions: Sequence[int]
    drafts: Sequence[DraftKind]
    scores: Mapping[str, Tensor]
    seconds: Mapping[str, float] = field(default_factory=dict)
    about: Mapping[str, Any] = field(default_factory=dict)
    views: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def steps(self) -> int:
        """NFE of one whole sample."""
        return len(self.levels) - 1

    @property
    def candidates(self) -> int:
        """N, how many of each prompt."""
        return next(iter(self.scores.values())).shape[1]

    @property
    def width(self) -> int:
        """C, how many columns."""
        return len(self.predictions) + len(self.drafts) + 1

    def finals(self, verifier: str) -> Tensor:
        """Scores of the finished samples, float64 [P, N]."""
        return self._of(verifier)[..., -1]

    def draft(self, verifier: str, steps: int, via: str = "") -> Tensor:
        """Scores of the drafts of that kind, float64 [P, N]; raises DiffscaleError if not recorded."""
        return self._of(verifier)[..., self.draft_column(steps, via)]

    def draft_column(self, steps: int, via: str = "") -> int:
        """The column of the drafts of that kind; raises DiffscaleError if not recorded."""
        return len(self.predictions) + list(self.drafts).index(self.draft_kind(steps, via))

    def draft_kind(self, steps: int, via: str = "") -> DraftKind:
        """The recorded way of drafting; raises DiffscaleError if there is none."""
        found = next((kind for kind in self.drafts if (kind.steps, kind.via) == (steps, via)), None)
        if found is None:
            known = ", ".join(f"{kind.steps} {kind.via}".strip() for kind in self.drafts) or "none"
            wanted = f"{steps} {via}".strip()
            raise DiffscaleError(f"The tape has drafts of {known} steps, not of {wanted}: record them.")
        return found

    def rows(self, chosen: slice | Sequence[int]) -> "Tape":
        """The tape of some of its prompts."""
        numbers = range(len(self.prompts))[chosen] if isinstance(chosen, slice) else chosen
        scores, views = (
            {name: each[list(numbers)] for name, each in held.items()} for held in (self.scores, self.views)
        )
        return Tape(**{**vars(self), "prompts": [self.prompts[i] for i in numbers], "scores": scores, "views": views})

    def save(self, path: Path) -> None:
        """Write the tape to the safetensors file `path`, whole or not at all."""
        told = {**vars(self), "drafts": [asdict(kind) for kind in self.drafts]}
        del told["scores"], told["views"]
        with replacing(path) as fresh:
            tensors = {name: each.float().contiguous() for name, each in self.scores.items()}
            tensors |= {f"{_VIEWS}{name}": each.half().contiguous() for name, each in self.views.items()}
            save_file(tensors, fresh, metadata={"format": _FORMAT, "tape": json.dumps(told)})

    def _of(self, verifier: str) -> Tensor:
        check_name("verifier of the tape", verifier, self.scores)
        return self.scores[verifier].double()


class _Told(BaseModel):
    """What the file says beside the scores; see `Tape`."""

    model_config = ConfigDict(extra="forbid")

    prompts: list[str] = Field(min_length=1)
    levels: list[float] = Field(min_length=2)
    seed: int
    predictions: list[int]
    drafts: list[DraftKind]
    seconds: dict[str, float]
    about: dict[str, Any]


def load_tape(path: Path) -> Tape:
    """The tape in the file `path`; raises DiffscaleError for a file that is none."""
    failed = f"{path} is no tape that can be read ({{why}}): record one with `diffscale tape record`."
    with explained(failed, OSError, SafetensorError, ValueError), safe_open(path, "pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT:
            raise ValueError("it is of another kind")
        told = _read(metadata.get("tape", ""))
        # The file does not keep the order of its tensors, which the measured seconds have.
        measured = [*told.seconds]
        names = sorted(file.keys(), key=lambda name: measured.index(name) if name in measured else len(measured))
        seen = [name for name in names if name.startswith(_VIEWS)]
        scores = {name: file.get_tensor(name) for name in names if name not in seen}
        views = {name.removeprefix(_VIEWS): file.get_tensor(name) for name in seen}
        tape = Tape(**vars(told), scores=scores, views=views)
        counts = {len(each[0]) if each.ndim == 3 and len(each) else 0 for each in tape.scores.values()}
        wanted = len(tape.prompts), max(counts, default=0), tape.width
        if not wanted[1] or any(each.shape != wanted for each in tape.scores.values()):
            raise ValueError("its scores have another shape than it says")
        looks = (*wanted[:2], wanted[2] - 1)
        if any(each.ndim != 4 or each.shape[:3] != looks or name not in scores for name, each in views.items()):
            raise ValueError("its views have another shape than it says")
        return tape


def _read(text: str) -> _Told:
    try:
        return _Told.model_validate_json(text)
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"])) or "description"
        raise ValueError(f"its {where} is not right") from error


def joined(tapes: Sequence[Tape]) -> Tape:
    """One tape of the prompts of all, which were recorded alike; `seconds` are means over them."""
    first = tapes[0]
    scores = {name: torch.cat([tape.scores[name] for tape in tapes]) for name in first.scores}
    views = {name: torch.cat([tape.views[name] for tape in tapes]) for name in first.views}
    count = sum(len(tape.prompts) for tape in tapes)
    seconds = {name: sum(tape.seconds[name] * len(tape.prompts) for tape in tapes) / count for name in first.seconds}
    prompts = [prompt for tape in tapes for prompt in tape.prompts]
    return Tape(**{**vars(first), "prompts": prompts, "scores": scores, "seconds": seconds, "views": views})
