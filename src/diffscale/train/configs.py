"""The settings of each method of `diffscale train`, with the defaults of its paper (and of its authors' code).

What all methods go by is in `settings`, and what several share in `traits`.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any, Final, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, check_name, unknown
from diffscale.train.settings import METHODS, Beta, EmptyShare, LearningRate, SampleSteps, TrainConfig
from diffscale.train.traits import (
    Advantaged,
    ClipRange,
    Cropped,
    Grouped,
    InnerEpochs,
    Noised,
    Pictured,
    Preferring,
    Rewarded,
    Sampling,
    SamplingRounds,
    Sharpening,
)


class SharpenSftConfig(Sharpening, Pictured):
    def evaluations(self, sample: int) -> int:
        return self.n * self.m + 3 * self.m


class SharpenRlhfConfig(Sharpening, InnerEpochs, Preferring):
    panel = "Method"

    beta: Beta = 2500.0
    own_samples: Literal["one", "each", "published"] = "one"
    """Of sharpen-rlhf: a row's trajectories begin from one sample; or each from its own, by whose reward it is then
    chosen; or published, as in the authors' code: each from its own unguided one, noised with its own first noise."""

    @model_validator(mode="after")
    def _check_sharpening(self) -> Self:
        if self.n < 2:
            raise DiffscaleError("sharpen-rlhf compares trajectories: give n of 2 or more.")
        if self.own_samples == "published" and self.num_inner_epochs > 1:
            raise DiffscaleError("own_samples published are learned from once: leave num_inner_epochs out.")
        if self.samples_per_round is not None and self.num_inner_epochs == 1:
            raise DiffscaleError(
                "sharpen-rlhf learns from each sample once: give num_inner_epochs, or leave samples_per_round out."
            )
        return self

    def evaluations(self, sample: int) -> int:
        own_samples = 1 if self.own_samples == "one" else self.n
        tried = 2 if self.own_samples == "each" else self.n
        return own_samples * (self.sample_steps or sample) + tried * self.m + 2 * 4 * self.m


class SftConfig(Noised, Pictured):
    proportion_empty_prompts: EmptyShare = 0.2

    def evaluations(self, sample: int) -> int:
        return 3


class DpoConfig(Noised, Cropped, Preferring):
    learns_from = "pairs"
    beta: Beta = 5000.0

    def evaluations(self, sample: int) -> int:
        return 2 * 4


class DdpoConfig(SamplingRounds, Rewarded):
    learning_rate: LearningRate = 3e-4
    sample_steps: SampleSteps = 50

    def evaluations(self, sample: int) -> int:
        return 4 * (self.sample_steps or sample)


class D3poConfig(SamplingRounds, Rewarded, Preferring):
    learning_rate: LearningRate = 3e-5
    sample_steps: SampleSteps = 20
    beta: Beta = 0.1

    def evaluations(self, sample: int) -> int:
        return 2 * 5 * (self.sample_steps or sample)


_REFINING: Final = {"refine_every", "refine_prompts", "refine_epochs", "refine_learning_rate"}


class IterpoConfig(Sampling, Rewarded):
    panel = "Method"
    learning_rate: LearningRate = 1e-5
    sample_steps: SampleSteps = 40

    refine_by: str | None = None
    """Of iterpo: verifier that ranks pictures of the model in turns, in the place of people, as composition or
    llm_grader; the rewards learn from it. Default: rewards stay as they are."""
    refine_every: PositiveInt = 100
    """Steps between such turns. Default: 100."""
    refine_prompts: PositiveInt = 64
    """Prompts of the data that are sampled at each. Default: 64."""
    refine_epochs: PositiveInt = 1
    """Of the rewards, over all pairs so far. Default: 1."""
    refine_learning_rate: float = Field(1e-05, gt=0, le=1)
    """Of the rewards. Default: 1e-5."""

    @model_validator(mode="after")
    def _check_refining(self) -> Self:
        if self.refine_by is None and self.model_dump(include=_REFINING, exclude_defaults=True):
            raise DiffscaleError("Rewards are refined by what ranks pictures: give refine_by, too.")
        return self

    def evaluations(self, sample: int) -> int:
        return (self.sample_steps or sample) + 3


class GroupDpoConfig(Advantaged):
    panel = "Method"
    compares = True
    lag_most: float = Field(0.3, ge=0, lt=1)

    beta: Beta = 100.0
    preference: Literal["pairs", "group"] = "pairs"
    """Of group-dpo: the best and the worst, the second best and the second worst and so on are pairs; or all samples of
    a group weigh as much as they are above or below its mean. Default: pairs."""
    reference: Literal["frozen", "lagging"] = "frozen"
    """Of group-dpo: errors are compared with those of the base, or of the weights that lag behind. Default: frozen."""
    clip_range: ClipRange = 0.0

    def evaluations(self, sample: int) -> int:
        return self.sampled(sample) + self.learned * (4 + (self.clip_range > 0))


class NftConfig(Advantaged):
    panel = "Method"
    compares = True

    beta: Beta = 1.0
    kl_beta: float = Field(1e-4, ge=0, le=1e6)

    def evaluations(self, sample: int) -> int:
        return self.sampled(sample) + self.learned * (4 + (self.kl_beta > 0))


class AwmConfig(Advantaged):
    panel = "Method"
    compares = True
    lag_most: float = Field(0.3, ge=0, lt=1)
    kl_beta: float = Field(1e-4, ge=0, le=1e6)
    clip_range: ClipRange = 1.0

    lag_kl_beta: float = Field(1.0, ge=0, le=1e6)
    """Of awm: weight of the squared distance to the output of the weights that lag behind. Default: 1."""

    @model_validator(mode="after")
    def _check_held(self) -> Self:
        if not self.clip_range and not self.kl_beta and not self.lag_kl_beta:
            raise DiffscaleError("awm runs away unless it is held: give a clip_range, a kl_beta or a lag_kl_beta.")
        return self

    def evaluations(self, sample: int) -> int:
        return self.sampled(sample) + self.learned * (4 + (self.kl_beta > 0))


class RaftConfig(Grouped):
    panel = "Method"
    learning_rate: LearningRate = 1e-5

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        if (self.group_kept or 1) > self.group_size:
            raise DiffscaleError(f"raft learns from {self.group_kept} of {self.group_size} samples: give more samples.")
        return self

    @property
    def kept(self) -> int:
        return self.group_kept or 1

    @property
    def from_both_ends(self) -> bool:
        return False

    def evaluations(self, sample: int) -> int:
        return self.sampled(sample) + 3 * self.learned


class SpinConfig(InnerEpochs, Noised, Pictured, Preferring):
    panel = "Method"
    compares = False
    steps_per_round = 50
    beta: Beta = 5000.0

    def evaluations(self, sample: int) -> int:
        return math.ceil((self.sample_steps or sample) / self.num_inner_epochs) + 2 * 4


CONFIGS: Final[dict[str, type[TrainConfig]]] = {
    "sharpen-sft": SharpenSftConfig,
    "sharpen-rlhf": SharpenRlhfConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "ddpo": DdpoConfig,
    "d3po": D3poConfig,
    "iterpo": IterpoConfig,
    "group-dpo": GroupDpoConfig,
    "nft": NftConfig,
    "awm": AwmConfig,
    "raft": RaftConfig,
    "spin": SpinConfig,
}

_RECIPES: Final = Path(__file__).parent / "recipes"


def recipes(method: str) -> dict[str, Path]:
    """The method's recipes by name, a file each: settings for real models, with the numbers of papers."""
    return {file.stem: file for file in sorted((_RECIPES / method).glob("*.yaml"))}


def _file_of(method: str, given: Path) -> Path:
    """The file of a recipe, or `given`; raises UnknownName for a word that is neither."""
    known = recipes(method)
    if str(given) in known:
        return known[str(given)]
    if len(given.parts) == 1 and given.suffix not in (".yaml", ".yml") and not os.path.exists(given):
        raise unknown(f"configuration (neither a file, nor a recipe of {method}):", str(given), known)
    return given


def resolve(method: str, file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """The method's defaults, overridden by the settings of `file`, and those by the flags that were given (not None).

    `file`: YAML, or the name of one of the method's `recipes`. Raises UnknownName for a method or a recipe that does
    not exist, DiffscaleError for settings that are wrong.
    """
    check_name("method", method, METHODS)
    settings = {} if file is None else config.read(_file_of(method, file))
    if settings.pop("method", method) != method:
        raise DiffscaleError(f"{file} holds the settings of another method: give that one, or leave its method out.")
    settings |= {name: value for name, value in flags.items() if value not in (None, [])}
    if "pretrained_model_name_or_path" not in settings:
        raise DiffscaleError("Name the base model: --pretrained_model_name_or_path NAME, a folder or a Hub id.")
    for name in settings.keys() - CONFIGS[method].model_fields.keys():
        fields = [each.model_fields[name] for each in CONFIGS.values() if name in each.model_fields]
        if not fields:
            continue  # no setting at all, which validation tells of
        # One that is left as it is may stay, so that one file serves several methods.
        value = settings.pop(name)
        if value is not None and any(value != field.get_default(call_default_factory=True) for field in fields):
            if name == "reward":
                raise DiffscaleError(f"{method} learns from data alone: leave the reward out.")
            raise DiffscaleError(f"{method} makes no use of {name}: leave {name} out.")
    return config.validated(CONFIGS[method], {**settings, "method": method})


def load(file: Path) -> TrainConfig:
    """The settings of a run that was begun."""
    return resolve(str(config.read(file).get("method")), file, {})
