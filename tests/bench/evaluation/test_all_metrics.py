"""All metrics together, and extractors as another one is added."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffscale._util.config import validated
from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import EvaluateConfig
from diffscale.bench.evaluation import extractors
from diffscale.bench.evaluation.evaluate import COMPARED, METRICS, run
from diffscale.bench.evaluation.features import features, statistics
from diffscale.metrics.distances import cmmd, precision, recall
from diffscale.metrics.frechet import fid
from diffscale.metrics.inception_score import inception_score
from diffscale.metrics.statistics import Statistics
from diffscale.suites.pictures import Pictures


@pytest.fixture
def inception(monkeypatch: pytest.MonkeyPatch, colours: Any) -> Any:
    """Colours stand in for the networks that metrics are published with."""
    for name in ("inception", "dino", "clip"):
        monkeypatch.setitem(extractors.EXTRACTORS, name, lambda *, device, image_model: colours)
    return colours


def _run(folder: Path, *metrics: str, **more: Any) -> dict[str, Any]:
    return run(EvaluateConfig(folder=folder, metrics=list(metrics), device="cpu", **more))


def test_every_metric_is_what_its_function_says(folder: Any, inception: Any) -> None:
    generated, real = folder("generated", 30), folder("real", 40, seed=1)
    found = _run(generated, *COMPARED, "is", reference=real)
    a, b = (features(Pictures.open(where), inception) for where in (generated, real))
    both = Statistics.from_features(a, "x"), Statistics.from_features(b, "x")
    expected = {"fid": fid(*both), "fd_dino": fid(*both), "precision": precision(b, a), "recall": recall(b, a),
                "cmmd": cmmd(b, a)}  # fmt: skip
    assert {name: found["metrics"][name]["value"] for name in COMPARED} == expected
    assert found["metrics"]["fid"]["features"] == "colours 1"
    logits = np.random.default_rng(0).permutation(inception.logits(Pictures.open(generated).load(range(30))))
    mean, std = inception_score(logits)
    assert found["metrics"]["is"]["value"] == pytest.approx(mean) and found["metrics"]["is"]["std"] == pytest.approx(
        std
    )
    assert list(found["metrics"]) == [*COMPARED, "is"] and set(COMPARED) < set(METRICS)
    assert (found["folder"], found["pictures"], found["reference"]) == (str(generated), 30, str(real))
    assert found["warnings"] == []
    json.dumps(found)
    # The same pictures are as far from themselves as can be told: nothing.
    same = _run(generated, "fid", "precision", "recall", "cmmd", reference=generated)["metrics"]
    assert same["fid"]["value"] == pytest.approx(0, abs=1e-9) and same["cmmd"]["value"] == pytest.approx(0, abs=1e-9)
    assert same["precision"]["value"] == same["recall"]["value"] == 1


def test_few_pictures_are_warned_of_once(folder: Any, inception: Any) -> None:
    found = _run(folder(n=5), "fid", "fd_dino", "is", reference=folder("real", 40))
    assert [note.split(" of ")[0] for note in found["warnings"]] == ["The Inception Score", "The Frechet distance"]
    assert all(np.isfinite(metric["value"]) for metric in found["metrics"].values())


@pytest.mark.parametrize("metrics", [[], ["is"], ["fid"], ["fid", "precision", "cmmd"]])
def test_a_reference_kept_is_as_good_as_its_folder(
    folder: Any, inception: Any, tmp_path: Path, metrics: list[str]
) -> None:
    generated, real, file = folder("generated", 12), folder("real", 14, seed=1), tmp_path / "real.safetensors"
    kept = _run(real, *metrics, save_reference=file)
    assert list(kept["metrics"]) == [name for name in metrics if name == "is"]
    for path in real.iterdir():
        path.unlink()
    asked = [name for name in metrics if name in COMPARED] or ["fid", "precision"]
    by_file, by_folder = (
        {name: metric["value"] for name, metric in _run(generated, *asked, reference=of)["metrics"].items()}
        for of in (file, folder("again", 14, seed=1))
    )
    assert by_file == by_folder
    if metrics == ["fid"]:
        with pytest.raises(DiffscaleError, match="holds no features, which recall needs"):
            _run(generated, "recall", reference=file)


def test_features_replace_those_of_inception_and_bound_ones_stay(
    folder: Any, monkeypatch: pytest.MonkeyPatch, colours: Any
) -> None:
    asked: list[tuple[str, str | None]] = []

    def factory(name: str) -> Any:
        def make(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Any:
            asked.append((name, model))
            return colours

        return make

    for name in ("inception", "dino", "clip"):
        monkeypatch.setitem(extractors.EXTRACTORS, name, factory(name))
    where = folder(n=8)
    _run(where, "fid", "fd_dino", "cmmd", "recall", reference=where, features="dino:model=x")
    assert sorted(asked, key=str) == [("clip", None), ("dino", "x")]
    asked.clear()
    _run(where, "fid", "is", reference=where)
    assert asked == [("inception", None)]
    asked.clear()
    _run(where, save_reference=where.parent / "r.safetensors", features="clip:model=y")
    assert asked == [("clip", "y")]


def test_the_shipped_clip_measures_pictures_of_shapes(folder: Any) -> None:
    generated, real = (folder(name, 6, seed, sizes=((64, 64),)) for seed, name in enumerate(("a", "b")))
    found = _run(generated, "fid", "precision", "cmmd", reference=real, features="clip")
    name = extractors.load("clip:model=shapes-clip").name
    assert {metric["features"] for metric in found["metrics"].values()} == {name}
    assert all(np.isfinite(metric["value"]) for metric in found["metrics"].values())
    assert "biased upwards" in found["warnings"][0]


def test_statistics_of_pictures_and_of_files(folder: Any, colours: Any, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    of = statistics(Pictures.open(folder(n=4)), colours, "recall", 2, lambda done, total: told.append((done, total)))
    assert of.n == 4 and of.features is not None and told[-1] == (4, 4)
    with pytest.raises(DiffscaleError, match="cannot be read"):
        statistics(tmp_path / "none.safetensors", colours)


def test_settings_are_checked() -> None:
    with pytest.raises(DiffscaleError, match="batch_size"):
        validated(EvaluateConfig, {"folder": "x", "batch_size": 0})
