"""Spatial relations and numeracy of T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) with an open detector.

The benchmark detects with UniDet, which knows a fixed list of classes. This uses OWLv2 (Minderer et al. 2023, arXiv
2306.09683), which finds what words name.
What differs: objects are asked for with their adjectives, so that of two chairs the black one is taken; scores of OWLv2
are lower than UniDet's; boxes that mostly overlap count once at 0.5, not 0.9; "on top of" is read as "on the top of",
which the benchmark's script forgets; near is within 150 of 512 pixels at any picture size; and a spatial score under
0.5 is kept, where the script makes it 0, for a search must see that one of two objects is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
import transformers
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale.models.files import pretrained, pretrained_network
from diffscale.types import Share, Verifier
from diffscale.verifiers.phrases import Reading, read_prompt

Kind = Literal["auto", "spatial", "numeracy"]

MODEL: Final = "google/owlv2-base-patch16-ensemble"
TEMPLATE: Final = "a photo of a {}"
"""How the publisher words queries."""

OVERLAP: Final = 0.5
INSIDE: Final = 0.9
"""Two boxes of a name are one object from this intersection over union, or with this share of one in the other."""

NEAR: Final = 150 / 512
"""Centres closer than this share of the longer edge, along one axis, are near: 150 pixels of the benchmark's 512."""

APART: Final = 0.1
"""Boxes that overlap more than this are only partly left of, above ... each other."""


@dataclass(frozen=True)
class Objects:
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
    processor: Any
    threshold: float
    _names: dict[str, Tensor] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, model: str = MODEL, device: Any = "cpu", threshold: float = 0.2) -> Owl:
        """By Hub id, folder or name; raises DiffscaleError if it cannot be loaded."""
        what = "OWLv2 model"
        net = pretrained_network(transformers.Owlv2ForObjectDetection, model, what, device)
        tokenizer = pretrained(transformers.AutoTokenizer, model, what)
        return cls(net, tokenizer, pretrained(transformers.AutoImageProcessor, model, what, backend="pil"), threshold)

    @torch.no_grad()
    def detect(self, images: Tensor, names: list[list[str]]) -> list[dict[str, Objects]]:
        """For each of `images` [B, 3, H, W] in [0, 1] the objects of its own `names`, by name; on the CPU.

        A box belongs to the name that fits it best. Not differentiable: pictures are rounded to bytes, as files are.
        """
        pictures = list(eight_bit(images).permute(0, 2, 3, 1).numpy())
        batch = self.processor(images=pictures, input_data_format="channels_last", return_tensors="pt")
        grid, _ = self.net.image_embedder(pixel_values=batch.pixel_values.to(self.net.device))
        features = grid.flatten(1, 2)
        middle, size = self.net.box_predictor(features, grid).chunk(2, -1)
        # Pictures are made square at the bottom and right before they are resized.
        boxes = torch.cat([middle - size / 2, middle + size / 2], -1) * max(images.shape[-2:])
        detected = []
        for row, asked in enumerate(names):
            unique = list(dict.fromkeys(asked))
            queries = torch.stack([self._embed(name) for name in unique])[None]
            logits, _ = self.net.class_predictor(features[row : row + 1], queries)
            scores, best = logits[0].sigmoid().max(-1)
            detected.append(
                {name: self._objects(boxes[row], scores, best == number) for number, name in enumerate(unique)}
            )
        return detected

    def _objects(self, boxes: Tensor, scores: Tensor, mine: Tensor) -> Objects:
        sure = mine & (scores > self.threshold)
        order = scores[sure].argsort(descending=True)
        boxes, scores = boxes[sure][order].cpu(), scores[sure][order].cpu()
        chosen: list[int] = []
        for number, box in enumerate(boxes):
            if not any(_same(box, boxes[other]) for other in chosen):
                chosen.append(number)
        return Objects(boxes[chosen], scores[chosen])

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


@dataclass
class Detector:
    """Verifier over an `Owl`, in [0, 1]; `category` says what is scored, `auto` a relation where the prompt has one.

    `spatial`: a quarter of each object's detection score, and half of the relation (1 if it holds along the stronger
    axis, less with overlap). `numeracy`: mean over the named objects of half for being there and half for the exact
    count; where a prompt says no count ("dogs"), being there is all. Not differentiable.
    """

    owl: Owl
    category: Kind = "auto"
    name: str = "detector"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        if images.requires_grad and torch.is_grad_enabled():
            raise DiffscaleError(f"Verifier {self.name!r} has no gradient: choose a search that needs none.")
        readings = [self._checked(prompt) for prompt in prompts]
        detected = self.owl.detect(images, [[phrase.object for phrase in reading.phrases] for reading in readings])
        longer = max(images.shape[-2:])
        scores = [
            spatial(objects, reading, longer) if self._is_spatial(reading) else numeracy(objects, reading)
            for objects, reading in zip(detected, readings, strict=True)
        ]
        return torch.tensor(scores, device=images.device)

    def _is_spatial(self, reading: Reading) -> bool:
        return self.category == "spatial" or (self.category == "auto" and reading.relation is not None)

    def _checked(self, prompt: str) -> Reading:
        reading = read_prompt(prompt)
        if not reading.phrases:
            raise DiffscaleError(f"Verifier {self.name!r} finds no object in the prompt {prompt!r}: name one.")
        if self.category == "spatial" and reading.relation is None:
            raise DiffscaleError(
                f"Verifier {self.name!r} finds no relation in the prompt {prompt!r}: write, for example, "
                '"on the left of", "above" or "next to", or set category=numeracy.'
            )
        return reading


def detector(model: str = MODEL, category: Kind = "auto", threshold: Share = 0.2, *, device: Any = "cpu") -> Verifier:
    """Spatial relations and counts of T2I-CompBench, in [0, 1]; `model` is an OWLv2 by Hub id or folder.

    `threshold`: the detection score from which an object counts, in [0, 1]. Raises DiffscaleError for weights that
    cannot be loaded, and later for a prompt without objects or, with category=spatial, without a relation.
    """
    return Detector(Owl.load(model, device, threshold), category)


def spatial(detected: dict[str, Objects], reading: Reading, longer: float) -> float:
    """The spatial score, in [0, 1], of the objects detected in a picture whose longer edge has `longer` pixels."""
    if reading.relation is None:
        raise DiffscaleError("A spatial score needs a prompt with a relation.")
    first, kind, second = reading.relation
    one, other = detected[first.object], detected[second.object]
    if first.object == second.object:
        # The two surest boxes, whichever way round fits.
        if len(one.boxes) < 2:
            return 0.25 * float(one.scores.sum())
        fits = max(holds(kind, one.boxes[a], one.boxes[b], longer) for a, b in ((0, 1), (1, 0)))
        return 0.25 * float(one.scores[:2].sum()) + 0.5 * fits
    score = 0.25 * float(one.scores[:1].sum() + other.scores[:1].sum())
    if len(one.boxes) and len(other.boxes):
        score += 0.5 * holds(kind, one.boxes[0], other.boxes[0], longer)
    return score


def numeracy(detected: dict[str, Objects], reading: Reading) -> float:
    """The numeracy score, in [0, 1], of the objects that were detected in a picture."""
    wanted: dict[str, list[int | None]] = {}
    for phrase in reading.phrases:
        wanted.setdefault(phrase.object, []).append(phrase.count)
    points = 0.0
    for name, counts in wanted.items():
        number = len(detected[name].boxes)
        exact = None in counts or number == sum(count or 0 for count in counts)
        points += (number > 0) * (0.5 + 0.5 * exact)
    return points / len(wanted)


def holds(kind: str, one: Tensor, other: Tensor, longer: float) -> float:
    """How much box `one` [4] is `left`, `right`, `above`, `below` or `near` the `other`, in [0, 1].

    Source: determine_position in UniDet_eval/2D_spatial_eval.py of github.com/Karine-Huang/T2I-CompBench.
    """
    across, down = ((other[:2] + other[2:] - one[:2] - one[2:]) / 2).tolist()
    if kind == "near":
        apart = max(abs(across), abs(down))
        return 1.0 if min(abs(across), abs(down)) < NEAR * longer else NEAR * longer / apart
    along, beside = (across, down) if kind in ("left", "right") else (down, across)
    if kind in ("right", "below"):
        along = -along
    if along <= abs(beside):
        return 0.0
    return min(1.0, APART / max(iou(one, other), 1e-9))


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
