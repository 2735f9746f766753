"""Recipes of the siblings of shapes-flux, on its autoencoder: text-to-image, a LoRA, and class-conditional."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from diffusers import DiffusionPipeline, FluxPipeline, StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffscale.models.class_conditional import ClassModel, save_sit
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.models.sit import SiTDenoiser
from diffscale.shapes.classes import CLASSES
from diffscale.shapes.scenes import Description
from diffscale.shapes.train import flux, pixart, sdxl, sit
from diffscale.shapes.train.generated import generate_pictures
from diffscale.shapes.train.measure import measure_classes, measure_texts
from diffscale.shapes.train.text import MAX_TOKENS
from diffscale.shapes.train.verifier_recipes import MANIFEST, last, write_json

PIXART_CALL: Final[dict[str, Any]] = {
    "num_inference_steps": 20,
    "height": 64,
    "width": 64,
    "guidance_scale": 3.0,
    "max_sequence_length": MAX_TOKENS,
    "use_resolution_binning": False,
    "clean_caption": False,
}
SDXL_CALL: Final[dict[str, Any]] = {"num_inference_steps": 20, "height": 64, "width": 64, "guidance_scale": 3.0}
SIT_CALL: Final[dict[str, Any]] = {"num_inference_steps": 10, "solver": "heun", "guidance_scale": 1.0}
"""The plain calls that every figure uses."""


def train_pixart(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small PixArt-Sigma; the folder loads with PixArtSigmaPipeline.from_pretrained."""
    base = load_pipeline("shapes-flux", LoadOptions(device="cpu"))
    net = pixart.train(base.text_encoder_2, *scenes(base, checkpoints), checkpoints / "pixart", steps or pixart.STEPS)
    pipe = pixart.pipeline(base.vae.half(), net)
    net.transformer.half()
    _write(
        pipe, folder, "PixArtSigmaPipeline trained on Shapes, 64x64, 20 DDIM steps", PIXART_CALL, "pixart", checkpoints
    )


def train_sdxl(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small SDXL; the folder loads with StableDiffusionXLPipeline.from_pretrained."""
    base = load_pipeline("shapes-flux", LoadOptions(device="cpu"))
    net = sdxl.train(*scenes(base, checkpoints), checkpoints / "sdxl", steps or sdxl.STEPS)
    pipe = sdxl.pipeline(base.vae.half(), net)
    net.unet.half()
    _write(
        pipe,
        folder,
        "StableDiffusionXLPipeline trained on Shapes, 64x64, 20 DDIM steps",
        SDXL_CALL,
        "sdxl",
        checkpoints,
    )


def train_sdxl_dpo(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A LoRA of shapes-sdxl; the folder loads with load_lora_weights."""
    from diffscale.shapes.train import dpo  # needs peft, which is an extra

    pipe = load_pipeline("shapes-sdxl", LoadOptions(device="cpu"))
    lora = dpo.train(pipe, generate_pictures(checkpoints / "generated"), checkpoints / "sdxl-dpo", steps or dpo.STEPS)
    StableDiffusionXLPipeline.save_lora_weights(folder, unet_lora_layers={name: t.half() for name, t in lora.items()})
    about = "shapes-sdxl with a LoRA trained on noisy choices by Diffusion-DPO"
    write_json(folder / "diffscale.json", {"description": about, "base": "shapes-sdxl"})
    _figures(folder, "sdxl-dpo", checkpoints)


def train_sdxl_sharpened(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A LoRA of shapes-sdxl; the folder loads with load_lora_weights."""
    from diffscale.shapes.train import sharpened  # needs peft, which is an extra

    run = sharpened.train(checkpoints / "sdxl-sharpened", steps or sharpened.STEPS)
    file = "pytorch_lora_weights.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half() for name, t in load_file(run / file).items()}, folder / file, {"format": "pt"})
    about = "shapes-sdxl with a LoRA of RLHF Diffusion-Sharpening by shapes-clip"
    write_json(folder / "diffscale.json", {"description": about, "base": "shapes-sdxl"})
    told = json.loads((run / "result.json").read_text())
    kept = {name: told[name] for name in ("steps", "seconds_per_step", "reward", "peak_memory_bytes", "last")}
    _measured(folder, kept)


def train_sit(size: str, checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A SiT of size s, b or l, in the layout of the published ones."""
    vae = load_pipeline("shapes-flux", LoadOptions(device="cpu")).vae
    latents = sit.encode_classes(vae, checkpoints / "sit")
    net = sit.train(size, latents, checkpoints / f"sit-{size}", steps or sit.STEPS)
    model = ClassModel(SiTDenoiser(net.half()), vae, CLASSES, SIT_CALL["num_inference_steps"], {})
    about = f"SiT ({size}) trained on the 48 classes of Shapes, 64x64, 10 intervals of Heun"
    save_sit(model, folder, about, CLASSES, SIT_CALL, vae="../shapes-flux/vae", manifest=MANIFEST)
    _figures(folder, f"sit-{size}", checkpoints)


def scenes(base: FluxPipeline, checkpoints: Path) -> tuple[list[Description], Tensor]:
    """Descriptions and latents [scenes, 8, 8, 8] of the scenes that shapes-flux was trained on.

    The shift of the autoencoder is taken back, and out of its configuration: these pipelines know a scale alone.
    """
    descriptions, packed = flux.encode_scenes(base.vae, checkpoints / "flux", flux.SCENES)
    config = base.vae.config
    latents = FluxPipeline._unpack_latents(packed, 64, 64, 8) + config.shift_factor * config.scaling_factor
    base.vae.register_to_config(shift_factor=None)
    return descriptions, latents


def _write(
    pipe: DiffusionPipeline, folder: Path, about: str, call: dict[str, Any], name: str, checkpoints: Path
) -> None:
    pipe.save_pretrained(folder)
    write_json(folder / "diffscale.json", {"description": about, **MANIFEST, "call": call})
    _figures(folder, name, checkpoints)


def _figures(folder: Path, name: str, checkpoints: Path) -> None:
    _measured(folder, last(checkpoints / name))


def _measured(folder: Path, training: dict[str, Any]) -> None:
    model = load_pipeline(str(folder), LoadOptions(device="cpu"))
    heldout_scores = (measure_classes if isinstance(model, ClassModel) else measure_texts)(model, n=16)
    write_json(folder / "figures.json", {"training": training, "judge": heldout_scores})
