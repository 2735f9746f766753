"""Folders of small pictures, and an extractor that costs nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

Folder = Callable[..., Path]


class Colours:
    """Features: the mean of each channel and of its square; classes: which channel is brightest."""

    name = "colours 1"

    def __init__(self) -> None:
        self.seen = 0

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        self.seen += len(images)
        return torch.cat([images.mean((2, 3)), images.square().mean((2, 3))], 1)

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 40 * images.mean((2, 3))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Features are kept in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "diffscale" / "features"


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    """Makes `n` random pictures, 0.png and so on, of the given (height, width) in turn."""

    def make(name: str = "pictures", n: int = 3, seed: int = 0, sizes: tuple[tuple[int, int], ...] = ((8, 8),)) -> Path:
        rng = np.random.default_rng(seed)
        (tmp_path / name).mkdir()
        for i in range(n):
            pixels = rng.integers(256, size=(*sizes[i % len(sizes)], 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / name / f"{i:02d}.png")
        return tmp_path / name

    return make


@pytest.fixture
def colours() -> Colours:
    return Colours()
