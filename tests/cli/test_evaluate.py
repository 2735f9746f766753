"""`diffscale evaluate`: measures a folder, writes what it found, and says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from commands import run_diffscale
from diffscale_shapes.prompts import suite
from diffscale_shapes.render import render
from diffscale_shapes.scenes import CLASSES, draw_class_scene, draw_scene
from PIL import Image


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "200")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Right pictures of one prompt of each category, two of each, with their prompts."""
    folder, lines = tmp_path / "pictures", []
    folder.mkdir()
    for i, prompt in enumerate([prompt for prompt in suite("shapes-mini")[::10] for _ in range(2)]):
        pixels = (render(draw_scene(prompt.description, Random(i))) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02d}.png")
        lines.append(json.dumps({"file_name": f"{i:02d}.png", "text": prompt.text}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def _run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    return run_diffscale(monkeypatch, "evaluate", *arguments, "--device", "cpu")


def test_a_folder_is_measured(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, reference = tmp_path / "out" / "results.json", tmp_path / "reference.safetensors"
    assert _run(monkeypatch, pictures, "--features", "clip", "--output", output, "--save-reference", reference) == 0
    assert f"statistics for --reference are in {reference}" in capsys.readouterr().out
    asked = "fid, recall, cmmd, composition, clip"
    arguments = (pictures, "--metrics", asked, "--features", "clip", "--reference", reference, "--output", output)
    assert _run(monkeypatch, *arguments) == 0
    found = json.loads(output.read_text())
    assert list(found["metrics"]) == asked.split(", ") and found["pictures"] == 12
    assert found["metrics"]["fid"]["value"] == pytest.approx(0, abs=1e-4) and found["metrics"]["recall"]["value"] == 1
    assert found["metrics"]["composition"]["all"]["mean"] > 0.99
    scores = found["metrics"]["clip"]
    assert 0.3 < scores["low"] <= scores["mean"] <= scores["high"] <= 2.5 and scores["dropped"] == 0
    assert len(found["warnings"]) == 1
    said = capsys.readouterr().out
    for words in ("composition, spatial", f"{scores['mean']:.3f}", "warning: The Frechet distance of 12 to 12 pictures",
                  "12 pictures; intervals", f"results are in {output}"):  # fmt: skip
        assert words in said


def test_prompts_come_from_a_file(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts, output = tmp_path / "prompts.txt", tmp_path / "results.json"
    prompts.write_text("\n".join(f"{n} blue stars" for n in ("two", "three", "four") for _ in range(4)))
    arguments = (pictures, "--metrics", "composition", "--prompts", prompts, "--output", output, "--batch-size", "5")
    assert _run(monkeypatch, *arguments) == 0
    found = json.loads(output.read_text())["metrics"]["composition"]
    assert list(found) == ["all", "numeracy"] and found["all"]["mean"] < 0.5


class ByObjects:
    """Scores a picture by its mean red, and tells prompts of one object from others."""

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return images[:, 0].mean((1, 2))

    def category(self, prompt: str) -> str:
        return "several" if " and " in prompt else "one"


def test_a_verifier_with_categories_has_a_mean_for_each_and_their_mean(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output, prompts = tmp_path / "results.json", tmp_path / "prompts.txt"
    prompts.write_text("\n".join([f"star {i}" for i in range(9)] + [f"star {i} and circle" for i in range(3)]))
    metric = f"{__name__}:ByObjects"
    assert _run(monkeypatch, pictures, "--metrics", metric, "--prompts", prompts, "--output", output) == 0
    found = json.loads(output.read_text())["metrics"][metric]
    one, several = (found["categories"][name]["mean"] for name in ("one", "several"))
    assert found["mean"] == pytest.approx((9 * one + 3 * several) / 12) and one != several
    assert found["over_categories"] == pytest.approx((one + several) / 2)
    assert "mean of categories" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["PICTURES"], "Name at least one metric, as in --metrics clip,fid: cmmd"),
        (["PICTURES", "--metrics", "clop"], "did you mean 'clip'"),
        (["PICTURES", "--metrics", "fid,"], "Unknown metric ''"),
        (["PICTURES", "--metrics", "clip modle=x"], "did you mean 'model'"),
        (["PICTURES", "--metrics", "clip,ensemble of=clip,hps"], "ensemble ranks pictures within a pool"),
        (["PICTURES", "--metrics", "diffscale/clip model=a,b"], "'a,b'"),
        (["PICTURES", "--metrics", "fid", "--features", "clip"], "fid compares with a reference: give --reference"),
        (["PICTURES", "--metrics", "fid", "--features", "clpi"], "did you mean 'clip'"),
        (["PICTURES", "--metrics", "is", "--features", "clip"], "features clip tell no classes"),
        (["PICTURES", "--metrics", "cmmd", "--reference", "nowhere"], "There is no reference nowhere"),
        (["PICTURES", "--metrics", "cmmd", "--reference", "PICTURES/metadata.jsonl"], "cannot be read: give a folder"),
        (["PICTURES", "--metrics", "clip", "--batch-size", "0"], "batch_size"),
        (["PICTURES", "--metrics", "clip", "--prompts", "PICTURES/00.png"], "The prompts in"),
        (["PICTURES", "--metrics", "composition", "--output", "PICTURES/00.png/x.json"], "choose another place"),
        (["nowhere", "--metrics", "clip"], "There is no folder nowhere"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_is_2(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert _run(monkeypatch, *(word.replace("PICTURES", str(pictures)) for word in arguments)) == 2
    said = capsys.readouterr().err
    assert message in said and said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
    "metrics", [["composition"], ["clip"], ["cmmd", "--features", "clip", "--reference", "itself"]]
)
@pytest.mark.parametrize("kept", [20, 60, -400])
def test_a_damaged_first_picture_is_named(
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    metrics: list[str],
    kept: int,
) -> None:
    first = pictures / "00.png"
    first.write_bytes(first.read_bytes()[:kept])
    metrics = [str(pictures) if word == "itself" else word for word in metrics]
    assert _run(monkeypatch, pictures, "--metrics", *metrics, "--output", tmp_path / "results.json") == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: The picture {first} cannot be read: mend or remove it (") and said.count("\n") == 1


def test_a_suite_of_classes_gives_pictures_their_classes_back(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder, lines = tmp_path / "classes", []
    folder.mkdir()
    for label in (47, 3, 20):
        pixels = (render(draw_class_scene(label, Random(label))) * 255).round().astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{label}.png")
        article = "an" if CLASSES[label][0] in "aeiou" else "a"
        lines.append(json.dumps({"image": f"{label}.png", "prompt": f"{article} {CLASSES[label]}"}))
    (folder / "samples.jsonl").write_text("\n".join(lines))
    arguments = ("--metrics", "inception output=probability", "--output", tmp_path / "results.json")
    assert _run(monkeypatch, folder, *arguments, "--prompts", "shapes-classes") == 0
    scores = json.loads((tmp_path / "results.json").read_text())["metrics"]["inception output=probability"]
    assert scores["low"] > 0.9
    assert _run(monkeypatch, folder, *arguments) == 2
    assert "needs a class" in capsys.readouterr().err
    assert _run(monkeypatch, pictures, *arguments, "--prompts", "shapes-classes") == 2
    assert "not of the suite shapes-classes" in capsys.readouterr().err
