"""Tiny pipelines on disk, as `from_pretrained` finds them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import tiny_sd, with_text


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Stable Diffusion with a text encoder; its UNet also as variant fp16, with other weights."""
    folder: Path = tmp_path_factory.mktemp("models") / "sd"
    pipe = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1)).pipe
    torch.manual_seed(1)
    with_text(pipe)
    pipe.register_modules(text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.save_pretrained(folder)
    torch.nn.init.constant_(pipe.unet.conv_out.bias, 3.0)
    pipe.unet.save_pretrained(folder / "unet", variant="fp16")
    return str(folder)
