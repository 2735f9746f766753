"""shapes-clip: a CLIP model trained contrastively on captions and their hard negatives.

The loss is CLIP's (Radford et al. 2021, section 2.3) with hard negative captions of each picture added to the
candidates of the image-to-text direction, as in NegCLIP (Yuksekgonul et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from diffscale.shapes.captions import write_caption
from diffscale.shapes.negatives import hard_negatives
from diffscale.shapes.render import render_batch
from diffscale.shapes.scenes import CATEGORIES, Scene, draw_scene
from diffscale.shapes.suite import held_out, suite, training_example
from diffscale.shapes.train.seeing import Sighted, fit_sighted
from diffscale.shapes.train.shipped import untrained
from diffscale.shapes.train.text import clip_tokenizer, tokenize

STEPS: Final = 2_000
VISION_STEPS: Final = 800  # on crowded pictures, before
BATCH: Final = 64
NEGATIVES: Final = 3  # hard negatives for each picture


def build() -> CLIPModel:
    """The network, untrained."""
    return untrained(CLIPModel, "shapes-clip")


def clip_ids(captions: Sequence[str]) -> Tensor:
    """Token ids [B, 26] as `shapes-clip` takes them."""
    return tokenize(clip_tokenizer(), captions).input_ids  # type: ignore[no-any-return]


class _Clip(Sighted):
    net: CLIPModel

    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of pictures [B, 128] and of captions [C, 128]."""
        text = self.net.text_projection(self.net.text_model(input_ids=tokens[0]).pooler_output)
        return self.net.visual_projection(seen.pooler_output), text


def train(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The contrastive model; the folder loads with CLIPModel.from_pretrained."""
    fit_clip(checkpoints / "clip", steps or STEPS).save_pretrained(folder)


def fit_clip(folder: Path, steps: int = STEPS) -> CLIPModel:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = _Clip(build())

    def objective(image: Tensor, text: Tensor) -> Tensor:
        image, text = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
        logits = net.net.logit_scale.exp().clamp(max=100) * image @ text.T
        label = torch.arange(BATCH)
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits[:, :BATCH].T, label)) / 2

    return fit_sighted(
        net,
        _draw,
        objective,
        "shapes-clip",
        folder,
        steps,
        vision_steps=VISION_STEPS,
        head_weight=1.0,
        every=500,
        evaluate=lambda mean: accuracy(mean.net),
    ).net


def _draw(rng: Random) -> tuple[list[Scene], list[Tensor]]:
    examples = [training_example(rng) for _ in range(BATCH)]
    captions = [write_caption(description, rng) for description, _ in examples]
    for description, scene in examples:
        near = [d for d in hard_negatives(description, scene, rng) if d.key() not in held_out()]
        wrong = [write_caption(d, rng) for d in near[:NEGATIVES]]
        captions += wrong + [""] * (NEGATIVES - len(wrong))  # one graph for every batch
    return [scene for _, scene in examples], [clip_ids(captions)]


def accuracy(net: CLIPModel) -> dict[str, float]:
    """Share of pairs in which the true caption scores above one hard negative, per category of the suite.

    For each of the 300 prompts: one fresh scene and every hard negative of it.
    """
    right: dict[str, list[bool]] = {category: [] for category in CATEGORIES}
    rng = Random("shapes-clip evaluation")
    for prompt in suite("shapes"):
        scene = draw_scene(prompt.description, rng)
        captions = [write_caption(d, rng) for d in hard_negatives(prompt.description, scene, rng)]
        ids = clip_ids([prompt.text, *captions])
        scores = net(pixel_values=render_batch([scene]), input_ids=ids).logits_per_image[0]
        right[prompt.description.category] += (scores[0] > scores[1:]).tolist()
    return {category: sum(values) / len(values) for category, values in right.items()}
