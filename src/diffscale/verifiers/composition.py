"""Composition as T2I-CompBench scores it (Huang et al. 2023, arXiv 2307.06350): for each category its own measure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Verifier
from diffscale.verifiers.clip_model import Clip
from diffscale.verifiers.detect import Owl
from diffscale.verifiers.detector import Detector
from diffscale.verifiers.phrases import Reading, read
from diffscale.verifiers.vqa import Vqa, load_vqa

Category = Literal["attribute", "spatial", "numeracy", "non_spatial", "complex"]

CLIP: Final = "openai/clip-vit-base-patch32"
"""The CLIP that T2I-CompBench measures non-spatial relations with."""


@dataclass
class Composition:
    """Verifier by category: `attribute` (colour, shape, texture) is BLIP-VQA, `spatial` and `numeracy` the detector.

    `non_spatial` is the cosine of CLIP, mostly within [0.2, 0.35]; the others lie in [0, 1]. `complex` is 3-in-1: the
    mean of the attribute score, of the spatial score where the prompt has a relation, and of the cosine where it has an
    action or no relation. The benchmark reads from its files which prompt has which and takes adjectives out of the
    text for the cosine; this reads the prompt and leaves it whole. `category` None: that of each prompt's words, see
    `category_of`, so that scores compare within a prompt only. Differentiable in the pictures where the detector takes
    no part.
    """

    vqa: Vqa | None
    owl: Owl | None
    clip: Clip | None
    category: Category | None = None
    name: str = "composition"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        readings = [read(prompt) for prompt in prompts]
        measures = [measures_of(self.category or category_of(reading), reading) for reading in readings]
        total = torch.zeros(len(images), device=images.device)
        for measure in ("vqa", "spatial", "numeracy", "cosine"):
            rows = [i for i, asked in enumerate(measures) if measure in asked]
            if rows:
                at = torch.tensor(rows, device=images.device)
                scores = self._measure(measure, images[at], [prompts[i] for i in rows]).to(images.device)
                shares = torch.tensor([1 / len(measures[i]) for i in rows], device=images.device)
                total = total.index_add(0, at, scores * shares)
        return total

    def _measure(self, measure: str, images: Tensor, prompts: list[str]) -> Tensor:
        if measure == "vqa" and self.vqa is not None:
            return self.vqa(images, prompts)
        if measure == "cosine" and self.clip is not None:
            return self.clip.cosine(images, prompts)
        if measure in ("spatial", "numeracy") and self.owl is not None:
            return Detector(self.owl, "spatial" if measure == "spatial" else "numeracy", self.name)(images, prompts)
        raise DiffscaleError(f"Verifier {self.name!r} was loaded without what measures {measure}.")


def composition(
    category: Category | None = None,
    vqa: str | None = None,
    detector: str | None = None,
    clip: str = CLIP,
    threshold: float = 0.2,
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """T2I-CompBench's score of a category, or of what each prompt's words are; most in [0, 1].

    `vqa`, `detector`, `clip`: a BLIP, an OWLv2 and a CLIP by Hub id, folder or name; only what the category needs is
    loaded. `threshold`: of the detector. Raises DiffscaleError for weights that cannot be loaded.
    """
    needs = {
        "attribute": {"vqa"},
        "spatial": {"detector"},
        "numeracy": {"detector"},
        "non_spatial": {"clip"},
    }.get(category or "", {"vqa", "detector", "clip"})
    return Composition(
        load_vqa(vqa, device) if "vqa" in needs else None,
        Owl.load(detector, device, threshold) if "detector" in needs else None,
        Clip.load(clip, device) if "clip" in needs else None,
        category,
    )


def category_of(reading: Reading) -> Category:
    """The category that a prompt's words suggest.

    A number word makes it `numeracy`; a relation `spatial`, or `complex` if objects have attributes; else an action
    `non_spatial`, or `complex` if at least half of the objects have attributes; else it is `attribute`. A word before
    an object's last is taken for an attribute.
    """
    described = [" " in phrase.name for phrase in reading.phrases]
    if any(phrase.counted for phrase in reading.phrases):
        return "numeracy"
    if reading.relation is not None:
        return "complex" if any(described) else "spatial"
    if reading.actions:
        return "complex" if described and 2 * sum(described) >= len(described) else "non_spatial"
    return "attribute"


def measures_of(category: Category, reading: Reading) -> tuple[str, ...]:
    """Which measures a category takes the mean of: `vqa`, `spatial`, `numeracy`, `cosine`."""
    if category == "complex":
        related = reading.relation is not None
        acting = bool(reading.actions) or not related
        return ("vqa", *(["spatial"] if related else []), *(["cosine"] if acting else []))
    single = {"attribute": "vqa", "spatial": "spatial", "numeracy": "numeracy", "non_spatial": "cosine"}
    return (single[category],)
