"""Metrics of all pictures of a point together, with their leave-one-group-out values for intervals and tests."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers.trainings import base_of
from diffscale.bench.series import PromptRepeat, rows_of
from diffscale.metrics.distances import precision, recall
from diffscale.metrics.frechet import FewSamples, fid
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.statistics import Statistics, load_reference
from diffscale.models.load import world_of
from diffscale.types import World
from diffscale.verifiers.defaults import counterpart
from diffscale.verifiers.inception import load_inception

GROUPS: Final = 48
"""Groups of pictures, about, that are left out one at a time."""


@dataclass
class Sets:
    """`classifier` makes features [B, D] and logits; `reference` has the statistics and features of real pictures."""

    classifier: Any
    reference: Statistics | None

    @classmethod
    def open(cls, model: str, reference: str | None, device: str) -> Sets:
        """For pictures of `model`: those of a world have an Inception and a drawn reference of their own."""
        if (world := world_of(base_of(model))) is not None:
            classifier = load_inception(counterpart(world.image_model, "inception"), device=device)
            return cls(classifier, _statistics(classifier, world))
        classifier = load_inception(device=device)
        real = None if reference is None else load_reference(Path(reference).expanduser(), classifier.name)
        return cls(classifier, real)

    @torch.no_grad()
    def features(self, pictures: Tensor) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Features [N, D] and logits [N, classes] of pictures [N, 3, H, W] in [0, 1]."""
        parts = pictures.split(64)
        features = torch.cat([self.classifier(part).cpu() for part in parts])
        logits = torch.cat([self.classifier.logits(part).cpu() for part in parts])
        return features.numpy(), logits.numpy()

    def measure(
        self, names: Sequence[str], pictures: Tensor, wanted: Sequence[PromptRepeat]
    ) -> dict[str, dict[str, Any]]:
        """`value` of each metric, and `without`: its values where one group of pictures after another is left out, see
        `groups`, a row for each stratum.

        Of `diversity` there is one value for each prompt instead, `prompts`: the mean over pairs of its pictures of
        1 - cos of their features. Raises DiffscaleError for a metric that needs a reference where there is none.
        """
        features, logits = self.features(pictures)
        group, strata = groups(wanted)
        measured: dict[str, dict[str, Any]] = {}
        for name in names:
            if name == "diversity":
                measured[name] = {"prompts": diversity(features, [each.condition for each in wanted])}
                continue
            metric = self._metric(name)
            with warnings.catch_warnings():
                # Both sides of every comparison have as many pictures, and so the same bias.
                warnings.simplefilter("ignore", FewSamples)
                value = metric(features, logits)
                without = [metric(features[group != i], logits[group != i]) for i in range(group.max() + 1)]
            rows = np.reshape(without, (strata, -1)).tolist() if len(without) > 1 else []
            measured[name] = {"value": value, "without": rows}
        return measured

    def _metric(self, name: str) -> Callable[[NDArray[np.float32], NDArray[np.float32]], float]:
        if name == "is":
            return lambda _, logits: inception_score(logits, splits=1)[0]
        if self.reference is None:
            raise DiffscaleError(f"{name} compares with real pictures: give --reference, their statistics.")
        reference = self.reference
        if name == "fid":
            return lambda features, _: fid(Statistics.from_features(features, self.classifier.name), reference)
        if reference.features is None:
            raise DiffscaleError(
                f"{name} needs features of the real pictures: write --reference with --metrics {name}."
            )
        kind, _, neighbours = name.partition(" k=")
        real, compare = reference.features, {"precision": precision, "recall": recall}[kind]
        return lambda features, _: compare(real, features, int(neighbours or 3))


def groups(wanted: Sequence[PromptRepeat], most: int = GROUPS) -> tuple[NDArray[np.int64], int]:
    """The group of each picture, and how many strata there are; the groups of a stratum follow each other.

    Where prompts have several pictures each, prompts are taken as they are and chance is in the noises: a stratum is
    some prompts, and one of its groups is one picture of each of them (more, of many repeats). Where they have one,
    prompts are by chance, and all groups, of prompts, are of one stratum.
    """
    prompts, rows = rows_of(wanted)
    count, order = len(prompts), np.array(rows)
    repeats = len(wanted) // count
    strata, units = strata_and_groups(count, repeats, most)
    if repeats == 1:
        return order * units // count, 1
    repeat = np.array([each.repeat for each in wanted])
    return order * strata // count * units + repeat * units // repeats, strata


def strata_and_groups(prompts: int, repeats: int, most: int = GROUPS) -> tuple[int, int]:
    """How many strata `groups` makes, and groups in each."""
    if repeats == 1:
        return 1, min(most, prompts)
    units = repeats if repeats <= 2 * most else most
    return max(1, min(prompts, most // units)), units


def diversity(features: NDArray[np.float32], conditions: Sequence[str]) -> list[float]:
    """For each prompt the mean of 1 - cos over the pairs of its pictures; raises DiffscaleError for single ones."""
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    means = []
    for condition in dict.fromkeys(conditions):
        mine = unit[[each == condition for each in conditions]]
        if len(mine) < 2:
            raise DiffscaleError("Diversity compares pictures of a prompt: give the recipe repeats of 2 or more.")
        upper = np.triu_indices(len(mine), 1)
        means.append(float(1 - (mine @ mine.T)[upper].mean()))
    return means


@torch.no_grad()
def _statistics(classifier: Any, world: World) -> Statistics:
    """Statistics of the real pictures of a world."""
    features = torch.cat([classifier(part).cpu() for part in world.reference_pictures().split(64)])
    return Statistics.from_features(features.numpy(), classifier.name)
