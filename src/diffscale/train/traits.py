"""The settings that several methods of `diffscale train` share: a class for what methods have in common."""

from __future__ import annotations

import math
from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from diffscale._util.errors import DiffscaleError
from diffscale.train.settings import Beta, EmptyShare, LearningRate, SampleSteps, TrainConfig

ClipRange = Annotated[
    float,
    Field(
        ge=0,
        le=1e6,
        description="Of group-dpo and awm: a sample whose likelihood has changed by more than this share, as was "
        "wanted, is not pushed further; 0: it always is. Default: 0; awm 1.",
    ),
]


class Captioned(TrainConfig):
    """Methods that learn from rows with one caption."""

    panel = "Data"
    caption_column: str | None = None
    """Column of captions."""


class Cropped(TrainConfig):
    """Methods that learn from pictures."""

    panel = "Data"
    center_crop: bool = False
    """Crop from the middle."""
    random_flip: bool = False
    """Mirror half of the pictures."""


class Pictured(Captioned, Cropped):
    """Methods that learn from captioned pictures."""

    panel = "Data"
    learns_from = "pictures"
    image_column: str | None = None
    """Column of pictures."""


class Noised(TrainConfig):
    """Methods that noise their data to random times."""

    panel = "Method"
    snr_gamma: PositiveFloat | None = None
    """Of all but ddpo, d3po and iterpo: Min-SNR weights of errors; 5.0 is recommended. Sharpening with m over 1 gains
    most: its targets run away where noise is low."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Of the same: times drawn more often: earlier (less noise), later, or a range."""
    timestep_bias_multiplier: float = Field(1.0, gt=0, le=1e9)
    """How much more often."""
    timestep_bias_portion: float = Field(0.25, gt=0, le=1)
    """Share of times that are earlier, or later."""
    timestep_bias_begin: NonNegativeInt = 0
    """Of the range."""
    timestep_bias_end: PositiveInt = 1000
    """Of the range."""

    @model_validator(mode="after")
    def _check_bias(self) -> Self:
        if self.timestep_bias_strategy == "range" and self.timestep_bias_begin >= self.timestep_bias_end:
            raise DiffscaleError("The range of times is empty: give a timestep_bias_begin below timestep_bias_end.")
        if (self.timestep_bias_strategy == "none") != (self.timestep_bias_multiplier == 1):
            raise DiffscaleError(
                "A bias of times takes both, a timestep_bias_strategy and a timestep_bias_multiplier other than 1."
            )
        return self


class Rewarded(Captioned):
    """Methods that need a reward."""

    panel = "Method"
    reward: list[str] = Field([])
    """Verifier, as "clip" or "image_reward weight=0.5"; several are added up, each over its running deviation;
    repeatable."""

    @property
    def rewards(self) -> list[str]:
        return self.reward

    @model_validator(mode="after")
    def _check_reward(self) -> Self:
        if not self.reward:
            raise DiffscaleError(f"{self.method} needs a reward: give --reward clip, or another verifier.")
        return self


class Searching(TrainConfig):
    """Methods whose samples or trajectories a search may make."""

    panel = "Method"
    search: str | None = None
    """What makes the trajectories of sharpen, as "zero_order n=2", or the groups of group-dpo, nft, awm and raft, as
    "draft both_ends=true". Default: random noises."""


class Sharpening(Searching, Rewarded, Noised):
    """Diffusion-Sharpening of either kind."""

    panel = "Method"
    proportion_empty_prompts: EmptyShare = 0.2
    n: PositiveInt = 3
    """Trajectories of a row. Default: 3."""
    m: PositiveInt = 3
    """Steps of a trajectory. Default: 3."""
    form: Literal["consistent", "published"] = "consistent"
    """Of sharpen: consistent targets; or published, as the authors' code is, with the gradient through the sampler's
    steps."""


class Preferring(TrainConfig):
    """Methods that prefer one of two, each measured against the network as it was."""

    panel = "Method"
    compares = True
    beta: Beta


class Sampling(Captioned):
    """Methods that learn from samples of the model's own."""

    panel = "Method"
    sample_steps: SampleSteps = None


class SamplingRounds(Sampling):
    """Methods that take several steps on samples of their own."""

    panel = "Method"
    samples_per_round: PositiveInt | None = None
    """Of methods with own samples, but iterpo: rows that a process samples before steps are taken on them more than
    once. Default: for one step, ddpo and d3po for two."""
    steps_per_round: ClassVar[int] = 2

    @property
    def batches_per_round(self) -> int:
        """The batches of rows that a process samples in a round."""
        if self.samples_per_round is None:
            return self.steps_per_round * self.gradient_accumulation_steps
        return self.samples_per_round // self.train_batch_size

    @model_validator(mode="after")
    def _check_rounds(self) -> Self:
        step = self.train_batch_size * self.gradient_accumulation_steps
        if self.samples_per_round is not None and self.samples_per_round % step:
            raise DiffscaleError(
                f"A round must be a whole number of steps of {step} samples, not {self.samples_per_round} samples."
            )
        return self


class InnerEpochs(SamplingRounds):
    """Methods that learn several times from each sample of a round.

    With two batches in a round and two inner epochs:

        pass     0 1 2 3 | 4 5 6 7
        epoch    0 0 1 1 | 0 0 1 1    epoch 0 makes samples, the others take those that were made
        batch    0 1 0 1 | 2 3 2 3
    """

    panel = "Method"
    steps_per_round = 1
    num_inner_epochs: PositiveInt = 1
    """Of sharpen-rlhf, group-dpo, nft, awm, raft and spin: steps on the own samples of a round, noised anew each time.
    Default: 1."""

    unguided: bool = False
    """Of the same: own samples are made without classifier-free guidance, and the
    trained model is called so, which halves its price."""
    guidance_scale: float | None = Field(None, ge=0, le=1000)
    """Of the same: own samples are made with this, and so the trained model is called. Default: as models are."""

    def place_in_round(self, number: int) -> tuple[int, int, int]:
        """Round, inner epoch and batch of the round of pass `number`, all from 0; epoch 0 makes the samples."""
        round_, within = divmod(number, self.batches_per_round * self.num_inner_epochs)
        return round_, *divmod(within, self.batches_per_round)


class Grouped(Searching, InnerEpochs, Rewarded, Noised):
    """Methods that learn from groups of samples of the model's own, all of one prompt."""

    panel = "Method"
    group_size: int = Field(16, ge=2)
    """Of group-dpo, nft, awm and raft: own samples of each prompt; with a search, as many samples' worth of NFE.
    Default: 16."""
    group_kept: PositiveInt | None = None
    """Of group-dpo, nft and awm: learn from so many of a group, half of them the best and half the worst; of raft from
    so many of the best. Default: all; of raft 1."""

    @property
    def kept(self) -> int | None:
        """How many samples of a group are learned from; None for all."""
        return self.group_kept

    @property
    def from_both_ends(self) -> bool:
        """Whether the worst samples are learned from, too."""
        return True

    @property
    def learned(self) -> int:
        """How many samples of a group are learned from, at most."""
        return self.kept or self.group_size

    def sampled(self, sample: int) -> int:
        """A pass's share of the evaluations for samples of a prompt, of which one takes `sample`; see `evaluations`."""
        return math.ceil(self.group_size * (self.sample_steps or sample) / self.num_inner_epochs)


class Advantaged(Grouped):
    """Methods that learn from good samples and from bad ones, by how far they are from the mean of their group."""

    panel = "Method"
    learning_rate: LearningRate = 3e-4
    advantage_std: Literal["global", "group"] = "global"
    """Of group-dpo, nft and awm: advantages are in standard deviations of all rewards of the round, or of the group's
    own. Several rewards are each in deviations of the group before they are added. Default: global."""
    kl_beta: float = Field(0.0, ge=0, le=1e6)
    """Of group-dpo, nft and awm: weight of the squared distance to the output of the base. Default: 1e-4 nft and awm,
    else 0."""
    lag_rate: float = Field(0.001, ge=0, le=1)
    """Of group-dpo, nft and awm: the weights that lag behind are a moving average over rounds, whose decay grows by
    this each round. Default: 0.001."""
    lag_most: float = Field(0.5, ge=0, lt=1)
    """And is at most this. Default: 0.5; 0.3 group-dpo and awm."""

    @model_validator(mode="after")
    def _check_kept(self) -> Self:
        kept = self.group_kept
        if kept is not None and (kept % 2 or kept > self.group_size):
            raise DiffscaleError(
                f"Half of group_kept are the best and half the worst: give an even number up to {self.group_size}, not "
                f"{kept}."
            )
        return self
