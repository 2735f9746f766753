"""Means of verifiers and of the judge of Shapes over a folder."""

from __future__ import annotations

import warnings
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from diffscale_shapes.prompts import suite
from diffscale_shapes.render import render
from diffscale_shapes.scenes import draw_scene
from PIL import Image

from diffscale._util.errors import DiffscaleError
from diffscale.bench.evaluation import means
from diffscale.metrics.bootstrap import interval
from diffscale.suites.pictures import Pictures


class Red:
    """Mean red in bytes; it cannot score pictures asked to be `bad`."""

    name = "red"

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = 255 * images[:, 0].mean((1, 2))
        return torch.where(torch.tensor([prompt == "bad" for prompt in prompts]), float("nan"), scores)


def _plain(tmp_path: Path, reds: list[int], prompts: list[str] | None) -> Pictures:
    where = tmp_path / "plain"
    where.mkdir()
    for i, red in enumerate(reds):
        Image.new("RGB", (4 + i % 2, 4), (red, 0, 0)).save(where / f"{i}.png")
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join(prompts or []))
    return Pictures.open(where, text if prompts else None)


def test_the_mean_of_a_verifier_is_over_prompts_and_drops_are_counted(tmp_path: Path) -> None:
    pictures = _plain(tmp_path, [10, 20, 60, 200], ["a", "a", "b", "bad"])
    with pytest.warns(UserWarning, match="Dropped a candidate of 'bad'"):
        found = means.verifier_mean(Red(), pictures, batch_size=2)
    assert found["mean"] == pytest.approx(37.5, rel=1e-5) and found["dropped"] == 1
    assert found == pytest.approx(interval([15.0, 60.0]) | {"dropped": 1}, rel=1e-5)


def test_prompts_are_asked_for_where_they_are_needed(tmp_path: Path) -> None:
    pictures = _plain(tmp_path, [10, 30], None)
    with pytest.raises(DiffscaleError, match="have no prompt, which red needs"):
        means.verifier_mean(Red(), pictures)

    class Blind(Red):
        needs_prompts = False

    # Each stands for itself: no two of them are of one prompt.
    assert means.verifier_mean(Blind(), pictures) == pytest.approx(interval([10.0, 30.0]) | {"dropped": 0}, rel=1e-5)


@pytest.mark.filterwarnings("ignore:Dropped")
def test_verifiers_that_say_nothing_of_a_folder_are_told(tmp_path: Path) -> None:
    pictures = _plain(tmp_path, [10], ["bad"])
    with pytest.raises(DiffscaleError, match="red could score none of the 1 pictures"):
        means.verifier_mean(Red(), pictures)
    for sign, said in {"components": "ranks", "record_level": "on the way", "choose": "chosen before"}.items():
        verifier = type("Odd", (Red,), {sign: None})()
        with pytest.raises(DiffscaleError, match=f"red .*{said}.* has no mean over a folder"):
            means.verifier_mean(verifier, pictures)


def _scenes(tmp_path: Path) -> Pictures:
    """A right picture of two prompts of each category, and a wrong one of the last."""
    chosen = [prompt for i, prompt in enumerate(suite("shapes-mini")) if i % 10 < 2]
    where = tmp_path / "shapes"
    where.mkdir()
    for i, prompt in enumerate(chosen):
        of = chosen[0] if i == len(chosen) - 1 else prompt
        pixels = render(draw_scene(of.description, Random(i)))
        Image.fromarray((pixels * 255).round().astype(np.uint8)).save(where / f"{i:02d}.png")
    text = tmp_path / "prompts.txt"
    text.write_text("\n".join(prompt.text for prompt in chosen))
    return Pictures.open(where, text)


def test_composition_is_the_judge_by_category(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = means.composition(_scenes(tmp_path))
    assert list(found) == ["all", "colour", "shape", "texture", "spatial", "numeracy", "complex"]
    for category, result in found.items():
        assert result["low"] <= result["mean"] <= result["high"]
        assert (result["mean"] > 0.999) == (category not in ("all", "complex"))
    assert 0.5 <= found["complex"]["mean"] < 0.9
    assert found["all"]["mean"] == pytest.approx((10 + 2 * found["complex"]["mean"]) / 12, abs=1e-3)


def test_pictures_that_are_not_of_shapes_have_no_composition(tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match="pictures of Shapes, 64x64"):
        means.composition(_plain(tmp_path, [1], ["a red circle"]))
    pictures: Any = _scenes(tmp_path)
    strange = Pictures(pictures.folder, pictures.paths, ("a bear on a skateboard", *pictures.prompts[1:]))
    with pytest.raises(DiffscaleError, match="cannot read 'a bear on a skateboard'"):
        means.composition(strange)
