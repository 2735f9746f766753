"""Which measure a category and a prompt get, and that the parts are the verifiers of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tools import clip_folder
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers import load
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.composition import Composition, category_of, measures_of
from diffscale.verifiers.detector import Detector, Objects
from diffscale.verifiers.phrases import read_prompt


class Fixed:
    """A part that gives the same score to all, and says of which prompts."""

    def __init__(self, score: float) -> None:
        self.score, self.asked = score, []

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        self.asked += prompts
        return torch.full((len(prompts),), self.score) + 0 * images.sum((1, 2, 3))


class Eyes:
    """Finds each object once, the first left of the second, with a score of 0.6."""

    def detect(self, images: Tensor, names: list[list[str]]) -> list[dict[str, Objects]]:
        boxes = torch.tensor([[0.0, 20, 10, 30], [40, 20, 50, 30], [20, 50, 30, 60]])
        return [
            {name: Objects(boxes[i : i + 1], torch.tensor([0.6])) for i, name in enumerate(dict.fromkeys(asked))}
            for asked in names
        ]


@pytest.mark.parametrize(
    ("prompt", "category", "measures"),
    [
        ("a green bench and a red car", "attribute", ("vqa",)),
        ("a dog on the left of a car", "spatial", ("spatial",)),
        ("three cats and one dog", "numeracy", ("numeracy",)),
        ("A person is walking with a dog", "non_spatial", ("cosine",)),
        ("The black chair is on top of the white table", "complex", ("vqa", "spatial")),
        ("The soft pillow caressed the tired head", "complex", ("vqa", "cosine")),
        ("The small dog sat on the left of the red car", "complex", ("vqa", "spatial", "cosine")),
    ],
)
def test_what_a_prompt_is_measured_by(prompt: str, category: str, measures: tuple[str, ...]) -> None:
    reading = read_prompt(prompt)
    assert category_of(reading) == category
    assert measures_of(category, reading) == measures  # type: ignore[arg-type]


def test_three_in_one_is_the_mean_of_what_a_prompt_has() -> None:
    vqa, clip, owl = Fixed(0.9), Fixed(0.3), Eyes()
    detectors = {kind: Detector(owl, kind) for kind in ("spatial", "numeracy")}  # type: ignore[arg-type]
    found = Composition({"vqa": vqa, "cosine": clip} | detectors)
    prompts = [
        "The small dog sat on the left of the red car",
        "a green bench and a red car",
        "a dog on the left of a car",
        "three cats and one dog",
        "A person is walking with a dog",
    ]
    spatial = 0.25 * 1.2 + 0.5
    expected = torch.tensor([(0.9 + spatial + 0.3) / 3, 0.9, spatial, 0.75, 0.3])
    torch.testing.assert_close(found(torch.rand(5, 3, 64, 64), prompts), expected)
    assert vqa.asked == prompts[:2] and clip.asked == [prompts[0], prompts[4]]


def test_a_category_that_is_told_holds_for_all_prompts() -> None:
    found = Composition({"vqa": Fixed(0.9), "cosine": Fixed(0.3)}, "complex")
    images = torch.rand(2, 3, 8, 8, requires_grad=True)
    scores = found(images, ["a green bench and a red car", "three cats"])
    torch.testing.assert_close(scores, torch.full((2,), 0.6))
    assert torch.autograd.grad(scores.sum(), images)[0].isfinite().all()
    with pytest.raises(DiffscaleError, match="loaded without what measures spatial"):
        found(images, ["a dog above a cat", "two cats"])


def test_only_what_the_category_needs_is_loaded(tmp_path: Path) -> None:
    found = load(f"composition category=non_spatial clip={clip_folder(tmp_path)}")
    images, prompts = torch.rand(2, 3, 64, 64), ["a star", "two circles"]
    torch.testing.assert_close(found(images, prompts), Clip.load(str(tmp_path)).cosine(images, prompts))
    with pytest.raises(DiffscaleError, match="BLIP question answering model"):
        load(f"composition category=attribute vqa={tmp_path} clip={tmp_path}")
