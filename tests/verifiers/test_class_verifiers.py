"""Verifiers of classes: CLIP's zero-shot classifier and DINOv2's linear head, against transformers' own outputs."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from blip_reference import attend, linear, norm, pair
from PIL import Image
from safetensors.torch import save_file
from tools import Counting, clip_folder, random_state
from transformers import (
    AutoTokenizer,
    BitImageProcessor,
    CLIPModel,
    Dinov2Config,
    Dinov2ForImageClassification,
)

from diffscale._util.errors import DiffscaleError
from diffscale.suites.imagenet import TEMPLATES, inception_order, names
from diffscale.types import ClassLabel
from diffscale.verifiers import load
from diffscale.verifiers.classes import class_scores
from diffscale.verifiers.clip_zeroshot import ClipZeroShot
from diffscale.verifiers.dino import load_dino

SHAPES = ["circle", "square", "star"]
TEXTS = ["a red {}", "two of the {}"]
LABELS = [ClassLabel("star", 2), ClassLabel("circle", 0)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = clip_folder(tmp_path_factory.mktemp("clip"))
    (folder / "classes.txt").write_text("\n".join(SHAPES) + "\n")
    (folder / "templates.txt").write_text("\n".join(TEXTS) + "\n")
    return folder


@pytest.fixture(scope="module")
def dino(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dino")
    torch.manual_seed(0)
    Dinov2ForImageClassification(dino_config()).save_pretrained(folder)
    BitImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 28, "width": 28}).save_pretrained(folder)
    return folder


def dino_config(**changes: int) -> Dinov2Config:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "image_size": 42, "num_labels": 3}
    return Dinov2Config(patch_size=14, **{**sizes, **changes})


def pictures(n: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_the_zero_shot_classifier_is_the_published_recipe(clip: Path) -> None:
    net, tokenizer = CLIPModel.from_pretrained(clip).eval(), AutoTokenizer.from_pretrained(clip)
    images = pictures(2)
    with torch.no_grad():
        weights = []
        for shape in SHAPES:
            texts = [text.format(shape) for text in TEXTS]
            out = net.get_text_features(**tokenizer(texts, padding=True, return_tensors="pt")).pooler_output
            mean = (out / out.norm(dim=-1, keepdim=True)).mean(0)
            weights.append(mean / mean.norm())
        seen = net.get_image_features(pixel_values=images * 2 - 1).pooler_output
        logits = net.logit_scale.exp() * (seen / seen.norm(dim=-1, keepdim=True)) @ torch.stack(weights).T
    expected = logits.log_softmax(-1)[[0, 1], [2, 0]]
    torch.testing.assert_close(
        load(f"clip_zeroshot model={clip} output=log_probability")(images, LABELS), expected, atol=1e-4, rtol=1e-4
    )
    only = load(f"clip_zeroshot model={clip}")
    torch.testing.assert_close(only(images, LABELS), logits[[0, 1], [2, 0]], atol=1e-4, rtol=1e-4)


def test_each_class_is_embedded_once_and_a_logit_needs_only_its_own(clip: Path) -> None:
    found = load(f"clip_zeroshot model={clip} output=logit")
    assert isinstance(found, ClipZeroShot)
    found.tokenizer = counting = Counting(found.tokenizer)
    for _ in range(2):
        found(pictures(2), LABELS)
    assert counting.seen == ["a red circle", "two of the circle", "a red star", "two of the star"]


def test_there_are_1000_names_and_80_templates() -> None:
    assert len(names()) == len(set(inception_order())) == 1000
    assert [names()[i] for i in (0, 388, 999)] == ["tench", "giant panda", "toilet paper"]
    assert len(set(TEMPLATES)) == 80 and all(text.count("{}") == 1 for text in TEMPLATES)
    # Seven of them that the publisher found to be nearly as good alone.
    alone = {"itap of a {}.", "a bad photo of the {}.", "a origami {}.", "a photo of the large {}."}
    assert alone | {"a {} in a video game.", "art of the {}.", "a photo of the small {}."} <= set(TEMPLATES)


@pytest.mark.parametrize("output", ["logit", "probability", "log_probability"])
def test_outputs_of_a_class(output: str) -> None:
    logits = torch.tensor([[math.log(3), 0.0], [0.0, 200.0]])
    expected = {
        "logit": [math.log(3), 0.0],
        "probability": [0.75, 0.0],
        "log_probability": [math.log(0.75), -200.0],
    }[output]
    found = class_scores(logits, torch.tensor([0, 0]), output)  # type: ignore[arg-type]
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("size", [(80, 48), (33, 70)])
def test_the_linear_head_sees_what_its_processor_makes(dino: Path, size: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    net, images = Dinov2ForImageClassification.from_pretrained(dino).eval(), BitImageProcessor.from_pretrained(dino)
    made = images(Image.fromarray(pixels), return_tensors="pt").pixel_values
    with torch.no_grad():
        logits = net(pixel_values=made).logits
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    score = load(f"dino_linear model={dino} output=logit")(image, LABELS[:1])
    torch.testing.assert_close(score, logits[:, 2], atol=2e-3, rtol=0)  # bytes are rounded twice
    assert logits.std() > 0.03


def test_dino_features_are_the_class_token_of_whole_pictures(dino: Path, tmp_path: Path) -> None:
    found = load_dino(str(dino))
    images = pictures(2, 28, 28)
    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (found.preprocessing.mean, found.preprocessing.std))
    pixels = (images - mean) / std
    with torch.no_grad():
        expected = found.net.dinov2(pixel_values=pixels).pooler_output
    torch.testing.assert_close(found(images), expected)
    found.net.dinov2.save_pretrained(tmp_path)
    BitImageProcessor.from_pretrained(dino).save_pretrained(tmp_path)
    bare = load_dino(str(tmp_path))
    torch.testing.assert_close(bare(images), expected)
    assert len(bare.order) == 0 and bare.name != found.name == load_dino(str(dino)).name
    with pytest.raises(DiffscaleError, match="no linear head"):
        load(f"dino_linear model={tmp_path}")


def published(width: int, depth: int, side: int, classes: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes in facebook/dinov2-...-imagenet1k-1-layer, patches of 14 pixels."""
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.cls_token": (1, 1, width),
        "embeddings.mask_token": (1, width),
        "embeddings.position_embeddings": (1, (side // 14) ** 2 + 1, width),
        "embeddings.patch_embeddings.projection.weight": (width, 3, 14, 14),
        "embeddings.patch_embeddings.projection.bias": (width,),
    }
    for i in range(depth):
        name = f"encoder.layer.{i}."
        for part in ("query", "key", "value"):
            shapes |= pair(f"{name}attention.attention.{part}", width, width)
        shapes |= pair(f"{name}attention.output.dense", width, width)
        shapes |= pair(f"{name}norm1", width) | pair(f"{name}norm2", width)
        shapes |= pair(f"{name}mlp.fc1", 4 * width, width) | pair(f"{name}mlp.fc2", width, 4 * width)
        shapes |= {f"{name}layer_scale{k}.lambda1": (width,) for k in (1, 2)}
    shapes |= pair("layernorm", width)
    return {f"dinov2.{name}": shape for name, shape in shapes.items()} | pair("classifier", classes, 2 * width)


def test_published_names_load_and_mean_what_they_should(tmp_path: Path) -> None:
    state = random_state(published(width=16, depth=2, side=28, classes=3))
    config = dino_config(image_size=28)
    config.architectures = ["Dinov2ForImageClassification"]
    config.save_pretrained(tmp_path)
    BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    save_file(state, tmp_path / "model.safetensors")
    found, images = load_dino(str(tmp_path)), pictures(2, 28, 28)

    mean, std = (torch.tensor(each).view(3, 1, 1) for each in (found.preprocessing.mean, found.preprocessing.std))
    pixels = (images - mean) / std
    at = "dinov2.embeddings."
    kernel, bias = (state[f"{at}patch_embeddings.projection.{kind}"] for kind in ("weight", "bias"))
    x = torch.nn.functional.conv2d(pixels, kernel, bias, stride=14).flatten(2).transpose(1, 2)
    x = torch.cat([state[f"{at}cls_token"].expand(2, -1, -1), x], 1) + state[f"{at}position_embeddings"]
    for i in range(2):
        at = f"dinov2.encoder.layer.{i}."
        y = norm(state, f"{at}norm1", x, 1e-6)
        q, k, v = (linear(state, f"{at}attention.attention.{part}", y) for part in ("query", "key", "value"))
        x = x + state[f"{at}layer_scale1.lambda1"] * linear(state, f"{at}attention.output.dense", attend(q, k, v, 2))
        y = torch.nn.functional.gelu(linear(state, f"{at}mlp.fc1", norm(state, f"{at}norm2", x, 1e-6)))
        x = x + state[f"{at}layer_scale2.lambda1"] * linear(state, f"{at}mlp.fc2", y)
    x = norm(state, "dinov2.layernorm", x, 1e-6)
    logits = linear(state, "classifier", torch.cat([x[:, 0], x[:, 1:].mean(1)], -1))
    torch.testing.assert_close(found(images), x[:, 0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.logits(images), logits, atol=1e-4, rtol=1e-4)
    assert logits.std() > 0.1


def test_the_full_dino_has_the_published_sizes() -> None:
    layout = published(width=1024, depth=24, side=518, classes=1000)
    with torch.device("meta"):
        config = dino_config(hidden_size=1024, num_hidden_layers=24, image_size=518, num_labels=1000)
        state = Dinov2ForImageClassification(config).state_dict()
    assert sorted(tuple(value.shape) for value in state.values()) == sorted(layout.values())


@pytest.mark.parametrize("name", ["clip_zeroshot", "dino_linear"])
def test_a_batch_is_one_at_a_time_and_has_gradients(name: str, request: pytest.FixtureRequest) -> None:
    found = load(f"{name} model={request.getfixturevalue(name.split('_')[0])}")
    images = pictures(2, 50, 40).requires_grad_()
    together = found(images, LABELS)
    alone = torch.cat([found(images[i : i + 1], LABELS[i : i + 1]) for i in range(2)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    (gradient,) = torch.autograd.grad(together.sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_what_is_no_class_is_told(clip: Path, dino: Path, tmp_path: Path) -> None:
    for text in (f"clip_zeroshot model={clip}", f"dino_linear model={dino}"):
        with pytest.raises(DiffscaleError, match="'a red star' is a plain text"):
            load(text)(pictures(1), ["a red star"])
        with pytest.raises(DiffscaleError, match="classes 0 to 2, but 'cube' is class 3"):
            load(text)(pictures(1), [ClassLabel("cube", 3)])
    with pytest.raises(DiffscaleError, match="is a clip, not a DINOv2"):
        load(f"dino_linear model={clip}")
    (tmp_path / "bad.txt").write_text("a picture\n")
    with pytest.raises(DiffscaleError, match=r"must have \{\}"):
        load(f"clip_zeroshot model={clip} templates={tmp_path / 'bad.txt'}")
    with pytest.raises(DiffscaleError, match="could not be read"):
        load(f"clip_zeroshot model={clip} classes={tmp_path / 'none.txt'}")
