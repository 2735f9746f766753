"""The folders of shipped networks: their configurations say what a network is, a recipe how it is trained.

What a folder holds besides trained weights and figures (tokenizer, preprocessing, names of classes, the plain call) is
the same after every training.
"""

import shutil
from pathlib import Path
from typing import Any, TypeVar

from diffusers import AutoencoderKL, ModelMixin
from torch import nn
from transformers import PreTrainedModel

from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale_shapes import MODELS

Net = TypeVar("Net", bound=ModelMixin | PreTrainedModel)


def untrained(kind: type[Net], folder: str) -> Net:
    """A network with random weights, as `config.json` in a folder below `weights` states it."""
    config: Any
    if issubclass(kind, PreTrainedModel):
        config = kind.config_class.from_pretrained(MODELS / folder)  # type: ignore[union-attr]
        return kind(config)
    config = kind.load_config(MODELS / folder)
    return kind.from_config(config)  # type: ignore[no-any-return, return-value]


def load_shipped(model: str) -> Any:
    """A shipped pipeline, or ClassModel, on the processor in float32."""
    return load_pipeline(model, LoadOptions(device="cpu", dtype="float32"))


def flux_vae() -> AutoencoderKL:
    """The autoencoder of shapes-flux, which its siblings share."""
    return load_shipped("shapes-flux").vae  # type: ignore[no-any-return]


def save_parts(folder: Path, half: dict[str, nn.Module], full: dict[str, nn.Module] | None = None) -> None:
    """Save networks below `folder`, those of `half` in float16, which diffusers loads as float32.

    transformers would load text encoders in the dtype that they are stored in, and a pipeline would mix dtypes: they
    go to `full`.
    """
    for name, part in {**{name: part.half() for name, part in half.items()}, **(full or {})}.items():
        part.save_pretrained(folder / name)  # type: ignore[operator]


def copy_rest(model: str, folder: Path) -> None:
    """Copy to `folder` what the shipped folder of `model` has and it lacks, but for weights."""
    for source in (MODELS / model).rglob("*"):
        there = folder / source.relative_to(MODELS / model)
        if source.is_file() and source.suffix != ".safetensors" and not there.exists():
            there.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, there)
