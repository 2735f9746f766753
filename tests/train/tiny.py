"""A tiny SDXL pipeline in a folder, with text encoders that read letters; a reward; and data of Shapes' kind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_diffscale
from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline
from PIL import Image
from pipelines import _unet, _vae
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

PROMPTS = ["a red tree", "two blue cars", "a green hill", "a house by night"]
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def save(folder: Path) -> Path:
    """Write the pipeline to `folder`."""
    torch.manual_seed(0)
    pieces = [*_LETTERS, *(letter + "</w>" for letter in _LETTERS), "<|startoftext|>", "<|endoftext|>"]
    config = CLIPTextConfig(
        vocab_size=len(pieces),
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=12,
        projection_dim=16,
        bos_token_id=len(pieces) - 2,
        eos_token_id=len(pieces) - 1,
        pad_token_id=len(pieces) - 1,
    )
    tokenizers = [
        CLIPTokenizer(vocab={p: i for i, p in enumerate(pieces)}, merges=[], model_max_length=12) for _ in "12"
    ]
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=CLIPTextModel(config),
        text_encoder_2=CLIPTextModelWithProjection(config),
        tokenizer=tokenizers[0],
        tokenizer_2=tokenizers[1],
        unet=_unet(
            addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 16
        ),
        scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )
    pipe.save_pretrained(folder)
    call = {"num_inference_steps": 3, "height": 8, "width": 8, "guidance_scale": 3.0}
    (folder / "diffscale.json").write_text(json.dumps({"description": "tiny", "call": call}))
    return folder


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
