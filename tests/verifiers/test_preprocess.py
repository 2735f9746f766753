"""Preprocessing against PIL's bicubic filter and published processors, to one step of a byte."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BitImageProcessor, BlipImageProcessor, CLIPImageProcessor

from diffscale.verifiers.preprocess import Preprocessing, resize, resize_like_tensorflow

MEAN, STD = [0.0] * 3, [1.0] * 3
SIZES = [(64, 64), (100, 80), (40, 30), (30, 77), (301, 200)]


def noise(size: tuple[int, int]) -> tuple[Image.Image, torch.Tensor]:
    """The hardest of pictures, as a file and as a tensor."""
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return Image.fromarray(pixels), torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255


def smooth(size: tuple[int, int]) -> tuple[Image.Image, torch.Tensor]:
    picture, _ = noise((9, 9))
    pixels = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
    return Image.fromarray(pixels), torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None] / 255


def off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The greatest difference of pictures in steps of a byte, ours rounded as theirs were."""
    return ((ours * 255).round() - theirs * 255).abs().max().item()


@pytest.mark.parametrize("size", SIZES)
def test_resizing_is_pils_bicubic(size: tuple[int, int]) -> None:
    picture, image = noise(size)
    # Pillow 13 chooses which axis goes first; until then, as for published scores, it was always the width.
    wide = picture.resize((56, size[0]), Image.Resampling.BICUBIC)
    assert off(resize(image, size[0], 56), tensor(wide)) < 1.01
    assert off(resize(image, 48, 56), tensor(wide.resize((56, 48), Image.Resampling.BICUBIC))) < 1.01


@pytest.mark.parametrize("size", SIZES)
def test_cutting_the_middle_is_that_of_published_processors(size: tuple[int, int]) -> None:
    picture, image = smooth(size)
    plain = {"image_mean": MEAN, "image_std": STD, "return_tensors": "pt"}
    crop = {"height": 48, "width": 48}
    clip = CLIPImageProcessor(size={"shortest_edge": 48}, crop_size=crop)(picture, **plain).pixel_values
    assert off(Preprocessing(48, MEAN, STD).crop(image), clip) < 1.01
    dino = BitImageProcessor(size={"shortest_edge": 56}, crop_size=crop)(picture, **plain).pixel_values
    assert off(Preprocessing(48, MEAN, STD, edge=56).crop(image), dino) < 1.01
    blip = BlipImageProcessor(size=crop)(picture, **plain).pixel_values
    assert off(Preprocessing(48, MEAN, STD).stretch(image), blip) < 1.01


@pytest.mark.parametrize("size", SIZES)
def test_letterboxing_is_that_of_hps(size: tuple[int, int]) -> None:
    """ResizeMaxSize in hpsv2/src/open_clip/transform.py: the longer edge fits, black is split to both sides."""
    picture, image = smooth(size)
    height, width = (round(edge * 48 / max(size)) for edge in size)
    expected = Image.new("RGB", (48, 48))
    corner = ((48 - width) // 2, (48 - height) // 2)
    expected.paste(picture.resize((width, height), Image.Resampling.BICUBIC), corner)
    assert off(Preprocessing(48, MEAN, STD).letterbox(image), tensor(expected)) < 1.01


def test_means_and_deviations_are_per_channel() -> None:
    image = torch.full((1, 3, 8, 8), 0.5)
    out = Preprocessing(8, [0.5, 0.25, 0.0], [1.0, 0.5, 0.25]).stretch(image)
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([0.0, 0.5, 2.0]))


def test_tensorflow_takes_pixels_without_the_half_shift() -> None:
    row = torch.tensor([0.0, 1.0, 4.0]).expand(1, 3, 2, 3)
    out = resize_like_tensorflow(row, 2, 6)[0, 0, 0]
    torch.testing.assert_close(out, torch.tensor([0.0, 0.5, 1.0, 2.5, 4.0, 4.0]))  # positions 0, 0.5, ... 2.5


@pytest.mark.parametrize("size", [(3, 2000), (2000, 3), (1, 1), (1, 5000)])
def test_the_thinnest_pictures_keep_a_line(size: tuple[int, int]) -> None:
    """3 * 48 / 2000 pixels would be none."""
    preprocessing = Preprocessing(48, MEAN, STD)
    seen = preprocessing.letterbox(torch.ones(2, 3, *size))
    assert seen.shape == (2, 3, 48, 48) and seen.sum((1, 2, 3)).min() > 3 * 47
    for kind in (preprocessing.crop, preprocessing.stretch):
        torch.testing.assert_close(kind(torch.ones(2, 3, *size)), torch.ones(2, 3, 48, 48))
