"""One recipe per shipped network: train (or go on), write the folder, measure it, write its figures beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from diffusers import AutoencoderKL, FluxPipeline
from torch import nn

from diffscale.shapes.suite import suite
from diffscale.shapes.train import autoencoder, clip, flux
from diffscale.shapes.train.distil import distil
from diffscale.shapes.train.measure import measure
from diffscale.shapes.train.text import MAX_TOKENS, clip_tokenizer

FLUX_CALL: Final = {
    "num_inference_steps": 20,
    "height": 64,
    "width": 64,
    "guidance_scale": 2.0,  # distilled: one row through the network for each NFE
    "max_sequence_length": MAX_TOKENS,
}
"""The plain call of shapes-flux that every figure uses."""


def train_flux(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """Autoencoder, then transformer and text encoders, then guidance distillation.

    The folder loads with FluxPipeline.from_pretrained.
    """
    vae = autoencoder.train(checkpoints / "autoencoder")
    descriptions, latents = flux.encode_scenes(vae, checkpoints / "flux", flux.SCENES)
    teacher = flux.train(descriptions, latents, checkpoints / "flux", steps or flux.STEPS)
    net = distil(teacher, descriptions, latents, checkpoints / "flux-distilled")
    autoencoder.polish(vae, checkpoints / "decoder")
    write_flux(vae, net, folder)
    stages = {"autoencoder": "autoencoder", "training": "flux", "distillation": "flux-distilled", "decoder": "decoder"}
    figures = {
        **{stage: _last(checkpoints / name) for stage, name in stages.items()},
        "judge": measure(FluxPipeline.from_pretrained(folder), suite("shapes")),
    }
    _write(folder / "figures.json", figures)


def write_flux(vae: AutoencoderKL, net: flux.TextToVelocity, folder: Path) -> None:
    """The pipeline folder, and how it is called.

    The large networks are stored in fp16, which diffusers loads as fp32; transformers would load the text
    encoders in the dtype that they are stored in, and the pipeline would mix dtypes.
    """
    pipe: FluxPipeline = flux.pipeline(vae.half(), net)
    net.transformer.half()
    pipe.save_pretrained(folder)
    about = "FluxPipeline trained on Shapes, 64x64, 20 steps"
    _write(folder / "diffscale.json", {"description": about, "call": FLUX_CALL})


def train_clip(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The contrastive model; the folder loads with CLIPModel.from_pretrained."""
    net = clip.train(checkpoints / "clip", steps or clip.STEPS)
    write_clip(net, folder)
    _write(folder / "figures.json", {"training": _last(checkpoints / "clip")})


def write_clip(net: nn.Module, folder: Path) -> None:
    """The model folder, with tokenizer and image processor."""
    net.save_pretrained(folder)  # type: ignore[operator]
    clip_tokenizer().save_pretrained(folder)
    clip.image_processor().save_pretrained(folder)
    about = "CLIPModel trained on Shapes captions and their hard negatives (a verifier)"
    _write(folder / "diffscale.json", {"description": about, "call": {}})


RECIPES: Final[dict[str, Callable[[Path, Path, int | None], None]]] = {"flux": train_flux, "clip": train_clip}


def _last(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "log.jsonl").read_text().splitlines()[-1]))


def _write(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
