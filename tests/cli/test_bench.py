"""`diffscale bench`: adds up, skips what is done, goes on after a kill, and says what is wrong."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
from commands import run_diffscale
from PIL import Image

from diffscale._util.errors import DiffscaleError
from diffscale.bench.report import summarise
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval
from diffscale.suites import prompts

ARGUMENTS = ["--steps", "4", "--limit", "2", "--budget", "8", "--budget", "16", "--search", "random",
             "--search", "zero_order n=1"]  # fmt: skip


def test_a_bench_adds_up_and_is_not_done_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    arguments = ["bench", "shapes-mini", *ARGUMENTS, "--output", str(folder)]
    assert run_diffscale(monkeypatch, *arguments) == 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len(samples) == 2 * 2 * 2 and {sample["nfe"] for sample in samples} == {8, 16}
    for sample in samples:
        assert Image.open(folder / sample["image"]).size == (64, 64)
        assert 0 <= sample["scores"]["shapes-judge"]["best"] <= 1
        # The same sample may have been in two batches of unlike sizes.
        assert sample["score"]["best"] >= sample["score"]["baseline"] - 1e-4 or sample["search"] != "random"
    # All searches of a prompt are measured by one plain sample of the same noise, also if they never sample it.
    assert len({(sample["prompt"], sample["score"]["baseline"]) for sample in samples}) == 2
    rows = json.loads((folder / "results.json").read_text())["cells"]
    assert [row["samples"] for row in rows] == [2] * 4
    table = list(csv.DictReader((folder / "results.csv").open()))
    assert float(table[0]["judge_low"]) <= float(table[0]["judge"]) <= float(table[0]["judge_high"])
    assert {path.name for path in folder.glob("*.png")} == {"scaling-clip.png", "judge-clip.png"}

    before = (folder / "samples.jsonl").read_bytes()
    monkeypatch.setattr("diffscale.bench.run.make_sampler", None)  # nothing may be loaded
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert (folder / "samples.jsonl").read_bytes() == before
    # A line that was cut off is run again: from the journal, for nothing.
    monkeypatch.undo()
    (folder / "samples.jsonl").write_bytes(before[:-30])
    assert run_diffscale(monkeypatch, *arguments) == 0
    again = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert again == samples
    assert run_diffscale(monkeypatch, *arguments, "--seed", "1") == 2
    assert "seed was 0, now 1" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["shapes-mni"], "did you mean 'shapes-mini'"),
        (["nowhere/prompts.txt"], "There is no file"),
        (["shapes-mini", "--search", "radnom"], "did you mean 'random'"),
        (["shapes-mini", "--verifier", "clop"], "did you mean 'clip'"),
        (["shapes-mini", "--budget", "0"], "budget"),
        (["shapes-mini", "--budget", "3"], "one costs"),
    ],
)
def test_what_is_wrong_is_said_and_the_exit_code_is_2(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run_diffscale(monkeypatch, "bench", *arguments, "--limit", "1", "--output", str(tmp_path / "out")) == 2
    assert message in capsys.readouterr().err


def test_prompts_from_files(tmp_path: Path) -> None:
    text, lines, table = tmp_path / "p.txt", tmp_path / "p.jsonl", tmp_path / "p.csv"
    text.write_text("a cat\n\na dog\na cat\n")
    lines.write_text('{"prompt": "a cat"}\n{"caption": "a dog"}\n')
    table.write_text('id,prompt\n1,"a cat, asleep"\n2,a dog\n')
    assert prompts.load(str(text)) == prompts.load(str(lines)) == ["a cat", "a dog"]
    assert prompts.load(str(table)) == ["a cat, asleep", "a dog"]
    table.write_text("id,words\n1,a cat\n")
    with pytest.raises(DiffscaleError, match="needs a column `prompt`"):
        prompts.load(str(table))
    assert len(prompts.load("shapes-mini", 6)) == 6


def test_means_are_over_prompts_and_failures_are_counted() -> None:
    def sample(prompt: str, repeat: int, score: float) -> dict[str, object]:
        both = {"best": score, "baseline": 0.0}
        return {"search": "s", "verifier": "v", "budget": 8, "prompt": prompt, "repeat": repeat, "score": both,
                "scores": {"v": both, "j": both}, "nfe": 8, "network_forwards": 8, "flops": 1.0,
                "seconds": {"denoise": 1.0}, "dropped": 0}  # fmt: skip

    samples = [sample("a", 0, 1.0), sample("a", 1, 3.0), sample("b", 0, 6.0)]
    samples.append({"search": "s", "verifier": "v", "budget": 8, "prompt": "b", "repeat": 1, "error": "none"})
    (row,) = summarise([Cell("s", "v", 8)], samples, "j")
    assert row["judge"] == row["score"] and row["other_verifiers"] == {} and not row["judge_searched_with"]
    assert row["score"]["mean"] == 4.0 and row["failed"] == 1 and row["samples"] == 4
    wide = interval([0.0, 1.0] * 50)
    assert wide["mean"] == 0.5 and 0.35 < wide["low"] < 0.45 < 0.55 < wide["high"] < 0.65


def test_another_limit_overwrites_no_picture(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle\na blue square\ntwo green stars\n")
    arguments = ["--budget", "8", "--steps", "4", "--output", str(folder)]
    for limit in (1, 2, 3):
        assert run_diffscale(monkeypatch, "bench", str(prompts), *arguments, "--limit", str(limit)) == 0
    samples = [json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines()]
    assert len({sample["prompt"] for sample in samples}) == len({sample["image"] for sample in samples}) == 3


def test_cells_that_cannot_work_fail_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    grid = ["--search", "fk", "--search", "first_order", "--search", "random"]
    grid += ["--verifier", "clip_ssl", "--verifier", "ensemble of=clip,shapes-judge"]
    monkeypatch.setenv("COLUMNS", "300")
    arguments = ["bench", "shapes-mini", *grid, "--limit", "2", "--steps", "4", "--budget", "16"]
    assert run_diffscale(monkeypatch, *arguments, "--output", str(tmp_path)) == 0
    rows = {
        (r["search"], r["verifier"].split()[0]): r for r in json.loads((tmp_path / "results.json").read_text())["cells"]
    }
    unfinished, flat = rows.pop(("fk", "clip_ssl")), rows.pop(("first_order", "ensemble"))
    assert unfinished["failed"] == flat["failed"] == 2
    assert "cannot score unfinished ones: use a search over noises" in unfinished["errors"][0]
    assert "has no gradient: search with one of its members" in flat["errors"][0]
    assert len(rows) == 4 and all(
        row["failed"] == 0 and row["errors"] == [] and "score" in row for row in rows.values()
    )
    said = capsys.readouterr().out
    for row in (unfinished, flat):
        assert row["errors"][0] in said and "2 of 2 searches of " + row["search"] in said
    monkeypatch.setattr("diffscale.bench.run.make_sampler", None)  # what failed is done
    assert run_diffscale(monkeypatch, *arguments, "--output", str(tmp_path)) == 0
