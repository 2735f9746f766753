"""The settings of `diffscale generate`, as flags and as a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from diffscale._util.config import read, validated
from diffscale.models.options import MEANS, LoadOptions


class ModelConfig(LoadOptions):
    """The model, how it is loaded, and how it is called."""

    model: str = "shapes-flux"
    steps: int | None = Field(None, gt=0, description="denoising steps of one sample; null: as the model states")
    pipe_args: dict[str, Any] = Field(default_factory=dict)
    negative_prompt: str | None = None
    batch_size: int | None = Field(None, gt=0)

    @property
    def call_args(self) -> dict[str, Any]:
        """All arguments of the pipeline's call."""
        return self.pipe_args | ({} if self.negative_prompt is None else {"negative_prompt": self.negative_prompt})


class GenerateConfig(ModelConfig):
    """Everything that decides the result of a run, and on which hardware it is made."""

    prompt: str = Field("a red circle above a blue square", min_length=1)
    search: str = "random"
    verifier: str = "clip"
    budget: int = Field(1280, gt=0, description="total NFE, final denoising included")
    seed: int = 0

    def same_run(self, other: GenerateConfig) -> bool:
        """Whether both ask for the same result; batch size and what only takes memory and time do not change it."""
        passing = {"batch_size", *MEANS}
        return self.model_dump(exclude=passing) == other.model_dump(exclude=passing)


def resolve(file: Path | None, flags: dict[str, Any]) -> GenerateConfig:
    """The settings of `file`, overridden by the flags that were given (those not None).

    Raises DiffscaleError for a file that cannot be read and for values out of range, naming them.
    """
    return validated(
        GenerateConfig, ({} if file is None else read(file)) | {k: v for k, v in flags.items() if v is not None}
    )


def load(file: Path) -> GenerateConfig:
    """The settings of a saved run."""
    return validated(GenerateConfig, read(file))


def save(config: GenerateConfig, file: Path) -> None:
    """Write the settings so that `--config FILE` repeats the run."""
    settings = config.model_dump()
    inherited = {name: settings.pop(name) for name in ModelConfig.model_fields}
    file.write_text(yaml.safe_dump(settings | inherited, sort_keys=False, allow_unicode=True))
