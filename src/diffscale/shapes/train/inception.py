"""shapes-inception: a small residual classifier of the 48 classes, whose features FID and its kin compare.

ResNetForImageClassification, the role that Inception-v3 (Szegedy et al. 2016) has for photographs.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BitImageProcessorPil, ResNetConfig, ResNetForImageClassification

from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.shapes.classes import CLASSES, draw_class_scene
from diffscale.shapes.scenes import CANVAS
from diffscale.shapes.train.autoencoder import render_batch
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.seeing import degrade
from diffscale.verifiers.inception import load_inception

STEPS: Final = 600
BATCH: Final = 64
REFERENCE: Final = 10_000  # pictures


def build() -> ResNetForImageClassification:
    """The network, untrained: basic blocks of 32, 64 and 128 channels at 16x16, 8x8 and 4x4."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=32,
            hidden_sizes=[32, 64, 128],
            depths=[2, 2, 2],
            layer_type="basic",
            num_labels=len(CLASSES),
            id2label=dict(enumerate(CLASSES)),
            label2id={name: label for label, name in enumerate(CLASSES)},
        )
    )


def image_processor() -> BitImageProcessorPil:
    """What the folders of shapes-inception and shapes-dino say of preprocessing: 64x64, [0, 1] to [-1, 1]."""
    return BitImageProcessorPil(
        size={"shortest_edge": CANVAS},
        crop_size={"height": CANVAS, "width": CANVAS},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


def train(folder: Path, steps: int = STEPS) -> ResNetForImageClassification:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = build()

    def loss(step: int) -> Tensor:
        x, labels = batch(Random(f"shapes-inception step {step}"), step)
        return F.cross_entropy(net(pixel_values=x).logits, labels)

    return fit(net, loss, folder=folder, steps=steps, lr=2e-3, average=0.99, every=200, evaluate=evaluate)  # type: ignore[return-value]


def batch(rng: Random, seed: int, size: int = BATCH) -> tuple[Tensor, Tensor]:
    """Weathered pictures [B, 3, 64, 64] in about [-1, 1] and their classes [B]."""
    labels = [rng.randrange(len(CLASSES)) for _ in range(size)]
    x = render_batch([draw_class_scene(label, rng) for label in labels])
    return degrade(x, torch.Generator().manual_seed(seed)), torch.tensor(labels)


@torch.no_grad()
def evaluate(net: nn.Module, step: int) -> dict[str, float]:
    """Share of fresh weathered pictures that are told right."""
    net.eval()
    x, labels = batch(Random("shapes classes evaluation"), 0, 480)
    return {"accuracy": float((net(pixel_values=x).logits.argmax(1) == labels).float().mean())}


def reference(folder: Path) -> None:
    """Write reference.safetensors beside the network in `folder`: statistics of the classes' true pictures."""
    extractor = load_inception(str(folder))
    rng = Random("shapes classes reference")
    features = []
    with torch.no_grad():
        for _ in range(REFERENCE // 250):
            x = render_batch([draw_class_scene(rng.randrange(len(CLASSES)), rng) for _ in range(250)])
            features.append(extractor((x + 1) / 2))
    whole = Statistics.from_features(torch.cat(features).numpy(), extractor.name)
    save_reference([replace(whole, features=None)], folder / "reference.safetensors")
