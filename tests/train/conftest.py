"""Fixtures of trainings: one tiny base and its data for all tests."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import tiny
from commands import reset_accelerate


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """Folders `base`, `pictures`, `pairs`, the file `prompts`, and the `cache` of encodings."""
    root = tmp_path_factory.mktemp("train")
    return SimpleNamespace(
        base=tiny.save(root / "base"),
        pictures=tiny.pictures(root / "pictures"),
        pairs=tiny.pairs(root / "pairs"),
        prompts=tiny.prompts(root / "prompts.txt"),
        cache=root / "cache",
    )


@pytest.fixture(autouse=True)
def fresh_accelerator() -> Iterator[None]:
    """accelerate keeps its state for the whole process."""
    yield
    reset_accelerate()
