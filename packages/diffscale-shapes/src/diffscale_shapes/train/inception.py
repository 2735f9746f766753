"""shapes-inception: a small residual classifier of the 48 classes, whose features FID and its kin compare.

ResNetForImageClassification, the role that Inception-v3 (Szegedy et al. 2016) has for photographs.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import ResNetForImageClassification

from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.verifiers.inception import load_inception
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import CLASSES, draw_class_scene
from diffscale_shapes.train.loop import Step, fit
from diffscale_shapes.train.seeing import degrade
from diffscale_shapes.train.shipped import copy_rest, untrained

BATCH: Final = 64
REFERENCE: Final = 10_000  # pictures


def train(checkpoints: Path, folder: Path, steps: int) -> None:
    """The classifier; the folder loads with ResNetForImageClassification.from_pretrained."""
    torch.manual_seed(0)
    net = untrained(ResNetForImageClassification, "shapes-inception")

    def loss(step: Step) -> Tensor:
        x, labels = draw_classes(step.rng, step.generator, BATCH)
        return F.cross_entropy(net(pixel_values=x).logits, labels)

    fitted = partial(fit, lr=2e-3, average=0.99, every=200, evaluate=lambda mean: {"accuracy": class_accuracy(mean)})
    mean = fitted(net, loss, "shapes-inception step", checkpoints / "inception", steps)
    mean.save_pretrained(folder)
    copy_rest("shapes-inception", folder)
    write_reference(folder)


def draw_classes(rng: Random, generator: torch.Generator, count: int) -> tuple[Tensor, Tensor]:
    """Degraded pictures [count, 3, 64, 64] in about [-1, 1] and their classes [count]."""
    labels = [rng.randrange(len(CLASSES)) for _ in range(count)]
    x = render_batch([draw_class_scene(label, rng) for label in labels])
    return degrade(x, generator), torch.tensor(labels)


def class_accuracy(net: Any) -> float:
    """Share of fresh degraded pictures that a classifier of transformers tells right."""
    x, labels = draw_classes(Random("shapes classes evaluation"), torch.Generator().manual_seed(0), 480)
    return float((net(pixel_values=x).logits.argmax(1) == labels).float().mean())


@torch.no_grad()
def write_reference(folder: Path) -> None:
    """Write reference.safetensors beside the network in `folder`: statistics of the classes' true pictures."""
    extractor = load_inception(str(folder))
    rng = Random("shapes classes reference")
    features = []
    for _ in range(REFERENCE // 250):
        x = render_batch([draw_class_scene(rng.randrange(len(CLASSES)), rng) for _ in range(250)])
        features.append(extractor((x + 1) / 2))
    whole = Statistics.from_features(torch.cat(features).numpy(), extractor.name)
    save_reference([replace(whole, features=None)], folder / "reference.safetensors")
