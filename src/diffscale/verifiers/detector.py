"""Spatial relations and numeracy of T2I-CompBench (Huang et al. 2023, arXiv 2307.06350) with an open detector.

The benchmark detects with UniDet, which knows a fixed list of classes. This uses OWLv2, which finds what words name.
What differs: objects are asked for with their adjectives, so that of two chairs the black one is taken; scores of OWLv2
are lower than UniDet's; boxes that mostly overlap count once at 0.5, not 0.9; "on top of" is read as "on the top of",
which the benchmark's script forgets; near is within 150 of 512 pixels at any picture size; and a spatial score under
0.5 is kept, where the script makes it 0, for a search must see that one of two objects is there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Verifier
from diffscale.verifiers.detect import Found, Owl, iou
from diffscale.verifiers.phrases import Reading, read

Kind = Literal["auto", "spatial", "numeracy"]

NEAR: Final = 150 / 512
"""Centres closer than this share of the longer edge, along one axis, are near: 150 pixels of the benchmark's 512."""

APART: Final = 0.1
"""Boxes that overlap more than this are only partly left of, above ... each other."""


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
    _readings: dict[str, Reading] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        if images.requires_grad and torch.is_grad_enabled():
            raise DiffscaleError(f"Verifier {self.name!r} has no gradient: choose a search that needs none.")
        readings = [self._read(prompt) for prompt in prompts]
        found = self.owl.detect(images, [[phrase.object for phrase in reading.phrases] for reading in readings])
        longer = max(images.shape[-2:])
        scores = [
            spatial(seen, reading, longer) if self._is_spatial(reading) else numeracy(seen, reading)
            for seen, reading in zip(found, readings, strict=True)
        ]
        return torch.tensor(scores, device=images.device)

    def _is_spatial(self, reading: Reading) -> bool:
        return self.category == "spatial" or (self.category == "auto" and reading.relation is not None)

    def _read(self, prompt: str) -> Reading:
        if prompt not in self._readings:
            reading = read(prompt)
            if not reading.phrases:
                raise DiffscaleError(f"Verifier {self.name!r} finds no object in the prompt {prompt!r}: name one.")
            if self.category == "spatial" and reading.relation is None:
                raise DiffscaleError(
                    f"Verifier {self.name!r} finds no relation in the prompt {prompt!r}: write, for example, "
                    '"on the left of", "above" or "next to", or set category=numeracy.'
                )
            self._readings[prompt] = reading
        return self._readings[prompt]


def detector(
    model: str | None = None,
    category: Kind = "auto",
    threshold: float = 0.2,
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """Spatial relations and counts of T2I-CompBench, in [0, 1]; `model` is an OWLv2 by Hub id or folder.

    `threshold`: the detection score from which an object counts, in [0, 1]. Raises DiffscaleError for weights that
    cannot be loaded, and later for a prompt without objects or, with category=spatial, without a relation.
    """
    return Detector(Owl.load(model, device, threshold), category)


def spatial(found: dict[str, Found], reading: Reading, longer: float) -> float:
    """The spatial score, in [0, 1], of what was found in a picture whose longer edge has `longer` pixels."""
    if reading.relation is None:
        raise DiffscaleError("A spatial score needs a prompt with a relation.")
    first, kind, second = reading.relation
    one, other = found[first.object], found[second.object]
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


def numeracy(found: dict[str, Found], reading: Reading) -> float:
    """The numeracy score, in [0, 1], of what was found in a picture."""
    wanted: dict[str, int | None] = {}
    for phrase in reading.phrases:
        before = wanted.get(phrase.object, 0)
        wanted[phrase.object] = None if before is None or phrase.count is None else before + phrase.count
    points = 0.0
    for name, count in wanted.items():
        seen = len(found[name].boxes)
        points += (seen > 0) * (1.0 if count is None else 0.5 + 0.5 * (seen == count))
    return points / len(wanted)


def holds(kind: str, one: Tensor, other: Tensor, longer: float) -> float:
    """How much box `one` [4] is `left`, `right`, `above`, `below` or `near` the `other`, in [0, 1].

    Source: determine_position in UniDet_eval/2D_spatial_eval.py of github.com/Karine-Huang/T2I-CompBench.
    """
    across, down = ((other[:2] + other[2:] - one[:2] - one[2:]) / 2).tolist()
    if kind == "near":
        apart = max(abs(across), abs(down))
        return 1.0 if min(abs(across), abs(down)) < NEAR * longer else NEAR * longer / apart
    along, uncounted = (across, down) if kind in ("left", "right") else (down, across)
    if kind in ("right", "below"):
        along = -along
    if along <= abs(uncounted):
        return 0.0
    return min(1.0, APART / max(iou(one, other), 1e-9))
