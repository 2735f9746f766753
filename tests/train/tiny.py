"""Tiny pipelines in folders, with text encoders that read letters; a reward; and data of Shapes' kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_diffscale
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionXLPipeline,
)
from families import _flow_vae, _flux_net
from PIL import Image
from pipelines import _unet, _vae, letters
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
)

PROMPTS = ["a red tree", "two blue cars", "a green hill", "a house by night"]


def _texts(projected: bool) -> CLIPTextModel | CLIPTextModelWithProjection:
    count = len(letters(12))
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=16,
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=count - 1,
    )
    return CLIPTextModelWithProjection(config) if projected else CLIPTextModel(config)


def _t5(width: int) -> tuple[T5EncoderModel, T5Tokenizer]:
    pieces = ["<pad>", "</s>", "<unk>", "▁", *"abcdefghijklmnopqrstuvwxyz"]
    config = T5Config(vocab_size=len(pieces), d_model=width, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    tokenizer = T5Tokenizer(vocab=[(piece, -1.0) for piece in pieces], extra_ids=0, model_max_length=12)
    return T5EncoderModel(config), tokenizer


def _written(pipe: Any, folder: Path, **call: Any) -> Path:
    pipe.save_pretrained(folder)
    (folder / "diffscale.json").write_text(json.dumps({"description": "tiny", "call": call}))
    return folder


def save(folder: Path) -> Path:
    """Write a tiny SDXL to `folder`."""
    torch.manual_seed(0)
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_texts(False),
        text_encoder_2=_texts(True),
        tokenizer=letters(12),
        tokenizer_2=letters(12),
        unet=_unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    return _written(pipe, folder, num_inference_steps=3, height=8, width=8, guidance_scale=3.0)


def save_sd3(folder: Path) -> Path:
    """Write a tiny Stable Diffusion 3.5 to `folder` that is called by the pipeline's defaults in 2 steps."""
    torch.manual_seed(0)
    text, reader = _t5(16)
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=32,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
        qk_norm="rms_norm",
    )
    pipe = StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=_flow_vae(16),
        text_encoder=_texts(True),
        tokenizer=letters(12),
        text_encoder_2=_texts(True),
        tokenizer_2=letters(12),
        text_encoder_3=text,
        tokenizer_3=reader,
    )
    return _written(pipe, folder, num_inference_steps=2)


def save_flux(folder: Path) -> Path:
    """Write a tiny FLUX.1 dev to `folder` that is called by the pipeline's defaults in 2 steps."""
    torch.manual_seed(0)
    text, reader = _t5(32)
    pipe = FluxPipeline(
        transformer=_flux_net(True, pooled=8),
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
        vae=_flow_vae(),
        text_encoder=_texts(False),
        tokenizer=letters(12),
        text_encoder_2=text,
        tokenizer_2=reader,
    )
    return _written(pipe, folder, num_inference_steps=2)


def pictures(folder: Path) -> Path:
    """An image-caption folder."""
    folder.mkdir()
    lines = []
    for i, prompt in enumerate(PROMPTS):
        pixels = np.random.default_rng(i).integers(0, 256, (10, 9, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        lines.append(json.dumps({"file_name": f"{i}.png", "text": prompt}))
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def pairs(folder: Path) -> Path:
    """Preference pairs in the layout of Pick-a-Pic."""
    pictures(folder)
    lines = [
        json.dumps({"jpg_0": f"{i}.png", "jpg_1": f"{(i + 1) % 4}.png", "label_0": i % 2, "caption": prompt})
        for i, prompt in enumerate(PROMPTS)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def prompts(file: Path) -> Path:
    """A file of prompts."""
    file.write_text("\n".join(PROMPTS) + "\n")
    return file


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """A reward, with a gradient: `--reward tiny:redness`."""
    return images[:, 0].mean((1, 2))


def darkness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Another, in other units."""
    return -100 * images.mean((1, 2, 3))


def numb(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """One without a gradient."""
    return redness(images.detach(), prompts)


def cli(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """The exit code of `diffscale train ...`."""
    return run_diffscale(monkeypatch, "train", *arguments)
