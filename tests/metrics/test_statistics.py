"""Moments in parts, reference files, and means with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.stats import bootstrap

from diffscale._util.errors import DiffscaleError
from diffscale.metrics import statistics
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.metrics.statistics import Statistics, load_reference, save_reference


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.sampled_from([0.0, 1e6]), st.integers(0, 99))
def test_moments_are_those_of_numpy_in_parts_of_any_size(n: int, part: int, offset: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(offset, 1, size=(n, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_ROWS", part)
        found = Statistics.from_features(rows, "x")
    assert found.n == n
    np.testing.assert_allclose(found.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    expected = np.cov(rows, rowvar=False) if n > 1 else np.zeros((4, 4))
    np.testing.assert_allclose(found.covariance, expected, rtol=1e-6, atol=1e-8)


def test_statistics_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(5, 1, size=(11, 3)).astype(np.float32)
    monkeypatch.setattr(statistics, "_ROWS", 4)
    found = Statistics.from_features(rows, "x")
    np.testing.assert_allclose(found.covariance, np.cov(rows.astype(float), rowvar=False), rtol=1e-12)
    assert (found.n, found.extractor, found.mean.dtype) == (11, "x", np.float64) and found.features is rows
    for wrong, said in ((rows[:0], r"not \[0, 3\]"), (rows * [1, 1, np.nan], "finite")):
        with pytest.raises(DiffscaleError, match=said):
            Statistics.from_features(wrong, "x")


@pytest.fixture
def two() -> list[Statistics]:
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    kept, moved = Statistics.from_features(rows, "clip 1"), Statistics.from_features(rows[:, :2] + 1, "dino 2")
    return [kept, Statistics(moved.extractor, moved.n, moved.mean, moved.covariance)]


def test_reference_files_give_back_what_was_saved(tmp_path: Path, two: list[Statistics]) -> None:
    file = tmp_path / "deep" / "reference.safetensors"
    save_reference(two, file)
    for saved in two:
        held = load_reference(file, saved.extractor)
        assert (held.n, held.extractor) == (saved.n, saved.extractor)
        np.testing.assert_array_equal(held.mean, saved.mean)
        np.testing.assert_array_equal(held.covariance, saved.covariance)
        assert (held.features is None) == (saved.features is None)
    np.testing.assert_array_equal(load_reference(file, "clip 1").features, two[0].features)
    # Anybody can read it: plain safetensors, float64.
    with safe_open(file, "np") as opened:
        assert json.loads(opened.metadata()["extractors"]) == ["clip 1", "dino 2"]
    assert load_file(file)["1.mean"].dtype == np.float64
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(DiffscaleError, match="of clip 1, dino 2, but inception 3 is asked for"):
        load_reference(file, "inception 3")


def test_what_is_no_reference_is_told(tmp_path: Path, two: list[Statistics]) -> None:
    file = tmp_path / "reference.safetensors"
    save_reference(two[:1], file)
    whole, tensors = file.read_bytes(), load_file(file)
    with safe_open(file, "np") as opened:
        about = opened.metadata()
    bad: dict[str, bytes] = {"cut off": whole[:-40], "text": b"FID 7.3", "empty": b""}
    changes = {
        "no numbers": {"0.mean": tensors["0.mean"] * np.nan},
        "other dimensions": {"0.covariance": np.eye(3)},
        "other pictures": {"0.features": np.zeros((2, 5), np.float32)},
        "no pictures": {"0.n": np.zeros(0, np.int64)},
    }
    for name, change in changes.items():
        save_file(tensors | change, file, about)
        bad[name] = file.read_bytes()
    save_file(tensors, file, {"format": "another"})
    bad["another kind"] = file.read_bytes()
    save_file({"0.n": tensors["0.n"]}, file, about)
    bad["no mean"] = file.read_bytes()
    for content in bad.values():
        file.write_bytes(content)
        with pytest.raises(DiffscaleError, match="cannot be read: give a folder of pictures, or a file that"):
            load_reference(file, "clip 1")
    with pytest.raises(DiffscaleError, match="choose another place"):
        save_reference(two, file / "below a file")


def test_an_interval_is_that_of_scipy() -> None:
    values = np.random.default_rng(0).exponential(size=2500)  # enough for more than one block
    ours = interval(values)
    theirs = bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1).confidence_interval
    assert ours["mean"] == pytest.approx(values.mean())
    assert (ours["low"], ours["high"]) == pytest.approx((theirs.low, theirs.high), abs=0.003)
    assert ours == interval(values.tolist())
    assert interval([2.5]) == {"mean": 2.5, "low": 2.5, "high": 2.5}
    with pytest.raises(DiffscaleError, match="at least one value"):
        interval([])


def test_repeats_of_a_prompt_count_once() -> None:
    np.testing.assert_allclose(over_groups([1, 5, 3, 7], ["b", "a", "b", None]), [2, 5, 7])
    with pytest.raises(ValueError, match="zip"):
        over_groups([1.0], ["a", "b"])
