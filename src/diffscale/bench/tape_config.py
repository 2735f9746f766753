"""The settings of `diffscale tape record`, `tape replay`, `tune auto` and `tune value`, as flags and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt

from diffscale._util.config import Flag
from diffscale.bench.config import ModelConfig, SearchText, VerifierText
from diffscale.registry import DEFAULT_SUITE

Steps = Annotated[int, Field(gt=0, le=100_000)]


def _listed(given: Any) -> Any:
    """The word none is an empty list."""
    return [] if given == ["none"] else given


def _draft(given: Any) -> Any:
    """The number of steps, and the way, of a draft that is written as "5" or as "5 via"."""
    steps, _, via = str(given).strip().partition(" ")
    if not (steps.isdecimal() and len(steps) < 7 and int(steps)):
        raise ValueError(
            f"a draft is a number of steps, and maybe a way of drafting, as in 5 or '20 cache', not {given!r}"
        )
    return int(steps), via.strip()


class RecordedConfig(ModelConfig):
    """What is recorded of which prompts, but for the verifiers."""

    batch_size: int = Field(64, gt=0, description="Most rows at once.")
    predictions: Annotated[list[Steps] | None, BeforeValidator(_listed), Flag(commas=True)] = Field(
        None, description="Numbers of steps, by commas, after which x0-predictions are scored, or none. Default: every "
        "second one.",
    )  # fmt: skip
    drafts: Annotated[
        list[Annotated[tuple[int, str], BeforeValidator(_draft)]] | None, BeforeValidator(_listed), Flag(commas=True)
    ] = Field(
        None, description="Steps of drafts, by commas, as 3,5 or '3,20 cache', or none. Default: 3, 4, 5, 6, 8 and 10, "
        "up to half of all, and one of each further way of drafting.",
    )  # fmt: skip


class TapeConfig(RecordedConfig):
    """Everything that decides a tape, and on which hardware it is recorded."""

    suite: Annotated[str, Flag(argument="SUITE|FILE")] = Field(
        DEFAULT_SUITE, description="Prompts: a suite, or a txt, jsonl or csv file."
    )
    verifier: list[VerifierText] = Field(["clip"], min_length=1, description="What scores everything; repeatable.")
    limit: int | None = Field(None, gt=0, description="Prompts, evenly over the suite. Default: all.")
    candidates: int = Field(64, gt=0, description="Noises of each prompt.")
    views: bool = Field(
        False, description="Keep what verifiers see of predictions and drafts too, for `diffscale tune value`."
    )

    @property
    def verifiers(self) -> list[str]:
        """What scores everything."""
        return list(dict.fromkeys(self.verifier))


class TuneConfig(RecordedConfig):
    """Which tape a profile is of, or how the one that it needs is recorded."""

    tape: Path | None = Field(
        None, description="A tape to measure on. Default: one is recorded beside the output, by the other settings."
    )
    verifier: VerifierText | None = Field(
        None, description="Verifier the profile is of. Default: the tape's first, of a new one clip."
    )
    suite: str = Field(DEFAULT_SUITE, description="Prompts to record: a suite, or a txt, jsonl or csv file.")
    limit: int | None = Field(24, gt=0, description="Prompts to record, evenly over the suite.")
    candidates: int = Field(24, gt=1, description="Noises of each prompt to record.")

    @property
    def verifiers(self) -> list[str]:
        """What scores everything."""
        return ["clip" if self.verifier is None else self.verifier]


class ValueConfig(BaseModel):
    """Which tape a value model is learned from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tape: Annotated[Path, Flag(argument="FILE.tape")] = Field(description="What `diffscale tape record --views` wrote.")
    verifier: VerifierText | None = Field(None, description="Verifier the model is of. Default: the tape's first.")


class ReplayConfig(BaseModel):
    """Which searches are tried on a tape, and by what they are measured."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    tape: Annotated[Path, Flag(argument="FILE.tape")] = Field(description="What `diffscale tape record` wrote.")
    search: list[SearchText] = Field(
        ["auto", "draft", "halving"], min_length=1, description="Algorithm and arguments; repeatable."
    )
    verifier: VerifierText | None = Field(
        None, description='What to search with, of the tape, or as "ensemble of=clip,image_reward". Default: its first.'
    )
    budget: list[PositiveInt] | None = Field(
        None, min_length=1, description="NFE a prompt; repeatable. Default: a quarter of what the tape's samples cost.",
    )  # fmt: skip
    draws: int = Field(
        4, gt=0, le=10_000, description="Orders of the candidates to search in, of which means are told."
    )
    judge: VerifierText | None = Field(
        None, description="What says of the tape's verifiers what was found is worth. Default: the judge of its world."
    )
