"""CLIPScore against transformers' own forward pass, and preprocessing against PIL's."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffscale_shapes import MODELS
from diffscale_shapes.train.text import CLIP_TOKENS, clip_tokenizer
from PIL import Image
from tools import clip_folder
from transformers import CLIPImageProcessorPil, CLIPModel

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.verifiers import load
from diffscale.verifiers.clip import ClipScore
from diffscale.verifiers.preprocess import Preprocessing

PROCESSOR = CLIPImageProcessorPil.from_pretrained(MODELS / "shapes-clip")
PROMPTS = ["a red circle", "two small blue squares above a star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def test_it_is_the_published_formula(folder: Path) -> None:
    net = CLIPModel.from_pretrained(folder).eval()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    tokens = clip_tokenizer()(PROMPTS, padding="max_length", max_length=CLIP_TOKENS, return_tensors="pt")
    with torch.no_grad():
        out = net(pixel_values=images * 2 - 1, **tokens)
    expected = 2.5 * (out.image_embeds * out.text_embeds).sum(-1).clamp(min=0)
    scores = ClipScore.load(str(folder))(images, PROMPTS)
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=1e-5)


def test_it_can_be_differentiated_in_the_pictures(folder: Path) -> None:
    images = torch.rand(1, 3, 96, 80, requires_grad=True)
    score = ClipScore.load(str(folder))(images, PROMPTS[:1]) - 1
    (gradient,) = torch.autograd.grad(score.sum(), images)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("size", [(100, 100), (64, 128), (40, 30), (301, 200)])
def test_preprocessing_is_that_of_published_clips(size: tuple[int, int]) -> None:
    # Mid-tones only, which neither pass clips: Pillow 13 may take them in another order.
    pixels = np.random.default_rng(0).integers(80, 176, (*size, 3), dtype=np.uint8)
    expected = PROCESSOR(Image.fromarray(pixels), return_tensors="pt").pixel_values
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    ours = Preprocessing(64, [0.5] * 3, [0.5] * 3).crop(image)
    assert (ours - expected).abs().max() < 3 / 127.5  # bytes, rounded twice


def test_wrong_names_are_told(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean 'clip'"):
        load("clop")
    with pytest.raises(UnknownName, match="did you mean 'model'"):
        load("clip modle=x")
    with pytest.raises(UnknownName, match="neither shipped"):
        load("clip model=nothing-like-it")
    with pytest.raises(DiffscaleError, match="could not be loaded"):
        load(f"clip model={tmp_path}")


def test_corrupt_weights_are_told(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (folder / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DiffscaleError, match="could not be loaded"):
        load(f"clip model={tmp_path}")
