"""Metrics of all pictures together: values as the metrics give them, groups of prompts left out, diversity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffscale.errors import DiffscaleError
from diffscale.metrics.precision_recall import recall
from diffscale.reproduce.calls import Slot
from diffscale.reproduce.sets import Sets, diversity, groups
from diffscale.statistics.frechet import fid
from diffscale.statistics.moments import Statistics


class Pixels:
    """Features are the means of the colours, logits the same times ten."""

    name = "pixels"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * self(images)


def _pictures(n: int) -> torch.Tensor:
    return (torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 255).byte()


def test_values_and_those_without_each_group_are_the_metrics_of_the_rest() -> None:
    slots = [Slot(prompt, repeat) for prompt in "abcdef" for repeat in range(2)]
    pictures = _pictures(12)
    real = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    measured = Sets(Pixels(), Statistics.of(real, "pixels")).measure(["fid", "is", "recall"], pictures, slots)
    features = (pictures.float() / 255).mean((2, 3)).numpy()
    assert measured["recall"]["value"] == recall(real, features)
    assert measured["fid"]["value"] == pytest.approx(
        fid(Statistics.of(features, "pixels"), Statistics.of(real, "pixels")), rel=1e-4
    )
    # The third left out is the third prompt, both of its pictures.
    assert len(measured["recall"]["without"]) == 6
    assert measured["recall"]["without"][2] == recall(real, np.delete(features, [4, 5], 0))
    assert 1 <= measured["is"]["value"] <= 3


def test_groups_keep_the_pictures_of_a_prompt_together() -> None:
    conditions = [f"p{i}" for i in range(10) for _ in range(3)]
    found = groups(conditions, 4)
    assert set(found) == {0, 1, 2, 3} and (found.reshape(10, 3) == found.reshape(10, 3)[:, :1]).all()


def test_diversity_is_the_mean_over_pairs_of_a_prompt() -> None:
    features = np.array([[1, 0], [0, 1], [1, 0], [2, 0], [3, 0], [0.5, 0]], np.float32)
    found = diversity(features, ["a", "a", "a", "b", "b", "b"])
    assert found == pytest.approx([2 / 3, 0.0])
    with pytest.raises(DiffscaleError, match="repeats"):
        diversity(features[:2], ["a", "b"])


def test_a_metric_without_its_reference_is_refused() -> None:
    with pytest.raises(DiffscaleError, match="--reference"):
        Sets(Pixels(), None).measure(["fid"], _pictures(2), [Slot("a", 0), Slot("b", 0)])


def test_shapes_has_a_drawn_reference_of_its_own() -> None:
    sets = Sets.open("shapes-sit-s", None, "cpu")
    assert sets.reference is not None and sets.reference.features is not None and sets.reference.n == 480
