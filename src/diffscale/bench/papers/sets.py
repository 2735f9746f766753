"""Metrics of all pictures of a point together, with their leave-one-group-out values for intervals and tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers.calls import Slot
from diffscale.bench.papers.recipe import of_shapes
from diffscale.metrics.frechet import FewSamples, fid
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.moments import Statistics
from diffscale.metrics.precision_recall import precision, recall
from diffscale.metrics.reference import load as load_reference
from diffscale.shapes.classes import CLASSES, draw_class_scene
from diffscale.shapes.render import render
from diffscale.verifiers.inception import load_inception

GROUPS: Final = 48
"""Groups of pictures, about, that are left out one at a time."""
_DRAWN: Final = 10  # pictures a class of the reference of Shapes


@dataclass
class Sets:
    """`classifier` makes features [B, D] and logits; `reference` has the statistics and features of real pictures."""

    classifier: Any
    reference: Statistics | None

    @classmethod
    def open(cls, model: str, reference: str | None, device: str) -> Sets:
        """For pictures of `model`: those of Shapes have an Inception and a drawn reference of their own."""
        if of_shapes(model):
            return cls(load_inception("shapes-inception", device), _drawn())
        classifier = load_inception(None, device)
        held = None if reference is None else load_reference(Path(reference).expanduser(), classifier.name)
        return cls(classifier, held)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features [N, D] and logits [N, classes] of pictures uint8 [N, 3, H, W]."""
        parts = [part.float() / 255 for part in pictures.split(64)]
        features = torch.cat([self.classifier(part).cpu() for part in parts])
        logits = torch.cat([self.classifier.logits(part).cpu() for part in parts])
        return features.numpy(), logits.numpy()

    def measure(self, names: Sequence[str], pictures: Tensor, slots: Sequence[Slot]) -> dict[str, dict[str, Any]]:
        """`value` of each metric, and `without`: its values where one group of pictures after another is left out, see
        `groups`, a row for each stratum.

        Of `diversity` there is one value for each prompt instead, `prompts`: the mean over pairs of its pictures of
        1 - cos of their features. Raises DiffscaleError for a metric that needs a reference where there is none.
        """
        features, logits = self.features(pictures)
        of, strata = groups(slots)
        found: dict[str, dict[str, Any]] = {}
        for name in names:
            if name == "diversity":
                found[name] = {"prompts": diversity(features, [slot.condition for slot in slots])}
                continue
            metric = self._metric(name)
            with warnings.catch_warnings():
                # Both sides of every comparison have as many pictures, and so the same bias.
                warnings.simplefilter("ignore", FewSamples)
                value = metric(features, logits)
                without = [metric(features[of != group], logits[of != group]) for group in range(of.max() + 1)]
            rows = np.reshape(without, (strata, -1)).tolist() if len(without) > 1 else []
            found[name] = {"value": value, "without": rows}
        return found

    def _metric(self, name: str) -> Callable[[NDArray[np.float32], NDArray[np.float32]], float]:
        if name == "is":
            return lambda _, logits: inception_score(logits, splits=1)[0]
        if self.reference is None:
            raise DiffscaleError(f"{name} compares with real pictures: give --reference, their statistics.")
        reference = self.reference
        if name == "fid":
            return lambda features, _: fid(Statistics.of(features, self.classifier.name), reference)
        if reference.features is None:
            raise DiffscaleError(
                f"{name} needs features of the real pictures: write --reference with --metrics {name}."
            )
        real, compare = reference.features, {"precision": precision, "recall": recall}[name]
        return lambda features, _: compare(real, features)


def groups(slots: Sequence[Slot], most: int = GROUPS) -> tuple[NDArray[np.int64], int]:
    """The group of each picture, and how many strata there are; the groups of a stratum follow each other.

    Where prompts have several pictures each, prompts are taken as they are and chance is in the noises: a stratum is
    some prompts, and one of its groups is one picture of each of them (more, of many repeats). Where they have one,
    prompts are by chance, and all groups, of prompts, are of one stratum.
    """
    conditions = [slot.condition for slot in slots]
    number = {condition: i for i, condition in enumerate(dict.fromkeys(conditions))}
    order = np.array([number[condition] for condition in conditions])
    repeats = len(slots) // len(number)
    if repeats == 1:
        return order * min(most, len(number)) // len(number), 1
    units = repeats if repeats <= 2 * most else most
    strata = max(1, min(len(number), most // units))
    repeat = np.array([slot.repeat for slot in slots])
    return order * strata // len(number) * units + repeat * units // repeats, strata


def diversity(features: NDArray[np.float32], conditions: Sequence[str]) -> list[float]:
    """For each prompt the mean of 1 - cos over the pairs of its pictures; raises DiffscaleError for single ones."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    found = []
    for condition in dict.fromkeys(conditions):
        mine = unit[[each == condition for each in conditions]]
        if len(mine) < 2:
            raise DiffscaleError("Diversity compares pictures of a prompt: give the recipe repeats of 2 or more.")
        upper = np.triu_indices(len(mine), 1)
        found.append(float(1 - (mine @ mine.T)[upper].mean()))
    return found


@cache
def _drawn() -> Statistics:
    """Statistics of drawn pictures of all classes of Shapes."""
    classifier = load_inception("shapes-inception", "cpu")
    rng = Random("reproduce reference")
    scenes = [draw_class_scene(label, rng) for label in range(len(CLASSES)) for _ in range(_DRAWN)]
    drawn = torch.from_numpy(np.stack([render(scene) for scene in scenes])).permute(0, 3, 1, 2)
    with torch.no_grad():
        features = torch.cat([classifier(part) for part in drawn.split(64)])
    return Statistics.of(features.numpy(), classifier.name)
