"""Verifiers of classes on a class-conditional model: through `search`, and both commands that search."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from pipelines import with_text
from test_class_verifiers import dino_config
from tiny_classes import tiny_sit, tiny_vae
from tools import clip_folder
from transformers import (
    BitImageProcessor,
    BitImageProcessorPil,
    Dinov2ForImageClassification,
    ResNetConfig,
    ResNetForImageClassification,
)
from typer.testing import CliRunner

import diffscale
from diffscale.cli.main import app
from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.models.class_conditional import ClassModel, save_sit
from diffscale.models.sit import SiTDenoiser
from diffscale.types import ClassLabel
from diffscale.verifiers import load
from diffscale.verifiers.inception import load_inception

NAMES = ["tench", "dog", "toad", "tank", "tench"]
BY_CLASS = ["clip_zeroshot", "dino_linear", "inception"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A SiT of five classes in `sit`, and beside it a network for each verifier."""
    root = tmp_path_factory.mktemp("classes")
    call = {"num_inference_steps": 2, "solver": "euler"}
    save_sit(ClassModel(SiTDenoiser(tiny_sit()), tiny_vae(), NAMES, 2, {}), root / "sit", "a tiny SiT", NAMES, call)
    (root / "clip_zeroshot").mkdir()
    clip_folder(root / "clip_zeroshot")
    (root / "clip_zeroshot" / "classes.txt").write_text("red\nblue\nstar\ncircle\nsquare\n")
    torch.manual_seed(0)
    Dinov2ForImageClassification(dino_config(num_labels=5)).save_pretrained(root / "dino_linear")
    crop = {"size": {"shortest_edge": 28}, "crop_size": {"height": 28, "width": 28}}
    BitImageProcessor(**crop).save_pretrained(root / "dino_linear")
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=5)
    ResNetForImageClassification(config).eval().save_pretrained(root / "inception")
    BitImageProcessorPil(**crop).save_pretrained(root / "inception")
    extractor = load_inception(str(root / "inception"))
    real = torch.rand(40, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        statistics = Statistics.from_features(extractor(real).numpy(), extractor.name)
    save_reference([statistics], root / "reference.safetensors")
    return root


def verifier(name: str, folder: Path) -> str:
    if name == "oracle_fid":
        return f"oracle_fid model={folder / 'inception'} reference={folder / 'reference.safetensors'}"
    return f"{name} model={folder / name}"


@pytest.mark.parametrize("name", [*BY_CLASS, "oracle_fid"])
def test_the_best_score_is_that_of_the_class(name: str, folder: Path) -> None:
    text = verifier(name, folder)
    result = diffscale.search(str(folder / "sit"), "toad", verifier=text, nfe=8, device="cpu", gallery=4)
    assert result.candidates == 4 and result.dropped == 0
    found = load(text)
    with torch.no_grad():
        pictures = torch.stack([shown.image / 255 for shown in result.gallery])
        scores = {number: found(pictures, [ClassLabel("toad", number)] * 4) for number in (2, 3)}
    # Pictures are kept in 256 steps.
    torch.testing.assert_close(
        torch.tensor([shown.score for shown in result.gallery]), scores[2].float(), atol=0.02, rtol=0.005
    )
    assert result.best.score == max(shown.score for shown in result.gallery)
    assert torch.equal(scores[2], scores[3]) == (name == "oracle_fid")


def test_both_commands_take_classes_and_their_verifiers(folder: Path, tmp_path: Path) -> None:
    shared = ["--model", str(folder / "sit"), "--device", "cpu", "--budget", "8"]
    asked = ["generate", "3", "--verifier", verifier("inception", folder), "--output", str(tmp_path / "one"), *shared]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    assert 0 < json.loads((tmp_path / "one" / "result.json").read_text())["best"]["score"] < 1

    (tmp_path / "classes.txt").write_text("toad\n3\n")
    verifiers = [part for name in [*BY_CLASS, "oracle_fid"] for part in ("--verifier", verifier(name, folder))]
    asked = ["bench", str(tmp_path / "classes.txt"), *verifiers, "--output", str(tmp_path / "many"), *shared]
    done = CliRunner().invoke(app, asked, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    samples = [json.loads(line) for line in (tmp_path / "many" / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 4 * 2 and not any("error" in sample for sample in samples)
    text = verifier("dino_linear", folder)
    scored = {sample["prompt"]: sample["scores"][text]["best"] for sample in samples if sample["verifier"] == text}
    found = {sample["prompt"]: sample["score"]["best"] for sample in samples if sample["verifier"] == text}
    assert scored == pytest.approx(found, abs=0.02) and scored["toad"] != scored["3"]


def test_a_class_label_is_no_plain_text_on_any_model(folder: Path, sd: SimpleNamespace) -> None:
    """Two classes have one name, so only the id tells which; and a pipeline of texts hands it on."""
    text, seen = verifier("dino_linear", folder), []
    by_label = diffscale.search(str(folder / "sit"), ClassLabel("tench", 4), verifier=text, nfe=2, device="cpu")
    by_id = diffscale.search(str(folder / "sit"), 4, verifier=text, nfe=2, device="cpu")
    assert by_label.best.key == by_id.best.key and torch.equal(by_label.best.image, by_id.best.image)

    def look(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    with_text(sd.pipe)
    found, plain = (
        diffscale.search(
            sd.pipe, prompt, search="random", verifier=look, nfe=4, steps=2, pipe_args={"height": 8, "width": 8}
        )
        for prompt in (ClassLabel("a star", 3), "a star")
    )
    assert [getattr(prompt, "class_id", None) for prompt in seen] == [3, 3, None, None]
    assert torch.equal(found.best.image, plain.best.image)
