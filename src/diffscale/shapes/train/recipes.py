"""One recipe per shipped network: train (or go on), write the folder, measure it, write its figures beside it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from diffusers import AutoencoderKL, FluxPipeline

from diffscale.shapes.train import autoencoder, flux
from diffscale.shapes.train.distil import distil
from diffscale.shapes.train.measure import measure_texts
from diffscale.shapes.train.sibling_recipes import (
    train_pixart,
    train_sdxl,
    train_sdxl_dpo,
    train_sdxl_sharpened,
    train_sit,
)
from diffscale.shapes.train.sit import SIZES
from diffscale.shapes.train.text import MAX_TOKENS
from diffscale.shapes.train.verifier_recipes import (
    MANIFEST,
    last,
    train_aesthetic,
    train_clip,
    train_dino,
    train_grader,
    train_inception,
    train_pick,
    train_reward,
    train_siglip,
    write_json,
)

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
        **{stage: last(checkpoints / name) for stage, name in stages.items()},
        "judge": measure_texts(FluxPipeline.from_pretrained(folder)),
    }
    write_json(folder / "figures.json", figures)


def write_flux(vae: AutoencoderKL, net: flux.TextToVelocity, folder: Path) -> None:
    """The pipeline folder, and how it is called.

    The large networks are stored in fp16, which diffusers loads as fp32; transformers would load the text
    encoders in the dtype that they are stored in, and the pipeline would mix dtypes.
    """
    pipe: FluxPipeline = flux.pipeline(vae.half(), net)
    net.transformer.half()
    pipe.save_pretrained(folder)
    about = "FluxPipeline trained on Shapes, 64x64, 20 steps"
    write_json(folder / "diffscale.json", {"description": about, **MANIFEST, "call": FLUX_CALL})


RECIPES: Final[dict[str, Callable[[Path, Path, int | None], None]]] = {
    "flux": train_flux,
    "clip": train_clip,
    "aesthetic": train_aesthetic,
    "reward": train_reward,
    "pick": train_pick,
    "grader": train_grader,
    "dino": train_dino,
    "siglip": train_siglip,
    "inception": train_inception,
    "pixart": train_pixart,
    "sdxl": train_sdxl,
    "sdxl-dpo": train_sdxl_dpo,
    "sdxl-sharpened": train_sdxl_sharpened,
    **{f"sit-{size}": partial(train_sit, size) for size in SIZES},
}
