"""OWLv2 (Minderer et al. 2023, arXiv 2306.09683): boxes of what words name, one box an object."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoTokenizer, Owlv2ForObjectDetection

from diffscale._util.pixels import eight_bit
from diffscale.models.files import pretrained
from diffscale.models.locate import locate

MODEL: Final = "google/owlv2-base-patch16-ensemble"
TEMPLATE: Final = "a photo of a {}"
"""How the publisher words queries."""

OVERLAP: Final = 0.5
INSIDE: Final = 0.9
"""Two boxes of a name are one object from this intersection over union, or with this share of one in the other."""


@dataclass(frozen=True)
class Found:
    """Objects of one name in one picture, the surest first: `boxes` [N, 4], x0, y0, x1, y1 in pixels, `scores` [N]."""

    boxes: Tensor
    scores: Tensor


@dataclass
class Owl:
    """An `Owlv2ForObjectDetection` with its tokenizer and preprocessing. Names are embedded once.

    `threshold`: the score, in [0, 1], from which a box counts.
    """

    net: Any
    tokenizer: Any
    images: Any
    threshold: float
    _names: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, model: str | None = None, device: Any = "cpu", threshold: float = 0.2) -> Owl:
        """By Hub id, folder or name; raises DiffscaleError if it cannot be loaded."""
        model = model or MODEL
        where, what = locate(model), "OWLv2 model"
        net = pretrained(
            lambda: Owlv2ForObjectDetection.from_pretrained(where, dtype=torch.float32, use_safetensors=True),
            model,
            what,
        )
        tokenizer = pretrained(lambda: AutoTokenizer.from_pretrained(where), model, what)
        images = pretrained(lambda: AutoImageProcessor.from_pretrained(where, backend="pil"), model, what)
        return cls(net.to(device).eval().requires_grad_(False), tokenizer, images, threshold)

    @torch.no_grad()
    def detect(self, images: Tensor, names: list[list[str]]) -> list[dict[str, Found]]:
        """For each of `images` [B, 3, H, W] in [0, 1] what is found of its own `names`, by name; on the CPU.

        A box belongs to the name that fits it best. Not differentiable: pictures are rounded to bytes, as files are.
        """
        whole = eight_bit(images).permute(0, 2, 3, 1).numpy()
        pixels = self.images(
            images=list(whole), input_data_format="channels_last", return_tensors="pt"
        ).pixel_values.to(self.net.device)
        grid, _ = self.net.image_embedder(pixel_values=pixels)
        features = grid.flatten(1, 2)
        centred = self.net.box_predictor(features, grid)
        middle, half = centred[..., :2], centred[..., 2:] / 2
        # Pictures are made square at the bottom and right before they are resized.
        boxes = torch.cat([middle - half, middle + half], -1) * max(images.shape[-2:])
        found = []
        for row, asked in enumerate(names):
            unique = list(dict.fromkeys(asked))
            queries = torch.stack([self._embed(name) for name in unique])[None]
            logits, _ = self.net.class_predictor(features[row : row + 1], queries)
            scores, best = logits[0].sigmoid().max(-1)
            found.append(
                {name: self._objects(boxes[row], scores, best == number) for number, name in enumerate(unique)}
            )
        return found

    def _objects(self, boxes: Tensor, scores: Tensor, mine: Tensor) -> Found:
        keep = mine & (scores > self.threshold)
        order = scores[keep].argsort(descending=True)
        boxes, scores = boxes[keep][order].cpu(), scores[keep][order].cpu()
        chosen: list[int] = []
        for at in range(len(boxes)):
            if not any(_same(boxes[at], boxes[other]) for other in chosen):
                chosen.append(at)
        return Found(boxes[chosen], scores[chosen])

    def _embed(self, name: str) -> Tensor:
        if name not in self._names:
            length = self.net.config.text_config.max_position_embeddings
            batch = self.tokenizer(
                [TEMPLATE.format(name)], padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.net.device)
            owl = self.net.owlv2
            pooled = owl.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
            self._names[name] = owl.text_projection(pooled)[0]
        return self._names[name]


def iou(one: Tensor, other: Tensor) -> float:
    """Intersection over union, in [0, 1], of two boxes [4] as x0, y0, x1, y1."""
    shared, first, second = _areas(one, other)
    return shared / max(first + second - shared, 1e-9)


def _same(one: Tensor, other: Tensor) -> bool:
    shared, first, second = _areas(one, other)
    return iou(one, other) > OVERLAP or shared > INSIDE * max(min(first, second), 1e-9)


def _areas(one: Tensor, other: Tensor) -> tuple[float, float, float]:
    size = (torch.minimum(one[2:], other[2:]) - torch.maximum(one[:2], other[:2])).clamp(min=0)
    return float(size.prod()), float((one[2:] - one[:2]).prod()), float((other[2:] - other[:2]).prod())
