"""One recipe per shipped verifier network: train (or go on), write its folder in the format of the published ones."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from safetensors.torch import save_file
from torch import nn
from transformers import CLIPModel

from diffscale.models.files import save_network
from diffscale.shapes.classes import CLASSES
from diffscale.shapes.taste import ASPECTS
from diffscale.shapes.train import aesthetic, blip, clip, dino, grader, inception, preferences, siglip
from diffscale.shapes.train.generated import ShownPicture, generate_pictures
from diffscale.shapes.train.text import clip_tokenizer, t5_tokenizer
from diffscale.shapes.world import MODELS
from diffscale.verifiers.image_reward_net import ImageRewardNet

MANIFEST: Final[dict[str, Any]] = {
    "world": "shapes",
    "counterparts": {
        "aesthetic": "shapes-aesthetic",
        "clip": "shapes-clip",
        "dino": "shapes-dino",
        "image_reward": "shapes-reward",
        "inception": "shapes-inception",
        "pick_score": "shapes-pick",
        "siglip": "shapes-siglip",
    },
}
"""What diffscale.json of every model of Shapes says: whose pictures it makes, and what scores them by default."""

TEMPLATES: Final = ("a {}", "an {}", "one {}", "a picture of a {}", "an image of a {}", "a small {}", "a large {}")


def train_clip(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The contrastive model; the folder loads with CLIPModel.from_pretrained."""
    net = clip.train(checkpoints / "clip", steps or clip.STEPS)
    write_clip(net, folder, "CLIPModel trained on Shapes captions and their hard negatives (a verifier)")
    write_classes(folder)
    write_figures(folder, checkpoints / "clip")


def train_aesthetic(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The head on shapes-clip, from ratings of generated pictures."""
    head = aesthetic.train(_shown(checkpoints), checkpoints / "aesthetic", steps or aesthetic.STEPS)
    folder.mkdir(parents=True, exist_ok=True)
    _save(head, folder)
    write_json(folder / "config.json", {"clip": "shapes-clip"})
    describe(folder, "aesthetic predictor on shapes-clip, trained on noisy ratings (a verifier)")
    write_figures(folder, checkpoints / "aesthetic")


def train_reward(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small BLIP and head, from choices between generated pictures; `steps` are those on the choices."""
    start = _matching(checkpoints)
    net = preferences.train_reward(start, _shown(checkpoints), checkpoints / "reward", steps or preferences.STEPS)
    write_blip(net, folder, "small ImageReward (BLIP and head), trained on noisy choices (a verifier)")
    write_figures(folder, checkpoints / "blip", checkpoints / "reward")


def train_pick(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """shapes-clip, trained on, from choices between generated pictures."""
    start = CLIPModel.from_pretrained(MODELS / "shapes-clip")
    net = preferences.train_pick(start, _shown(checkpoints), checkpoints / "pick", steps or preferences.STEPS)
    write_clip(net, folder, "small PickScore (CLIPModel), trained on noisy choices (a verifier)")
    write_figures(folder, checkpoints / "pick")


def train_grader(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small BLIP with a head of marks, from grades of generated pictures; `steps` are those on the grades."""
    net = grader.train(_matching(checkpoints), _shown(checkpoints), checkpoints / "grader", steps or grader.STEPS)
    net.config["aspects"] = [*ASPECTS, "overall"]
    write_blip(net, folder, "small BLIP that gives marks for four aspects and overall (a verifier)")
    write_figures(folder, checkpoints / "grader")


def train_dino(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The self-supervised backbone and its head; the folder loads with Dinov2ForImageClassification."""
    net = dino.train(checkpoints / "dino", steps or dino.STEPS)
    net.half().save_pretrained(folder)
    inception.image_processor().save_pretrained(folder)
    describe(folder, "Dinov2ForImageClassification trained on Shapes without labels, with a linear head (a verifier)")
    write_figures(folder, checkpoints / "dino")


def train_siglip(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The sigmoid-loss model; the folder loads with SiglipModel.from_pretrained."""
    net = siglip.train(checkpoints / "siglip", steps or siglip.STEPS)
    net.half().save_pretrained(folder)
    t5_tokenizer().save_pretrained(folder)
    siglip.image_processor().save_pretrained(folder)
    describe(folder, "SiglipModel trained on Shapes captions (a verifier)")
    write_figures(folder, checkpoints / "siglip")


def train_inception(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The classifier; the folder loads with ResNetForImageClassification.from_pretrained."""
    net = inception.train(checkpoints / "inception", steps or inception.STEPS)
    net.save_pretrained(folder)
    inception.image_processor().save_pretrained(folder)
    inception.reference(folder)
    describe(folder, "ResNetForImageClassification of the 48 classes, for FID and Inception Score")
    write_figures(folder, checkpoints / "inception")


def write_clip(net: nn.Module, folder: Path, about: str) -> None:
    """A CLIPModel's folder, with tokenizer and image processor."""
    net.save_pretrained(folder)  # type: ignore[operator]
    clip_tokenizer().save_pretrained(folder)
    clip.image_processor().save_pretrained(folder)
    describe(folder, about)


def write_classes(folder: Path) -> None:
    """classes.txt and templates.txt, which `clip_zeroshot` makes a classifier of the 48 classes with."""
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n", encoding="utf-8")
    (folder / "templates.txt").write_text("\n".join(TEMPLATES) + "\n", encoding="utf-8")


def write_blip(net: ImageRewardNet, folder: Path, about: str) -> None:
    """The folder of a BLIP with a head, in fp16, with its tokenizer."""
    save_network(net.half(), net.config, folder)
    clip_tokenizer().save_pretrained(folder)
    describe(folder, about)


def describe(folder: Path, about: str) -> None:
    """diffscale.json, which makes a folder one of the shipped networks."""
    write_json(folder / "diffscale.json", {"description": about, "call": {}})


def write_figures(folder: Path, *trained: Path) -> None:
    """figures.json: the last line of each training's log."""
    write_json(folder / "figures.json", {path.name: last(path) for path in trained})


def write_json(path: Path, content: dict[str, Any]) -> None:
    """One JSON object, indented."""
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def last(folder: Path) -> dict[str, Any]:
    """The last line of a training's log."""
    return dict(json.loads((folder / "log.jsonl").read_text(encoding="utf-8").splitlines()[-1]))


def _matching(checkpoints: Path) -> ImageRewardNet:
    """What reward and grader start from: trained once, in full, since both have it from the same folder."""
    return blip.train(checkpoints / "blip")


def _shown(checkpoints: Path) -> Sequence[Sequence[ShownPicture]]:
    return generate_pictures(checkpoints / "generated")


def _save(net: nn.Module, folder: Path) -> None:
    save_file({name: value.contiguous() for name, value in net.state_dict().items()}, folder / "model.safetensors")
