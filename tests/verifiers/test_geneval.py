"""GenEval's rules on objects placed by hand, and its detector and colours against transformers' own classes."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffscale_shapes.train.text import clip_tokenizer
from PIL import Image
from tools import clip_folder
from transformers import (
    CLIPImageProcessorPil,
    CLIPModel,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    Mask2FormerImageProcessor,
    SwinConfig,
    YolosConfig,
    YolosForObjectDetection,
    YolosImageProcessor,
)

from diffscale._util.errors import DiffscaleError
from diffscale.suites.prompts import categories
from diffscale.suites.prompts import load as load_prompts
from diffscale.verifiers import check, load
from diffscale.verifiers.geneval import COLORS, GenEval, relations
from diffscale.verifiers.instances import Instance, InstanceDetector, objects_of

FACTORY = "diffscale.verifiers.geneval:geneval"
LABELS = {0: "person", 1: "motorbike", 2: "mouse", 3: "potted plant"}
ROWS = [
    {"tag": "single_object", "include": [{"class": "person", "count": 1}], "prompt": "a photo of a person"},
    {
        "tag": "counting",
        "include": [{"class": "computer mouse", "count": 2}],
        "exclude": [{"class": "computer mouse", "count": 3}],
        "prompt": "a photo of two computer mouses",
    },
    {
        "tag": "colors",
        "include": [{"class": "person", "count": 1, "color": "red"}],
        "prompt": "a photo of a red person",
    },
    {
        "tag": "position",
        "include": [
            {"class": "motorcycle", "count": 1},
            {"class": "person", "count": 1, "position": ["left of", 0]},
        ],
        "prompt": "a photo of a person left of a motorcycle",
    },
]


def at(x: float, y: float, score: float = 0.95, half: float = 5) -> Instance:
    return Instance((x - half, y - half, x + half, y + half), score)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "evaluation_metadata.jsonl"
    path.write_text("\n".join(map(json.dumps, ROWS)))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def mask2former(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("mask2former")
    backbone = SwinConfig(
        image_size=64, embed_dim=8, depths=[1, 1, 1, 1], num_heads=[1, 1, 1, 1], window_size=2,
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    config = Mask2FormerConfig(
        backbone_config=backbone, feature_size=32, mask_feature_size=32, hidden_dim=32, encoder_feedforward_dim=16,
        dim_feedforward=16, encoder_layers=1, decoder_layers=2, num_attention_heads=2, num_queries=6, id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
    )  # fmt: skip
    net = Mask2FormerForUniversalSegmentation(config)
    torch.nn.init.normal_(net.class_predictor.weight, std=2.0)  # so that some class is sure
    net.save_pretrained(path)
    Mask2FormerImageProcessor(size={"height": 64, "width": 64}).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def yolos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("yolos")
    config = YolosConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=[32, 32],
        patch_size=8, num_detection_tokens=6, id2label=LABELS, label2id={name: i for i, name in LABELS.items()},
    )  # fmt: skip
    net = YolosForObjectDetection(config)
    for value in net.class_labels_classifier.parameters():
        torch.nn.init.normal_(value, std=1.0)
    net.save_pretrained(path)
    YolosImageProcessor(size={"height": 32, "width": 32}).save_pretrained(path)
    return path


def noise() -> np.ndarray[Any, np.dtype[np.uint8]]:
    return np.random.default_rng(0).integers(0, 256, (40, 56, 3), dtype=np.uint8)


def as_image(pixels: np.ndarray[Any, np.dtype[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1) / 255


def test_segments_are_those_of_mask2former(mask2former: Path) -> None:
    pixels = noise()
    net = Mask2FormerForUniversalSegmentation.from_pretrained(mask2former).eval()
    processor = Mask2FormerImageProcessor.from_pretrained(mask2former)
    with torch.no_grad():
        out = net(**processor(Image.fromarray(pixels), return_tensors="pt"))
    scores = out.class_queries_logits[0].softmax(-1)[:, :-1]
    found = InstanceDetector.load(str(mask2former)).detect(as_image(pixels), 0.01)
    every = [(name, each) for name, group in found.items() for each in group]
    assert every and all(group == sorted(group, key=lambda each: -each.score) for group in found.values())
    names = ["person", "motorcycle", "mouse", "pottedplant"]
    for name, each in every:
        assert each.mask is not None and each.mask.shape == (40, 56)
        rows, columns = np.nonzero(each.mask.numpy())
        assert each.box == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
        # The mean probability of its pixels is between a half and one.
        best = float(scores[:, names.index(name)].max())
        assert each.score <= best + 1e-5
    assert objects_of(found, "Potted  Plant") == found.get("pottedplant", [])


def test_boxes_are_those_of_a_detector(yolos: Path) -> None:
    pixels = noise()
    net, processor = YolosForObjectDetection.from_pretrained(yolos).eval(), YolosImageProcessor.from_pretrained(yolos)
    with torch.no_grad():
        out = net(**processor(Image.fromarray(pixels), return_tensors="pt"))
    [wanted] = processor.post_process_object_detection(out, threshold=0.2, target_sizes=[(40, 56)])
    found = InstanceDetector.load(str(yolos)).detect(as_image(pixels), 0.2)
    scores = sorted((each.score for group in found.values() for each in group), reverse=True)
    assert scores
    torch.testing.assert_close(torch.tensor(scores), wanted["scores"].sort(descending=True).values, atol=1e-4, rtol=0)
    first = wanted["boxes"][wanted["scores"].argmax()]
    best = max((each for group in found.values() for each in group), key=lambda each: each.score)
    torch.testing.assert_close(torch.tensor(best.box), first, atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize(
    ("x", "y", "wanted"),
    [
        (-30, 0, {"left of"}), (30, 0, {"right of"}), (0, -30, {"above"}), (0, 30, {"below"}),
        (-30, -30, {"left of", "above"}), (-30, -10, {"left of"}), (0, 0, set()),
        # Of boxes of 10 pixels 2 of the offset do not count: (3 - 2) / 3 is less than a half, (5 - 2) / 5 is more.
        (3, 0, set()), (5, 0, {"right of"}),
    ],
)  # fmt: skip
def test_relations_are_those_of_centres_less_a_tenth_of_both_sizes(x: float, y: float, wanted: set[str]) -> None:
    assert relations(at(50 + x, 50 + y), at(50, 50)) == wanted


def judge(file: Path, found: dict[str, list[Instance]], color: str = "red") -> GenEval:
    """GenEval with a detector that finds what it is told, above the threshold it is asked with."""

    def detect(image: torch.Tensor, threshold: float) -> dict[str, list[Instance]]:
        return {name: [each for each in group if each.score > threshold] for name, group in found.items()}

    from diffscale.suites.benchmarks import geneval_scenes

    detector = SimpleNamespace(detect=detect)
    made = GenEval(detector, None, geneval_scenes(str(file)), str(file))  # type: ignore[arg-type]
    made.color = lambda image, instance, name: color  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("prompt", "found", "score"),
    [
        (0, {"person": [at(10, 10, 0.31)]}, 1),
        (0, {"person": [at(10, 10, 0.3)]}, 0),
        (0, {"person": [at(10, 10), at(30, 30)]}, 1),  # one is asked for, and nothing forbids two
        (1, {"mouse": [at(10, 10), at(30, 30)]}, 1),
        (1, {"mouse": [at(10, 10), at(30, 30), at(50, 50)]}, 0),
        (1, {"mouse": [at(10, 10), at(30, 30), at(50, 50, 0.89)]}, 1),  # counted from 0.9 on
        (1, {"mouse": [at(10, 10)]}, 0),
        (2, {"person": [at(10, 10)]}, 1),
        (3, {"person": [at(10, 30)], "motorcycle": [at(40, 30)]}, 1),
        (3, {"person": [at(40, 30)], "motorcycle": [at(10, 30)]}, 0),
        (3, {"person": [at(10, 30)]}, 0),  # there is nothing to be left of
        # The surest of each is looked at.
        (3, {"person": [at(60, 30, 0.95), at(10, 30, 0.9)], "motorcycle": [at(40, 30)]}, 0),
    ],
)
def test_rules(file: Path, prompt: int, found: dict[str, list[Instance]], score: float) -> None:
    assert judge(file, found)(torch.rand(1, 3, 60, 60), [ROWS[prompt]["prompt"]]).tolist() == [score]


def test_another_colour_fails(file: Path) -> None:
    found = {"person": [at(10, 10)]}
    assert judge(file, found, "blue")(torch.rand(1, 3, 60, 60), ["a photo of a red person"]).tolist() == [0]


def test_colours_are_clips_on_a_grey_ground(file: Path, clip: Path, yolos: Path) -> None:
    loaded = load(f"{FACTORY} file={file} detector={yolos} clip={clip}")
    assert isinstance(loaded, GenEval)
    pixels = noise()
    mask = torch.zeros(40, 56, dtype=torch.bool)
    mask[5:25, 10:40] = True
    mask[8:10] = False
    said = loaded.color(as_image(pixels), Instance((10, 5, 40, 25), 0.9, mask), "bus")

    ground = Image.new("RGB", (56, 40), "#999")
    crop = Image.composite(Image.fromarray(pixels), ground, Image.fromarray(mask.numpy())).crop((10, 5, 40, 25))
    net, tokenizer = CLIPModel.from_pretrained(clip).eval(), clip_tokenizer()
    texts = [f"a photo of a {c} bus\na photo of a {c}-colored bus\na photo of a {c} object".split("\n") for c in COLORS]
    with torch.no_grad():
        features = [
            net.get_text_features(**tokenizer(three, padding=True, return_tensors="pt")).pooler_output
            for three in texts
        ]
        classifier = torch.stack([torch.nn.functional.normalize(each, dim=-1).mean(0) for each in features])
        classifier = torch.nn.functional.normalize(classifier, dim=-1)
        picture = CLIPImageProcessorPil.from_pretrained(clip)(crop, return_tensors="pt").pixel_values
        seen = net.get_image_features(pixel_values=picture).pooler_output
    assert said == COLORS[int((seen @ classifier.T).argmax())]


def test_a_search_and_an_evaluation_can_use_it(file: Path, clip: Path, mask2former: Path) -> None:
    loaded = load(f"{FACTORY} file={file} detector={mask2former} clip={clip} threshold=0.01 counting_threshold=0.01")
    prompts = [row["prompt"] for row in ROWS]
    scores = loaded(torch.rand(4, 3, 40, 40), prompts)
    assert scores.shape == (4,) and set(scores.tolist()) <= {0.0, 1.0}
    assert load_prompts(str(file)) == prompts
    assert categories(str(file)) == {row["prompt"]: row["tag"] for row in ROWS}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "There is no file .* give your own copy of that of GenEval, its evaluation_metadata.jsonl"),
        ("", "is empty"),
        ('{"prompt": "a"}', "is no file of GenEval.* a row has no tag"),
        ('{"tag": "colors", "include": [], "prompt": "a"}', "Mend include in"),
        ('{"tag": "colors", "include": [{"class": "cat", "count": 0}], "prompt": "a"}', "Mend include.0.count in"),
        (
            '{"tag": "position", "include": [{"class": "cat", "count": 1, "position": ["above", 0]}], "prompt": "a"}',
            "Mend the position of 'cat'",
        ),
        ("{", "Line 1 of .* cannot be read"),
    ],
)
def test_other_files_are_refused_in_a_sentence_before_anything_loads(
    content: str | None, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "wrong.jsonl"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DiffscaleError, match=said):
        check(f"{FACTORY} file={file}")


def test_other_mistakes(file: Path, clip: Path, yolos: Path, tmp_path: Path) -> None:
    loaded = load(f"{FACTORY} file={file} detector={yolos} clip={clip}")
    with pytest.raises(DiffscaleError, match=r"'a cat' is not in .*: take the prompts of that file"):
        loaded(torch.rand(1, 3, 40, 40), ["a cat"])
    with pytest.raises(DiffscaleError, match="is a clip, which finds no objects"):
        load(f"{FACTORY} file={file} detector={clip} clip={clip}")
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(ROWS[0] | {"include": [{"class": "unicorn", "count": 1}]}))
    with pytest.raises(DiffscaleError, match=r"Unknown class of .* 'unicorn'"):
        load(f"{FACTORY} file={other} detector={yolos} clip={clip}")
