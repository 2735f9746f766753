"""The settings of `diffscale train`: names as in diffusers' training scripts where these have them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from diffscale._util import config
from diffscale._util.config import Flag
from diffscale._util.errors import DiffscaleError, unknown
from diffscale.train import checkpoints

METHODS: Final = {
    "sharpen-sft": "fine-tuning on the best of several short trajectories from data (Diffusion-Sharpening)",
    "sharpen-rlhf": "preferring the best to the worst short trajectory from own samples (Diffusion-Sharpening)",
    "sft": "standard fine-tuning on a data set",
    "dpo": "Diffusion-DPO on preference pairs",
    "ddpo": "policy gradient over denoising steps",
    "d3po": "DPO over denoising steps of pairs of own samples",
    "iterpo": "gradients of rewards of late predictions (IterComp)",
}

_DATA: Final = {"learning_rate": 1e-6, "train_batch_size": 8, "proportion_empty_prompts": 0.2}
DEFAULTS: Final[dict[str, dict[str, Any]]] = {
    "sharpen-sft": _DATA,
    "sharpen-rlhf": {**_DATA, "beta": 2500.0},
    "sft": _DATA,
    "dpo": {"learning_rate": 1e-6, "train_batch_size": 8, "beta": 5000.0},
    "ddpo": {"learning_rate": 3e-4, "train_batch_size": 8, "sample_steps": 50},
    "d3po": {"learning_rate": 3e-5, "train_batch_size": 8, "sample_steps": 20, "beta": 0.1},
    "iterpo": {"learning_rate": 1e-5, "train_batch_size": 8, "sample_steps": 40},
}
"""Settings of the papers (and of their authors' code), by method; the others have one default for all."""

REWARDED: Final = {"sharpen-sft", "sharpen-rlhf", "ddpo", "d3po", "iterpo"}
"""Methods that need a reward."""
_PICTURED: Final = {"sft", "sharpen-sft", "dpo"}
_SHARPENED: Final = {"sharpen-sft", "sharpen-rlhf"}
_NOISED: Final = {*_SHARPENED, "sft", "dpo"}
_REFINING: Final = ("refine_by", "refine_every", "refine_prompts", "refine_epochs", "refine_learning_rate")
_ONLY: Final = {
    "image_column": {"sft", "sharpen-sft"},
    "caption_column": {*METHODS} - {"dpo"},
    "center_crop": _PICTURED,
    "random_flip": _PICTURED,
    "n": _SHARPENED,
    "m": _SHARPENED,
    "search": _SHARPENED,
    "form": _SHARPENED,
    "beta": {"sharpen-rlhf", "dpo", "d3po"},
    "snr_gamma": _NOISED,
    "timestep_bias_strategy": _NOISED,
    "own_samples": {"sharpen-rlhf"},
    "num_inner_epochs": {"sharpen-rlhf"},
    "sample_steps": {"sharpen-rlhf", "ddpo", "d3po", "iterpo"},
    "samples_per_round": {"sharpen-rlhf", "ddpo", "d3po"},
    **{name: {"iterpo"} for name in _REFINING},
}
"""Settings that these methods alone go by."""


Positive = Annotated[int, Field(gt=0)]


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSettings(_Settings):
    """What is trained, and how much of it."""

    panel: ClassVar[str] = "Model"

    pretrained_model_name_or_path: Annotated[str, Flag(("pretrained_model_name_or_path", "model"))] = Field(
        min_length=1, description="Shipped name, folder or Hub id of the base."
    )
    revision: str | None = Field(None, description="Branch, tag or commit.")
    variant: str | None = Field(None, description="Weight files of this variant.")
    rank: Positive = Field(4, description="Rank of the LoRA. Default: 4.")
    full: bool = Field(False, description="Train all weights, without LoRA.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations on the way back.")
    use_ema: bool = Field(False, description="Keep a moving average and give that.")


class DataSettings(_Settings):
    """What it is trained on."""

    panel: ClassVar[str] = "Data"

    dataset_name: str | None = Field(None, description="Data set on the Hub.")
    dataset_config_name: str | None = Field(None, description="Its configuration.")
    data_files: list[str] | None = Field(None, description="Only these files of it; repeatable.")
    train_data_dir: str | None = Field(None, description="Folder with metadata.jsonl, or with parquet files or shards.")
    train_prompts: str | None = Field(
        None, description="File of prompts (txt, jsonl, csv), where no pictures are needed."
    )
    held_out_prompts: list[str] = Field(
        default_factory=list,
        description="Files of prompts that you measure on: like those of known suites never trained on; repeatable.",
    )
    image_column: str | None = Field(None, description="Column of pictures.")
    caption_column: str | None = Field(None, description="Column of captions.")
    max_train_samples: Positive | None = Field(None, description="Train on that many rows.")
    cache_dir: str | None = Field(None, description="For downloads, latents and embeddings.")
    resolution: Positive | None = Field(None, description="Pixels a side. Default: the model's own.")
    center_crop: bool = Field(False, description="Crop from the middle.")
    random_flip: bool = Field(False, description="Mirror half of the pictures.")
    proportion_empty_prompts: float = Field(
        0.0, ge=0, le=1, description="Share of prompts left out. Default: 0.2 for sft and sharpen, else 0."
    )


class MethodSettings(_Settings):
    """How samples are chosen and weighed."""

    panel: ClassVar[str] = "Method"

    reward: list[str] = Field(
        default_factory=list,
        description='Verifier, as "clip" or "image_reward weight=0.5"; several are added up, each over its running '
        "deviation; repeatable.",
    )
    n: int = Field(3, gt=0, description="Trajectories of a row. Default: 3.")
    m: int = Field(3, gt=0, description="Steps of a trajectory. Default: 3.")
    search: str | None = Field(
        None, description='What makes the trajectories, as "zero_order n=2". Default: n random noises.'
    )
    beta: float | None = Field(None, gt=0, description="Default: 2500 sharpen-rlhf, 5000 dpo, 0.1 d3po.")
    form: Literal["consistent", "published"] = Field(
        "consistent", description="Of sharpen: consistent targets, or published as the authors' code is."
    )
    snr_gamma: float | None = Field(
        None,
        gt=0,
        description="Of sft, dpo and sharpen: Min-SNR weights of errors; 5.0 is recommended. Sharpening "
        "with m over 1 gains most: its targets run away where noise is low.",
    )
    timestep_bias_strategy: Literal["none", "earlier", "later", "range"] = Field(
        "none", description="Of sft, dpo and sharpen: times drawn more often: earlier (less noise), later, or a range."
    )
    timestep_bias_multiplier: float = Field(1.0, gt=0, description="How much more often.")
    timestep_bias_portion: float = Field(0.25, gt=0, le=1, description="Share of times that are earlier, or later.")
    timestep_bias_begin: int = Field(0, ge=0, description="Of the range.")
    timestep_bias_end: Positive = Field(1000, description="Of the range.")
    own_samples: Literal["one", "each"] = Field(
        "one",
        description="Of sharpen-rlhf: a row's trajectories begin from one sample, or each from "
        "its own, by whose reward it is then chosen.",
    )
    sample_steps: int | None = Field(
        None,
        gt=1,
        description="Steps of own samples. Default: 50 ddpo, 20 d3po, 40 iterpo, sharpen-rlhf as the model is called.",
    )
    samples_per_round: Positive | None = Field(
        None,
        description="Of ddpo, d3po and sharpen-rlhf: rows that a process samples before steps are taken on them "
        "more than once. Default: for two steps, sharpen-rlhf for one.",
    )
    num_inner_epochs: Positive = Field(
        1, description="Of sharpen-rlhf: steps on the own samples of a round, noised anew each time. Default: 1."
    )
    refine_by: str | None = Field(
        None,
        description="Of iterpo: verifier that ranks pictures of the model in turns, in the place of people, as "
        "composition or llm_grader; the rewards learn from it. Default: rewards stay as they are.",
    )
    refine_every: Positive = Field(100, description="Steps between such turns. Default: 100.")
    refine_prompts: Positive = Field(64, description="Prompts of the data that are sampled at each. Default: 64.")
    refine_epochs: Positive = Field(1, description="Of the rewards, over all pairs so far. Default: 1.")
    refine_learning_rate: float = Field(1e-5, gt=0, description="Of the rewards. Default: 1e-5.")


class OptimisationSettings(_Settings):
    """Steps, and their sizes."""

    panel: ClassVar[str] = "Optimisation"

    train_batch_size: Positive = Field(8, description="Rows of a process.")
    gradient_accumulation_steps: Positive = Field(1, description="Batches of a step.")
    max_train_steps: Positive = Field(10_000, description="Default: 10,000.")
    max_train_seconds: float | None = Field(
        None, gt=0, description="Stop after that much time in steps, for comparisons at equal time."
    )
    learning_rate: float = Field(1e-6, gt=0, description="Default: 1e-6, 3e-4 ddpo, 3e-5 d3po, 1e-5 iterpo.")
    lr_scheduler: Literal[
        "linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"
    ] = Field("constant", description="Schedule of diffusers.")
    lr_warmup_steps: int = Field(0, ge=0, description="Of the schedule.")
    use_8bit_adam: bool = Field(False, description="AdamW of bitsandbytes.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="Of AdamW.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="Of AdamW.")
    adam_weight_decay: float = Field(1e-2, ge=0, description="Of AdamW.")
    adam_epsilon: float = Field(1e-8, gt=0, description="Of AdamW.")
    max_grad_norm: float = Field(1.0, gt=0, description="Clip there.")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = Field(
        None, description="no, fp16 or bf16. Default: as accelerate is configured."
    )
    allow_tf32: bool = Field(False, description="On Ampere and later.")
    seed: int = Field(0, description="Of all that is random.")


class OutputSettings(_Settings):
    """What is kept of a run, and shown on the way."""

    panel: ClassVar[str] = "Output"

    output_dir: Path = Field(Path("outputs/train"), description="Folder of the run.")
    logging_dir: str = Field("logs", description="In it, for tensorboard.")
    report_to: list[Literal["tensorboard", "wandb"]] = Field(
        default_factory=list, description="tensorboard or wandb; repeatable. log.jsonl is always written."
    )
    checkpointing_steps: Positive = Field(500, description="Save so often.")
    checkpoints_total_limit: Positive | None = Field(None, description="Keep that many.")
    resume_from_checkpoint: Annotated[str | None, Flag(("resume_from_checkpoint", "resume"))] = Field(
        None, description='"latest", or a checkpoint folder.'
    )
    validation_prompt: Annotated[list[str], Flag(("validation_prompt", "validation_prompts"))] = Field(
        default_factory=list, description="Sampled before and after. Default: four of the data; repeatable."
    )
    num_validation_images: Positive = Field(1, description="Of each validation prompt.")
    validation_steps: Positive | None = Field(None, description="Sample them so often too.")


class TrainConfig(ModelSettings, DataSettings, MethodSettings, OptimisationSettings, OutputSettings):
    """Everything that decides what a training gives. Raises DiffscaleError for settings that do not go together."""

    method: Annotated[str, Flag(argument="METHOD")] = Field(
        description="; ".join(f"{name}: {what}" for name, what in METHODS.items())
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        sources = [self.dataset_name, self.train_data_dir, self.train_prompts]
        if sum(source is not None for source in sources) != 1:
            raise DiffscaleError("Give one source of data: dataset_name, train_data_dir or train_prompts.")
        if self.method in REWARDED and not self.reward:
            raise DiffscaleError(f"{self.method} needs a reward: give --reward clip, or another verifier.")
        if self.method not in REWARDED and self.reward:
            raise DiffscaleError(f"{self.method} learns from data alone: leave the reward out.")
        if self.method == "sharpen-rlhf" and self.n < 2:
            raise DiffscaleError("sharpen-rlhf compares trajectories: give n of 2 or more.")
        for name, methods in _ONLY.items():
            if self.method not in methods and not self._usual(name):
                raise DiffscaleError(f"{self.method} makes no use of {name}: leave {name} out.")
        if self.timestep_bias_strategy == "range" and self.timestep_bias_begin >= self.timestep_bias_end:
            raise DiffscaleError("The range of times is empty: give a timestep_bias_begin below timestep_bias_end.")
        if (self.timestep_bias_strategy == "none") != (self.timestep_bias_multiplier == 1):
            raise DiffscaleError(
                "A bias of times takes both, a timestep_bias_strategy and a timestep_bias_multiplier other than 1."
            )
        if self.method == "sharpen-rlhf" and self.samples_per_round is not None and self.num_inner_epochs == 1:
            raise DiffscaleError(
                "sharpen-rlhf learns from each sample once: give num_inner_epochs, or leave samples_per_round out."
            )
        if self.refine_by is None and not all(self._usual(name) for name in _REFINING):
            raise DiffscaleError("Rewards are refined by what ranks pictures: give refine_by, too.")
        if self.lr_scheduler == "constant" and self.lr_warmup_steps:
            raise DiffscaleError("The schedule constant has no warm-up: give --lr_scheduler constant_with_warmup.")
        step = self.train_batch_size * self.gradient_accumulation_steps
        if self.samples_per_round is not None and self.samples_per_round % step:
            raise DiffscaleError(
                f"A round must be a whole number of steps of {step} samples, not {self.samples_per_round} samples."
            )
        return self

    def _usual(self, name: str) -> bool:
        return bool(getattr(self, name) == type(self).model_fields[name].default)

    @property
    def adapter(self) -> str | None:
        """The LoRA's name, None for full weights."""
        return None if self.full else "diffscale"

    def same_run(self, other: TrainConfig) -> bool:
        """Whether one can go on where the other stopped: all but where to stop and what is told and kept."""
        passing = {
            "max_train_steps", "max_train_seconds", "output_dir", "logging_dir", "report_to", "checkpointing_steps",
            "checkpoints_total_limit", "resume_from_checkpoint", "validation_steps", "cache_dir",
            "gradient_checkpointing",
        }  # fmt: skip
        if self.lr_scheduler in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
            passing.remove("max_train_steps")  # they end there
        return self.model_dump(exclude=passing) == other.model_dump(exclude=passing)


def resolve(method: str, file: Path | None, flags: dict[str, Any]) -> TrainConfig:
    """The method's defaults, overridden by the settings of `file`, and those by the flags that were given (not None).

    Raises UnknownName for a method that does not exist, DiffscaleError for settings that are wrong.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    settings = {} if file is None else config.read(file)
    if settings.pop("method", method) != method:
        raise DiffscaleError(f"{file} holds the settings of another method: give that one, or leave its method out.")
    given = {name: value for name, value in flags.items() if value not in (None, [])}
    return _validated({**DEFAULTS[method], **settings, **given, "method": method})


def load(file: Path) -> TrainConfig:
    """The settings of a run that was begun."""
    return _validated(config.read(file))


def save(settings: TrainConfig, file: Path) -> None:
    """Write the settings so that `--config FILE` repeats the run."""
    text = yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    checkpoints.whole(file, text)


def _validated(settings: dict[str, Any]) -> TrainConfig:
    if "pretrained_model_name_or_path" not in settings:
        raise DiffscaleError("Name the base model: --pretrained_model_name_or_path NAME, a folder or a Hub id.")
    return config.validated(TrainConfig, settings)
