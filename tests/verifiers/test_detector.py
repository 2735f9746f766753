"""The detector against transformers' own detection, and the scores of T2I-CompBench on boxes drawn by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from diffscale_shapes.train.text import clip_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tools import Counting
from transformers import AutoTokenizer, Owlv2Config, Owlv2ForObjectDetection, Owlv2ImageProcessor

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers import load
from diffscale.verifiers.detector import Detector, Objects, Owl, holds, iou, numeracy, spatial
from diffscale.verifiers.phrases import read_prompt

NAMES = ["red circle", "blue star"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("owl")
    torch.manual_seed(7)
    tokenizer = clip_tokenizer()
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = Owlv2Config(
        text_config={**sizes, "vocab_size": len(tokenizer), "max_position_embeddings": 16},
        vision_config={**sizes, "image_size": 64, "patch_size": 16},
        projection_dim=16,
    )
    net = Owlv2ForObjectDetection(config)
    for value in net.parameters():  # so that boxes and scores differ
        torch.nn.init.normal_(value, std=0.5)
    net.save_pretrained(path)
    tokenizer.save_pretrained(path)
    Owlv2ImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


def test_boxes_are_those_of_the_published_pipeline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)
    net, images = Owlv2ForObjectDetection.from_pretrained(folder).eval(), Owlv2ImageProcessor.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = tokenizer([f"a photo of a {name}" for name in NAMES], padding="max_length", max_length=16)
    inputs = {key: torch.tensor(texts[key]) for key in ("input_ids", "attention_mask")}
    with torch.no_grad():
        out = net(**inputs, **images(Image.fromarray(pixels), return_tensors="pt"))
    [expected] = images.post_process_object_detection(out, threshold=0.69, target_sizes=[(40, 56)])

    monkeypatch.setattr(sys.modules[Owl.__module__], "_same", lambda one, other: False)
    owl = Owl.load(str(folder), threshold=0.69)
    [found] = owl.detect(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255, [NAMES])
    for label, name in enumerate(NAMES):
        mine = expected["labels"] == label
        order = expected["scores"][mine].argsort(descending=True)
        torch.testing.assert_close(found[name].scores, expected["scores"][mine][order], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(found[name].boxes, expected["boxes"][mine][order], atol=1e-2, rtol=1e-3)
    assert all(len(one.scores) for one in found.values()) and len(expected["scores"]) < 16


def test_a_batch_is_one_at_a_time_and_names_are_embedded_once(folder: Path) -> None:
    found = load(f"detector model={folder} threshold=0.1")
    assert isinstance(found, Detector)
    found.owl.tokenizer = counting = Counting(found.owl.tokenizer)
    images = torch.rand(3, 3, 30, 40, generator=torch.Generator().manual_seed(1))
    prompts = ["a star above a circle", "two red stars", "a circle"]
    together = found(images, prompts)
    alone = torch.cat([found(images[i : i + 1], prompts[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone)
    assert ((together >= 0) & (together <= 1)).all()
    assert sorted(counting.seen) == ["a photo of a circle", "a photo of a red star", "a photo of a star"]


def box(x: float, y: float, half: float = 10) -> torch.Tensor:
    return torch.tensor([x - half, y - half, x + half, y + half])


def seen(*boxes: torch.Tensor, score: float = 0.8) -> Objects:
    return Objects(torch.stack(boxes) if boxes else torch.zeros(0, 4), torch.full((len(boxes),), score))


@pytest.mark.parametrize(
    ("kind", "other", "expected"),
    [
        ("left", (300, 260), 1.0),
        ("left", (100, 260), 0.0),
        ("left", (300, 400), 0.0),  # further below than beside
        ("right", (100, 260), 1.0),
        ("above", (260, 400), 1.0),
        ("below", (260, 400), 0.0),
        ("below", (260, 100), 1.0),
        ("near", (300, 500), 1.0),  # one axis is enough
        ("near", (500, 450), 150 / 300),
        ("left", (205, 200), 0.1 / 0.6),  # intersection 15 x 20, union 25 x 20
    ],
)
def test_relations_are_those_of_the_benchmark(kind: str, other: tuple[int, int], expected: float) -> None:
    assert holds(kind, box(200, 200), box(*other), 512) == pytest.approx(expected)


@given(
    st.sampled_from(["left", "right", "above", "below", "near"]),
    st.tuples(*[st.integers(0, 500) for _ in range(4)]),
    st.sampled_from([0.25, 0.5, 2.0]),  # exact in floating point
)
def test_relations_have_opposites_and_no_scale(kind: str, at: tuple[int, ...], scale: float) -> None:
    one, other = box(*at[:2]), box(*at[2:])
    opposite = {"left": "right", "right": "left", "above": "below", "below": "above", "near": "near"}[kind]
    score = holds(kind, one, other, 512)
    assert 0 <= score <= 1
    assert holds(opposite, other, one, 512) == pytest.approx(score)
    assert holds(kind, scale * one, scale * other, 512 * scale) == pytest.approx(score)


def test_a_spatial_score_is_a_quarter_for_each_object_and_half_for_the_relation() -> None:
    reading = read_prompt("a dog on the left of a car")
    left, right = seen(box(100, 200)), seen(box(300, 200), score=0.6)
    assert spatial({"dog": left, "car": right}, reading, 512) == pytest.approx(0.25 * 1.4 + 0.5)
    assert spatial({"dog": right, "car": left}, reading, 512) == pytest.approx(0.25 * 1.4)
    assert spatial({"dog": left, "car": seen()}, reading, 512) == pytest.approx(0.2)
    same = read_prompt("a dog on the left of a dog")
    assert spatial({"dog": seen(box(300, 200), box(100, 200))}, same, 512) == pytest.approx(0.9)
    assert spatial({"dog": seen(box(300, 200))}, same, 512) == pytest.approx(0.2)


def test_numeracy_is_half_for_being_there_and_half_for_the_count() -> None:
    reading = read_prompt("three cats and one dog")
    cats, dog = [box(50 * i, 50) for i in range(1, 5)], box(300, 300)
    assert numeracy({"cat": seen(*cats[:3]), "dog": seen(dog)}, reading) == 1
    assert numeracy({"cat": seen(*cats), "dog": seen(dog)}, reading) == 0.75
    assert numeracy({"cat": seen(), "dog": seen(dog)}, reading) == 0.5
    assert numeracy({"dog": seen(dog)}, read_prompt("dogs")) == 1
    assert numeracy({"red star": seen(*cats[:3])}, read_prompt("a red star and two red stars")) == 1


def test_boxes_of_one_object_count_once(folder: Path) -> None:
    owl = Owl.load(str(folder), threshold=0.1)
    boxes = torch.stack([box(100, 100), box(102, 100), box(100, 100, 3), box(115, 100), box(300, 300)])
    found = owl._objects(boxes, torch.tensor([0.5, 0.9, 0.8, 0.4, 0.05]), torch.ones(5, dtype=torch.bool))
    torch.testing.assert_close(found.boxes, boxes[[1, 3]])  # one near-copy, one inside, one too unsure
    assert iou(boxes[0], boxes[4]) == 0


def test_what_cannot_be_scored_is_told(folder: Path, tmp_path: Path) -> None:
    images = torch.rand(1, 3, 32, 32)
    with pytest.raises(DiffscaleError, match="finds no relation in the prompt 'two stars'"):
        load(f"detector model={folder} category=spatial")(images, ["two stars"])
    with pytest.raises(DiffscaleError, match="finds no object"):
        load(f"detector model={folder}")(images, ["it is"])
    with pytest.raises(DiffscaleError, match="has no gradient"):
        load(f"detector model={folder}")(images.requires_grad_(), ["a star"])
    with pytest.raises(DiffscaleError, match="takes category as"):
        load(f"detector model={folder} category=place")
    with pytest.raises(DiffscaleError, match=r"OWLv2 model .* could not be loaded"):
        load(f"detector model={tmp_path}")
