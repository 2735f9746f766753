"""Metrics of all pictures together: values as the metrics give them, groups of prompts left out, diversity."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers.sets import Sets, diversity, groups
from diffscale.bench.series import PromptRepeat
from diffscale.metrics.distances import recall
from diffscale.metrics.frechet import fid
from diffscale.metrics.statistics import Statistics


class Pixels:
    """Features are the means of the colours, logits the same times ten."""

    name = "pixels"

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))

    def logits(self, images: torch.Tensor) -> torch.Tensor:
        return 10 * self(images)


def _pictures(n: int) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def test_values_and_those_without_each_group_are_the_metrics_of_the_rest() -> None:
    wanted = [PromptRepeat(prompt, repeat) for prompt in "abcdef" for repeat in range(2)]
    pictures = _pictures(12)
    real = np.random.default_rng(0).random((20, 3)).astype(np.float32)
    sets = Sets(Pixels(), Statistics.from_features(real, "pixels"))
    measured = sets.measure(["fid", "is", "recall"], pictures, wanted)
    features = pictures.mean((2, 3)).numpy()
    assert measured["recall"]["value"] == recall(real, features)
    assert measured["fid"]["value"] == pytest.approx(
        fid(Statistics.from_features(features, "pixels"), Statistics.from_features(real, "pixels")), rel=1e-4
    )
    # A stratum for each prompt, of which one of its pictures after the other is left out.
    assert np.shape(measured["recall"]["without"]) == (6, 2)
    assert measured["recall"]["without"][2][1] == recall(real, np.delete(features, 5, 0))
    assert 1 <= measured["is"]["value"] <= 3


def test_groups_of_pictures() -> None:
    """Of repeated prompts one picture of each prompt of a stratum, all strata with as many groups; else prompts."""
    wanted = [PromptRepeat(f"p{prompt}", repeat) for prompt in range(10) for repeat in range(3)]
    found, strata = groups(wanted, 12)
    assert strata == 4 and set(found) == set(range(12))
    of = found.reshape(10, 3)
    assert (of % 3 == [0, 1, 2]).all() and (of // 3 == of[:, :1] // 3).all()
    assert np.bincount(of[:, 0] // 3).tolist() in ([3, 2, 3, 2], [3, 3, 2, 2], [2, 3, 2, 3])
    many, strata = groups([PromptRepeat(prompt, repeat) for prompt in "ab" for repeat in range(9)], 4)
    assert strata == 1 and (many.reshape(2, 9) == np.arange(9) * 4 // 9).all()
    even, strata = groups([PromptRepeat(prompt, repeat) for prompt in "ab" for repeat in range(7)], 4)
    assert strata == 1 and (even.reshape(2, 7) == np.arange(7)).all()  # rather more groups than of two sizes
    single, strata = groups(wanted[::3], 4)
    assert strata == 1 and set(single) == {0, 1, 2, 3} and (np.diff(single) >= 0).all()


def test_diversity_is_the_mean_over_pairs_of_a_prompt() -> None:
    features = np.array([[1, 0], [0, 1], [1, 0], [2, 0], [3, 0], [0.5, 0]], np.float32)
    found = diversity(features, ["a", "a", "a", "b", "b", "b"])
    assert found == pytest.approx([2 / 3, 0.0])
    with pytest.raises(DiffscaleError, match="repeats"):
        diversity(features[:2], ["a", "b"])


def test_a_metric_without_its_reference_is_refused() -> None:
    with pytest.raises(DiffscaleError, match="--reference"):
        Sets(Pixels(), None).measure(["fid"], _pictures(2), [PromptRepeat("a", 0), PromptRepeat("b", 0)])


def test_shapes_has_a_drawn_reference_of_its_own() -> None:
    sets = Sets.open("shapes-sit-s", None, "cpu")
    assert sets.reference is not None and sets.reference.features is not None and sets.reference.n == 480
