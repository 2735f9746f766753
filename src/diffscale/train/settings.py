"""The settings that all methods of `diffscale train` go by: names as in diffusers' training scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from diffscale._util import config
from diffscale._util.config import Flag
from diffscale._util.errors import DiffscaleError

METHODS: Final = {
    "sharpen-sft": "fine-tuning on the best of several short trajectories from data (Diffusion-Sharpening)",
    "sharpen-rlhf": "preferring the best to the worst short trajectory from own samples (Diffusion-Sharpening)",
    "sft": "standard fine-tuning on a data set",
    "dpo": "Diffusion-DPO on preference pairs",
    "ddpo": "policy gradient over denoising steps",
    "d3po": "DPO over denoising steps of pairs of own samples",
    "iterpo": "gradients of rewards of late predictions (IterComp)",
    "group-dpo": "preferring the better of several own samples of a prompt (Diffusion-DPO on groups, DGPO)",
    "nft": "own samples pull where they are good and push where they are bad (DiffusionNFT)",
    "awm": "denoising losses of own samples, weighted by advantage (advantage weighted matching)",
    "raft": "fine-tuning on the best of several own samples (best-of-N distillation)",
    "spin": "preferring pictures of a data set to own samples of their prompts (SPIN-Diffusion)",
}

Decay = Annotated[float, Field(ge=0, lt=1)]
# What methods have defaults of their own for.
LearningRate = Annotated[
    float, Field(gt=0, le=1, description="Default: 1e-6; 3e-4 ddpo, nft, awm, group-dpo; 3e-5 d3po; 1e-5 iterpo, raft.")
]
EmptyShare = Annotated[
    float, Field(ge=0, le=1, description="Share of prompts left out. Default: 0.2 for sft and sharpen, else 0.")
]
Beta = Annotated[
    float, Field(gt=0, description="Default: 2500 sharpen-rlhf, 5000 dpo and spin, 0.1 d3po, 100 group-dpo, 1 nft.")
]
SampleSteps = Annotated[
    int | None,
    Field(
        gt=1,
        description="Steps of own samples. Default: 50 ddpo, 20 d3po, 40 iterpo, else as the model is called.",
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
    validation_verifier: list[str] = []
    """Verifiers that score validation pictures beside the rewards and the judge; the first decides on --keep_best and
    --patience; repeatable."""
    validation_features: Literal["dino", "inception"] | None = None
    """Network in whose features recall and diversity of validation pictures are measured."""
    keep_best: bool = False
    """Give the weights whose validation pictures the first validation verifier liked best, in the place of the last."""
    patience: PositiveInt | None = None
    """Stop after so many validations in a row at which that verifier was below its best while the reward was higher."""


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
            "checkpoints_total_limit", "resume_from_checkpoint", "cache_dir",
            "gradient_checkpointing",
        }  # fmt: skip
        if self.lr_scheduler in ("linear", "cosine", "cosine_with_restarts", "polynomial"):
            passing.remove("max_train_steps")  # they end there
        return config.difference(*(each.model_dump(mode="json", exclude=passing) for each in (before, self)))
