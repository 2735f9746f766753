"""Moments one batch at a time, reference files, and means with intervals."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file, save_file
from scipy.stats import bootstrap

from diffscale._util.errors import DiffscaleError
from diffscale.metrics import moments, reference
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.metrics.moments import Moments, Statistics


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from([0.0, 1e6]), st.integers(0, 99))
def test_moments_are_those_of_numpy_however_the_rows_come(batches: list[int], offset: float, seed: int) -> None:
    rows = np.random.default_rng(seed).normal(offset, 1, size=(sum(batches), 4))
    streamed = Moments()
    for batch in np.split(rows, np.cumsum(batches)[:-1]):
        streamed.update(torch.from_numpy(batch))
    assert streamed.n == len(rows)
    np.testing.assert_allclose(streamed.mean, rows.mean(0), rtol=1e-12, atol=1e-12)
    expected = np.cov(rows, rowvar=False) if len(rows) > 1 else np.zeros((4, 4))
    np.testing.assert_allclose(streamed.covariance, expected, rtol=1e-6, atol=1e-8)


def test_moments_take_one_dimension_only() -> None:
    streamed = Moments()
    assert streamed.n == 0 and streamed.mean.shape == (0,)
    streamed.update(np.zeros((2, 3)))
    with pytest.raises(DiffscaleError, match="3 dimensions were followed by some of 4"):
        streamed.update(np.zeros((2, 4)))


def test_statistics_are_taken_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(5, 1, size=(11, 3)).astype(np.float32)
    monkeypatch.setattr(moments, "_ROWS", 4)
    of = Statistics.of(rows, "x")
    np.testing.assert_allclose(of.covariance, np.cov(rows.astype(float), rowvar=False), rtol=1e-12)
    assert (of.n, of.extractor, of.mean.dtype) == (11, "x", np.float64) and of.features is rows
    with pytest.raises(DiffscaleError, match=r"not \[0, 3\]"):
        Statistics.of(rows[:0], "x")


@pytest.fixture
def two() -> list[Statistics]:
    rows = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    kept, moved = Statistics.of(rows, "clip 1"), Statistics.of(rows[:, :2] + 1, "dino 2")
    return [kept, Statistics(moved.extractor, moved.n, moved.mean, moved.covariance)]


def test_reference_files_give_back_what_was_saved(tmp_path: Path, two: list[Statistics]) -> None:
    file = tmp_path / "deep" / "reference.safetensors"
    reference.save(two, file)
    for saved in two:
        held = reference.load(file, saved.extractor)
        assert (held.n, held.extractor) == (saved.n, saved.extractor)
        np.testing.assert_array_equal(held.mean, saved.mean)
        np.testing.assert_array_equal(held.covariance, saved.covariance)
        assert (held.features is None) == (saved.features is None)
    np.testing.assert_array_equal(reference.load(file, "clip 1").features, two[0].features)
    # Anybody can read it: plain safetensors, float64.
    with safe_open(file, "np") as opened:
        assert json.loads(opened.metadata()["extractors"]) == ["clip 1", "dino 2"]
    assert load_file(file)["1.mean"].dtype == np.float64
    assert [path.name for path in file.parent.iterdir()] == [file.name]
    with pytest.raises(DiffscaleError, match="of clip 1, dino 2, but inception 3 is asked for"):
        reference.load(file, "inception 3")


def test_what_is_no_reference_is_told(tmp_path: Path, two: list[Statistics]) -> None:
    file = tmp_path / "reference.safetensors"
    reference.save(two[:1], file)
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
            reference.load(file, "clip 1")
    with pytest.raises(DiffscaleError, match="choose another place"):
        reference.save(two, file / "below a file")


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
