"""FID, precision, recall, CMMD and the Inception Score against torchmetrics, scipy and brute force."""

from __future__ import annotations

import math
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.linalg import sqrtm
from torch import nn
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore

from diffscale._util.errors import DiffscaleError
from diffscale.metrics import distances
from diffscale.metrics.frechet import FewSamples, fid, frechet_distance
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.statistics import Statistics

Rows = NDArray[np.float64]


class Flat(nn.Module):
    """Gives torchmetrics its input as features."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.num_features = dimensions

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.flatten(1).double()


def _published_fid(real: Rows, fake: Rows) -> float:
    metric = FrechetInceptionDistance(Flat(real.shape[1]), normalize=True).set_dtype(torch.float64)
    for rows, is_real in ((real, True), (fake, False)):
        metric.update(torch.from_numpy(rows)[:, :, None, None], real=is_real)
    return float(metric.compute())


def _fid(real: Rows, fake: Rows) -> float:
    a, b = (Statistics.from_features(rows, "flat") for rows in (real, fake))  # type: ignore[arg-type]
    return fid(b, a)


def _two(kind: str) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(3)
    a, b = rng.normal(size=(300, 24)), rng.normal(0.2, 1.3, size=(200, 24))
    match kind:
        case "random":
            return a, b @ rng.normal(size=(24, 24)) / 5
        case "far from the origin":
            return a + 1e3, b + 1e3
        case "fewer than dimensions":
            return a[:10], b[:7]
        case "two pictures":
            return a[:2], b[:2]
        case "constant dimensions":
            a[:, :5] = b[:, 3:9] = 1
            return a, b
        case "all the same":
            return np.repeat(a[:1], 40, 0), np.repeat(b[:1], 30, 0)
        case "repeats":
            return np.repeat(a[:20], 5, 0), np.repeat(b[:15], 4, 0)
    raise AssertionError(kind)


KINDS = [
    "random", "far from the origin", "fewer than dimensions", "two pictures", "constant dimensions", "all the same",
    "repeats",
]  # fmt: skip


@pytest.mark.filterwarnings("ignore::diffscale.metrics.frechet.FewSamples")
@pytest.mark.parametrize("kind", KINDS)
def test_fid_is_that_of_torchmetrics(kind: str) -> None:
    real, fake = _two(kind)
    assert _fid(real, fake) == pytest.approx(_published_fid(real, fake), rel=1e-6)


def test_few_pictures_give_a_warning_and_a_finite_fid() -> None:
    real, fake = _two("fewer than dimensions")
    with pytest.warns(FewSamples, match="of 7 to 10 pictures is biased upwards: 7 do not determine .* 24 dimensions"):
        assert math.isfinite(_fid(real, fake))
    with pytest.warns(FewSamples):
        assert _fid(real[:1], fake[:1]) == pytest.approx(np.square(real[0] - fake[0]).sum())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _fid(*_two("random"))


def test_statistics_of_two_extractors_do_not_compare() -> None:
    rows = np.eye(3, dtype=np.float32)
    with pytest.raises(DiffscaleError, match="do not compare"):
        fid(Statistics.from_features(rows, "a"), Statistics.from_features(rows, "b"))


def test_frechet_distance_is_the_published_formula() -> None:
    rng = np.random.default_rng(0)
    roots = rng.normal(size=(2, 6, 6))
    (a, b), (m, n) = roots @ roots.transpose(0, 2, 1), rng.normal(size=(2, 6))
    expected = np.square(m - n).sum() + np.trace(a + b - 2 * sqrtm(a @ b).real)
    assert frechet_distance(m, a, n, b) == pytest.approx(expected, rel=1e-9)
    # Gaussians along one axis: (difference of means)^2 + (difference of deviations)^2.
    assert frechet_distance(np.array([1.0]), np.array([[4.0]]), np.array([3.0]), np.array([[25.0]])) == pytest.approx(
        13
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 12), st.integers(1, 6), st.integers(0, 2**32 - 1))
def test_frechet_distance_is_zero_to_itself_and_symmetric(n: int, dimensions: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    a, b = (Statistics.from_features(rng.normal(size=(n, dimensions)).astype(np.float32), "x") for _ in range(2))
    scale = np.trace(a.covariance) + 1
    assert 0 <= frechet_distance(a.mean, a.covariance, a.mean, a.covariance) < 1e-7 * scale
    there = frechet_distance(a.mean, a.covariance, b.mean, b.covariance)
    assert there == pytest.approx(frechet_distance(b.mean, b.covariance, a.mean, a.covariance), rel=1e-6, abs=1e-9)


def _brute_precision(real: Rows, fake: Rows, k: int) -> float:
    def ball(i: int) -> float:
        return sorted(float(np.sum((real[i] - other) ** 2)) for j, other in enumerate(real) if j != i)[k - 1]

    radii = [ball(i) for i in range(len(real))]
    inside = [any(np.sum((x - c) ** 2) <= r for c, r in zip(real, radii, strict=True)) for x in fake]
    return float(np.mean(inside))


def _manifolds(kind: str) -> tuple[Rows, Rows]:
    rng = np.random.default_rng(5)
    match kind:
        case "random":
            return rng.normal(size=(60, 3)), rng.normal(0.7, 1, size=(45, 3))
        case "fewer than dimensions":
            return rng.normal(size=(6, 40)), rng.normal(size=(5, 40))
        case "on a grid":  # many distances are equal to radii
            return rng.integers(4, size=(50, 2)) * 1.0, rng.integers(6, size=(40, 2)) * 1.0
        case "all the same":
            return np.ones((8, 5)), np.ones((6, 5))
        case "repeats":  # radii of zero
            rows = rng.normal(size=(5, 4))
            return np.repeat(rows, 4, 0), np.concatenate([rows, rows + 0.3])
        case "far from the origin":
            grid = rng.integers(4, size=(40, 2)) * 1.0
            return grid + 1e6, grid[:20] + 1e6 + 1
    raise AssertionError(kind)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize(
    "kind",
    ["random", "fewer than dimensions", "on a grid", "all the same", "repeats", "far from the origin"],
)
def test_precision_and_recall_are_those_of_brute_force(kind: str, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, fake = _manifolds(kind)
    expected = _brute_precision(real, fake, k), _brute_precision(fake, real, k)
    for block in (distances.BLOCK, 7):  # whole, and a row at a time
        monkeypatch.setattr(distances, "BLOCK", block)
        assert (distances.precision(real, fake, k), distances.recall(real, fake, k)) == expected


@pytest.mark.parametrize("k", [1, 3])
def test_a_distance_that_is_a_radius_but_for_rounding_lies_inside(k: int) -> None:
    rng = np.random.default_rng(0)
    real, fake = rng.integers(3, size=(50, 8)), rng.integers(3, size=(40, 8))
    # Thirds are not exact in binary; the integers they are thirds of are.
    assert distances.precision(real / 3, fake / 3, k) == _brute_precision(real * 1.0, fake * 1.0, k)


def test_precision_falls_with_bad_pictures_and_recall_with_missing_ones() -> None:
    rng = np.random.default_rng(0)
    real = np.concatenate([rng.normal(size=(50, 2)), rng.normal(100, 1, size=(50, 2))])
    only_one_kind, half_bad = real[:50], np.concatenate([real[:50], rng.normal(-100, 1, size=(50, 2))])
    assert distances.precision(real, only_one_kind) == 1 and distances.recall(real, only_one_kind) == 0.5
    assert distances.precision(real, half_bad) == 0.5
    with pytest.raises(DiffscaleError, match="more than 3 pictures in each set, not 2"):
        distances.precision(real[:2], real)


def _brute_cmmd(x: Rows, y: Rows) -> float:
    x, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (x, y))

    def mean(a: Rows, b: Rows) -> float:
        return math.fsum(math.exp(-math.fsum((p - q) ** 2) / 200) for p in a for q in b) / (len(a) * len(b))

    return 1000 * (mean(x, x) + mean(y, y) - 2 * mean(x, y))


@pytest.mark.parametrize("block", [distances.BLOCK, 50])
def test_cmmd_is_that_of_brute_force(block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "BLOCK", block)
    rng = np.random.default_rng(1)
    for m, n in ((30, 20), (3, 2), (1, 1)):
        x, y = rng.normal(size=(m, 8)), rng.normal(0.5, 1, size=(n, 8))
        assert distances.cmmd(x, y) == pytest.approx(_brute_cmmd(x, y), rel=1e-6)
        assert distances.cmmd(x, x) == pytest.approx(0, abs=1e-12)
    assert distances.cmmd(np.zeros((2, 8)), x) >= 0  # nothing of unit length can be made of zeros


def _logits(kind: str) -> Rows:
    rng = np.random.default_rng(2)
    match kind:
        case "random":
            return rng.normal(size=(200, 12)) * 3
        case "sure":
            return np.eye(10)[rng.integers(10, size=100)] * 50
        case "all the same":
            return np.repeat(rng.normal(size=(1, 7)), 50, 0)
        case "fewer than classes":
            return rng.normal(size=(20, 300)) * 4
    raise AssertionError(kind)


@pytest.mark.filterwarnings(
    "ignore:Metric `InceptionScore` will save", "ignore:std", "ignore::diffscale.metrics.frechet.FewSamples"
)
@pytest.mark.parametrize("splits", [1, 10])
@pytest.mark.parametrize("kind", ["random", "sure", "all the same", "fewer than classes"])
def test_the_inception_score_is_that_of_torchmetrics(kind: str, splits: int) -> None:
    rows = _logits(kind)
    metric = InceptionScore(Flat(rows.shape[1]), splits=splits)  # of floats as they are
    metric.update(torch.from_numpy(rows)[:, :, None, None])
    torch.manual_seed(0)
    mean, std = (float(value) for value in metric.compute())
    torch.manual_seed(0)  # it shuffles
    shuffled = rows[torch.randperm(len(rows)).numpy()]
    ours = inception_score(shuffled, splits)
    assert ours[0] == pytest.approx(mean, rel=1e-6)
    if splits > 1:  # the published standard deviation is that of the population
        assert ours[1] == pytest.approx(std * math.sqrt((splits - 1) / splits), rel=1e-6, abs=1e-9)


@pytest.mark.filterwarnings("ignore::diffscale.metrics.frechet.FewSamples")
def test_the_inception_score_takes_probabilities_and_uneven_splits() -> None:
    rows = _logits("random")[:23]
    chances = np.exp(rows) / np.exp(rows).sum(1, keepdims=True)
    assert inception_score(chances, 10, probabilities=True) == pytest.approx(inception_score(rows, 10))
    scores = []
    for i in range(10):
        part = chances[i * 23 // 10 : (i + 1) * 23 // 10]
        scores.append(math.exp(np.mean((part * np.log(part / part.mean(0))).sum(1))))
    assert inception_score(rows, 10) == pytest.approx((np.mean(scores), np.std(scores)))
    hard = np.eye(4)
    assert inception_score(hard, 1, probabilities=True)[0] == pytest.approx(4)
    assert inception_score(hard * 2000, 1)[0] == pytest.approx(4)  # the other probabilities underflow to zero
    with pytest.warns(FewSamples, match="of 4 pictures in 10 splits is biased downwards.* more than 40 for 4 classes"):
        assert inception_score(hard, 10, probabilities=True) == (1, 0)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: distances.matrix([1.0, 2.0]), r"not \[2\]"),
        (lambda: distances.matrix(np.zeros((0, 4))), r"not \[0, 4\]"),
        (lambda: distances.matrix([[1.0, np.nan]]), "finite"),
        (lambda: distances.pair(np.zeros((2, 3)), np.zeros((2, 4))), "3 and of 4 dimensions"),
        (lambda: inception_score([[0.5, 0.9]], probabilities=True), "no probabilities"),
        (lambda: inception_score([[0.5, 0.9]], splits=0), "at least one split"),
    ],
)
def test_what_are_no_features_is_told(call: Any, said: str) -> None:
    with pytest.raises(DiffscaleError, match=said):
        call()


def test_features_of_any_kind_become_float64() -> None:
    rows = torch.rand(2, 3, dtype=torch.bfloat16, requires_grad=True)
    assert distances.matrix(rows).dtype == np.float64
    np.testing.assert_array_equal(distances.matrix(rows), rows.detach().float().numpy())
