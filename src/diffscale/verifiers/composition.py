"""Composition as T2I-CompBench scores it (Huang et al. 2023, arXiv 2307.06350): for each category its own measure."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Share, Verifier
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.detector import MODEL as OWL
from diffscale.verifiers.detector import Detector, Owl
from diffscale.verifiers.phrases import Reading, read_prompt
from diffscale.verifiers.vqa import MODEL as VQA
from diffscale.verifiers.vqa import vqa as load_vqa

Category = Literal["attribute", "spatial", "numeracy", "non_spatial", "complex"]

NAME: Final = "composition"
CLIP: Final = "openai/clip-vit-base-patch32"
"""The CLIP that T2I-CompBench measures non-spatial relations with."""


@dataclass
class Composition:
    """Verifier by category: `attribute` (colour, shape, texture) is BLIP-VQA, `spatial` and `numeracy` the detector.

    `non_spatial` is the cosine of CLIP, mostly within [0.2, 0.35]; the others lie in [0, 1]. `complex` is 3-in-1: the
    mean of the attribute score, of the spatial score where the prompt has a relation, and of the cosine where it has an
    action or no relation. The benchmark reads from its files which prompt has which and takes adjectives out of the
    text for the cosine; this reads the prompt and leaves it whole. `category` None: that of each prompt's words, see
    `category_of`, so that scores compare within a prompt only. `measures`: by their names in `measures_of`.
    Differentiable in the pictures where the detector takes no part.
    """

    measures: Mapping[str, Callable[[Tensor, list[str]], Tensor]]
    category: Category | None = None
    name: str = NAME

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        readings = [read_prompt(prompt) for prompt in prompts]
        wanted = [measures_of(self.category or category_of(reading), reading) for reading in readings]
        if missing := sorted(set().union(*wanted) - self.measures.keys()):
            raise DiffscaleError(f"Verifier {self.name!r} was loaded without what measures {', '.join(missing)}.")
        total = torch.zeros(len(images), device=images.device)
        for name, measure in self.measures.items():
            rows = [i for i, names in enumerate(wanted) if name in names]
            if rows:
                scores = measure(images[rows], [prompts[i] for i in rows]).to(images.device)
                shares = torch.tensor([1 / len(wanted[i]) for i in rows], device=images.device)
                total = total.index_add(0, torch.tensor(rows, device=images.device), scores * shares)
        return total


def composition(
    category: Category | None = None,
    vqa: str = VQA,
    detector: str = OWL,
    clip: str = CLIP,
    threshold: Share = 0.2,
    *,
    device: Any = "cpu",
) -> Verifier:
    """T2I-CompBench's score of a category, or of what each prompt's words are; most in [0, 1].

    `vqa`, `detector`, `clip`: a BLIP, an OWLv2 and a CLIP by Hub id, folder or name; only what the category needs is
    loaded. `threshold`: of the detector. Raises DiffscaleError for weights that cannot be loaded.
    """
    measures: dict[str, Callable[[Tensor, list[str]], Tensor]] = {}
    if category in (None, "complex", "attribute"):
        measures["vqa"] = load_vqa(vqa, device=device)
    if category in (None, "complex", "spatial", "numeracy"):
        owl = Owl.load(detector, device, threshold)
        measures |= {"spatial": Detector(owl, "spatial", NAME), "numeracy": Detector(owl, "numeracy", NAME)}
    if category in (None, "complex", "non_spatial"):
        measures["cosine"] = Clip.load(clip, device).cosine
    return Composition(measures, category)


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
    if category != "complex":
        return ({"attribute": "vqa", "non_spatial": "cosine"}.get(category, category),)
    related = reading.relation is not None
    acting = bool(reading.actions) or not related
    return ("vqa", *["spatial"] * related, *["cosine"] * acting)
