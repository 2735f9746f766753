"""The settings of `diffscale train`, a class per method: names as in diffusers' training scripts where these have them.

`TrainConfig` has what all methods go by. What several methods share beyond it is in a class of its own, and a method's
class adds what that method alone goes by, with the defaults of its paper (and of its authors' code).
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)  # fmt: skip

from diffscale._util import config
from diffscale._util.config import Flag
from diffscale._util.errors import DiffscaleError, check_name

METHODS: Final = {
    "sharpen-sft": "fine-tuning on the best of several short trajectories from data (Diffusion-Sharpening)",
    "sharpen-rlhf": "preferring the best to the worst short trajectory from own samples (Diffusion-Sharpening)",
    "sft": "standard fine-tuning on a data set",
    "dpo": "Diffusion-DPO on preference pairs",
    "ddpo": "policy gradient over denoising steps",
    "d3po": "DPO over denoising steps of pairs of own samples",
    "iterpo": "gradients of rewards of late predictions (IterComp)",
}

Decay = Annotated[float, Field(ge=0, lt=1)]
# What methods have defaults of their own for.
LearningRate = Annotated[float, Field(gt=0, le=1, description="Default: 1e-6, 3e-4 ddpo, 3e-5 d3po, 1e-5 iterpo.")]
EmptyShare = Annotated[
    float, Field(ge=0, le=1, description="Share of prompts left out. Default: 0.2 for sft and sharpen, else 0.")
]
Beta = Annotated[float, Field(gt=0, description="Default: 2500 sharpen-rlhf, 5000 dpo, 0.1 d3po.")]
SampleSteps = Annotated[
    int | None,
    Field(
        gt=1,
        description="Steps of own samples. Default: 50 ddpo, 20 d3po, 40 iterpo, sharpen-rlhf as the model is called.",
    ),
]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
    panel: ClassVar[str]
    """Where the command's help shows the settings that a class adds."""


class ModelSettings(_Settings):
    """What is trained, and how much of it."""

    panel = "Model"
    pretrained_model_name_or_path: Annotated[str, Flag(("pretrained_model_name_or_path", "model"))] = Field(
        min_length=1
    )
    """Shipped name, folder or Hub id of the base."""
    revision: str | None = None
    """Branch, tag or commit."""
    variant: str | None = None
    """Weight files of this variant."""
    rank: PositiveInt = 4
    """Rank of the LoRA. Default: 4."""
    full: bool = False
    """Train all weights, without LoRA."""
    gradient_checkpointing: bool = False
    """Recompute activations on the way back."""
    use_ema: bool = False
    """Keep a moving average and give that."""


class DataSettings(_Settings):
    """What it is trained on."""

    panel = "Data"
    dataset_name: str | None = None
    """Data set on the Hub."""
    dataset_config_name: str | None = None
    """Its configuration."""
    data_files: list[str] | None = None
    """Only these files of it; repeatable."""
    train_data_dir: str | None = None
    """Folder with metadata.jsonl, or with parquet files or shards."""
    train_prompts: str | None = None
    """File of prompts (txt, jsonl, csv), where no pictures are needed."""
    held_out_prompts: list[str] = []
    """Files of prompts that you measure on: like those of known suites never trained on; repeatable."""
    max_train_samples: PositiveInt | None = None
    """Train on that many rows."""
    cache_dir: str | None = None
    """For downloads, latents and embeddings."""
    resolution: PositiveInt | None = None
    """Pixels a side. Default: the model's own."""
    proportion_empty_prompts: EmptyShare = 0.0


class OptimisationSettings(_Settings):
    """Steps, and their sizes."""

    panel = "Optimisation"
    train_batch_size: PositiveInt = 8
    """Rows of a process."""
    gradient_accumulation_steps: PositiveInt = 1
    """Batches of a step."""
    max_train_steps: PositiveInt = 10_000
    """Default: 10,000."""
    max_train_seconds: PositiveFloat | None = None
    """Stop after that much time in steps, for comparisons at equal time."""
    learning_rate: LearningRate = 1e-6
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = "constant"
    """Schedule of diffusers."""
    lr_warmup_steps: NonNegativeInt = 0
    """Of the schedule."""
    use_8bit_adam: bool = False
    """AdamW of bitsandbytes."""
    adam_beta1: Decay = 0.9
    """Of AdamW."""
    adam_beta2: Decay = 0.999
    """Of AdamW."""
    adam_weight_decay: float = Field(1e-2, ge=0, le=1e6)
    """Of AdamW."""
    adam_epsilon: PositiveFloat = 1e-08
    """Of AdamW."""
    max_grad_norm: PositiveFloat = 1.0
    """Clip there."""
    mixed_precision: Literal["no", "fp16", "bf16"] | None = None
    """no, fp16 or bf16. Default: as accelerate is configured."""
    allow_tf32: bool = False
    """On Ampere and later."""
    seed: int = 0
    """Of all that is random."""


class OutputSettings(_Settings):
    """What is kept of a run, and shown on the way."""

    panel = "Output"
    output_dir: Path = Path("outputs/train")
    """Folder of the run."""
    logging_dir: str = "logs"
    """In it, for tensorboard."""
    report_to: list[Literal["tensorboard", "wandb"]] = []
    """tensorboard or wandb; repeatable. log.jsonl is always written."""
    checkpointing_steps: PositiveInt = 500
    """Save so often."""
    checkpoints_total_limit: PositiveInt | None = None
    """Keep that many."""
    resume_from_checkpoint: Annotated[str | None, Flag(("resume_from_checkpoint", "resume"))] = None
    """"latest", or a checkpoint folder."""
    validation_prompt: Annotated[list[str], Flag(("validation_prompt", "validation_prompts"))] = []
    """Sampled before and after. Default: four of the data; repeatable."""
    num_validation_images: PositiveInt = 1
    """Of each validation prompt."""
    validation_steps: PositiveInt | None = None
    """Sample them so often too."""


class TrainConfig(ModelSettings, DataSettings, OptimisationSettings, OutputSettings):
    """What decides what a training gives, whatever its method.

    Raises DiffscaleError for settings that do not go together.
    """

    learns_from: ClassVar[Literal["pictures", "pairs", "prompts"]] = "prompts"
    compares: ClassVar[bool] = False
    """Whether the method needs the network as it was before training."""

    method: Annotated[str, Flag(argument="METHOD")] = Field(
        description="; ".join(f"{name}: {summary}" for name, summary in METHODS.items())
    )

    @model_validator(mode="after")
    def _check_common(self) -> Self:
        sources = [self.dataset_name, self.train_data_dir, self.train_prompts]
        if sum(source is not None for source in sources) != 1:
            raise DiffscaleError("Give one source of data: dataset_name, train_data_dir or train_prompts.")
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise DiffscaleError("The schedule constant has no warm-up: give --lr_scheduler constant_with_warmup.")
        return self

    @property
    def adapter(self) -> str | None:
        """The LoRA's name, None for full weights."""
        return None if self.full else "diffscale"

    @property
    def rewards(self) -> list[str]:
        """The verifiers that reward, none where the method learns from data alone."""
        return []

    def evaluations(self, sample: int) -> int:
        """About how many denoiser evaluations a row of a pass costs, a step backward counted as two forward.

        `sample`: evaluations of a sample of the model as it is called. Rewards and decoding are left out.
        """
        raise NotImplementedError

    def difference(self, before: TrainConfig) -> str:
        """What keeps one from going on where the other stopped: all but where to stop and what is told and kept.

        It is written as `config.difference` does, and empty if one can.
        """
        passing = {
            "max_train_steps", "max_train_seconds", "output_dir", "logging_dir", "report_to", "checkpointing_steps",
            "checkpoints_total_limit", "resume_from_checkpoint", "validation_steps", "cache_dir",
            "gradient_checkpointing",
        }  # fmt: skip
        if self.lr_scheduler in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
            passing.remove("max_train_steps")  # they end there
        return config.difference(*(each.model_dump(mode="json", exclude=passing) for each in (before, self)))


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
    """Of sft, dpo and sharpen: Min-SNR weights of errors; 5.0 is recommended. Sharpening with m over 1 gains most: its
    targets run away where noise is low."""
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = "none"
    """Of sft, dpo and sharpen: times drawn more often: earlier (less noise), later, or a range."""
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
    reward: list[str] = []
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


class Sharpening(Rewarded, Noised):
    """Diffusion-Sharpening of either kind."""

    panel = "Method"
    proportion_empty_prompts: EmptyShare = 0.2
    n: PositiveInt = 3
    """Trajectories of a row. Default: 3."""
    m: PositiveInt = 3
    """Steps of a trajectory. Default: 3."""
    search: str | None = None
    """What makes the trajectories, as "zero_order n=2". Default: n random noises."""
    form: Literal["consistent", "published"] = "consistent"
    """Of sharpen: consistent targets; or published, as the authors' code is, with the gradient through the sampler's
    steps."""


class Preferring(TrainConfig):
    """Methods that prefer one of two, each measured against the network as it was."""

    panel = "Method"
    compares = True
    beta: Beta


class Sampling(Rewarded):
    """Methods that learn from samples of the model's own."""

    panel = "Method"
    sample_steps: SampleSteps = None


class SamplingRounds(Sampling):
    """Methods that take several steps on samples of their own."""

    panel = "Method"
    samples_per_round: PositiveInt | None = None
    """Of ddpo, d3po and sharpen-rlhf: rows that a process samples before steps are taken on them more than once.
    Default: for two steps, sharpen-rlhf for one."""
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


class SharpenSftConfig(Sharpening, Pictured):
    def evaluations(self, sample: int) -> int:
        return self.n * self.m + 3 * self.m


class SharpenRlhfConfig(Sharpening, SamplingRounds, Preferring):
    panel = "Method"
    steps_per_round = 1

    beta: Beta = 2500.0
    own_samples: Literal["one", "each", "published"] = "one"
    """Of sharpen-rlhf: a row's trajectories begin from one sample; or each from its own, by whose reward it is then
    chosen; or published, as in the authors' code: each from its own unguided one, noised with its own first noise."""
    num_inner_epochs: PositiveInt = 1
    """Of sharpen-rlhf: steps on the own samples of a round, noised anew each time. Default: 1."""

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

    def place_in_round(self, number: int) -> tuple[int, int, int]:
        """Round, inner epoch and batch of the round of pass `number`, all from 0; epoch 0 makes the samples."""
        round_, within = divmod(number, self.batches_per_round * self.num_inner_epochs)
        return round_, *divmod(within, self.batches_per_round)

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


class DdpoConfig(SamplingRounds):
    learning_rate: LearningRate = 3e-4
    sample_steps: SampleSteps = 50

    def evaluations(self, sample: int) -> int:
        return 4 * (self.sample_steps or sample)


class D3poConfig(SamplingRounds, Preferring):
    learning_rate: LearningRate = 3e-5
    sample_steps: SampleSteps = 20
    beta: Beta = 0.1

    def evaluations(self, sample: int) -> int:
        return 2 * 5 * (self.sample_steps or sample)


_REFINING: Final = {"refine_every", "refine_prompts", "refine_epochs", "refine_learning_rate"}


class IterpoConfig(Sampling):
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


CONFIGS: Final[dict[str, type[TrainConfig]]] = {
    "sharpen-sft": SharpenSftConfig,
    "sharpen-rlhf": SharpenRlhfConfig,
    "sft": SftConfig,
    "dpo": DpoConfig,
    "ddpo": DdpoConfig,
    "d3po": D3poConfig,
    "iterpo": IterpoConfig,
}


def resolve(method: str, file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """The method's defaults, overridden by the settings of `file`, and those by the flags that were given (not None).

    Raises UnknownName for a method that does not exist, DiffscaleError for settings that are wrong.
    """
    check_name("method", method, METHODS)
    settings = {} if file is None else config.read(file)
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
