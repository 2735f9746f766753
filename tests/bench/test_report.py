"""What a bench leaves behind, on made-up samples."""

import csv
import io
import json

import pytest

from diffscale.bench.config import BenchConfig
from diffscale.bench.report import as_csv, summarise, write
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval
from diffscale.report import plots

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
    write(BenchConfig(search=["random"], budget=[80], dtype="float32"), [CELL], samples, folder)
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


@pytest.mark.parametrize(("nfe", "labels"), [([80, 160], ["80", "160"]), ([20], ["20"]), ([20, 75], ["20", "40"])])
def test_the_axis_of_nfe_is_labelled_by_doubling_budgets(monkeypatch, tmp_path, nfe, labels):
    seen = []
    monkeypatch.setattr(plots, "clean_axes", seen.append)
    plots.curves({"a": [(n, {"mean": 1, "low": 0, "high": 2}) for n in nfe]}, "y", "title", tmp_path / "plot.png")
    assert [label.get_text() for label in seen[0].get_xticklabels()] == labels


def test_two_settings_of_one_verifier_have_plots_of_their_own(tmp_path):
    verifiers = ["mine:x power=1", "mine:x power=2", "clip"]
    cells = [Cell("random", verifier, 80) for verifier in verifiers]
    samples = [sample("a", 0, 1.0) | {"verifier": verifier} for verifier in verifiers]
    write(BenchConfig(search=["random"], verifier=verifiers, budget=[80], dtype="float32"), cells, samples, tmp_path)
    assert {path.name for path in tmp_path.glob("scaling*.png")} == {
        "scaling-mine_x_power=1.png", "scaling-mine_x_power=2.png", "scaling-clip.png"
    }  # fmt: skip
