"""What a bench leaves behind, on made-up samples."""

import csv
import io
import json

import pytest

from diffscale.bench.config import BenchConfig
from diffscale.bench.report import as_csv, summarise, write
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval

CELL = Cell("random", "clip", 80)


def sample(prompt, repeat, score):
    ends = {"best": score, "baseline": 0.0}
    return {"search": "random", "verifier": "clip", "budget": 80, "prompt": prompt, "repeat": repeat, "score": ends,
            "scores": {"clip": ends}, "nfe": 80, "network_forwards": 80, "flops": 0.0, "seconds": {}, "dropped": 0,
            "trace": [[20, 0.0], [80, score]]}  # fmt: skip


def drawn(monkeypatch, folder, samples):
    """The curves of the scaling plot, by search."""
    seen = []
    monkeypatch.setattr("diffscale.bench.report.plots.curves", lambda lines, *rest: seen.append(lines))
    write(BenchConfig(budget=[80], dtype="float32"), [CELL], samples, folder)
    return seen


def test_curves_take_the_repeats_of_a_prompt_as_one(monkeypatch, tmp_path):
    """Eight repeats of each of two prompts that differ say no more of other prompts than one repeat does."""
    once = drawn(monkeypatch, tmp_path, [sample(p, 0, s) for p, s in (("a", 0.0), ("b", 1.0))])
    often = drawn(monkeypatch, tmp_path, [sample(p, r, s) for p, s in (("a", 0.0), ("b", 1.0)) for r in range(8)])
    assert often == once
    assert once[0]["random"][-1] == (80.0, interval([0.0, 1.0]))
    # A prompt with more repeats does not weigh more.
    uneven = [sample("a", r, 0.0) for r in range(3)] + [sample("b", 0, 1.0)]
    assert drawn(monkeypatch, tmp_path, uneven)[0]["random"][-1][1]["mean"] == pytest.approx(0.5)


def test_a_cell_that_failed_has_its_sentence_and_no_curve(monkeypatch, tmp_path):
    base = {"search": "random", "verifier": "clip", "budget": 80, "repeat": 0, "error": "It does not, so do that."}
    failed = [base | {"prompt": prompt} for prompt in "abc"]
    assert drawn(monkeypatch, tmp_path, failed) == []
    (row,) = json.loads((tmp_path / "results.json").read_text())["cells"]
    assert row["failed"] == row["samples"] == 3 and row["errors"] == ["It does not, so do that."]
    (line,) = csv.DictReader(io.StringIO(as_csv(summarise([CELL], failed))))
    assert line["errors"] == "It does not, so do that."
