"""A bench whose prompts share one budget: cells of their own, whole after a kill, and told of in the report."""

import json
import sqlite3
from contextlib import closing

import pytest
import torch
from typer.testing import CliRunner

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import parse_jsonl
from diffscale.bench import run as bench
from diffscale.bench.config import BenchConfig
from diffscale.bench.report import summarise
from diffscale.bench.run import cells, run
from diffscale.cli.main import app
from diffscale.testing import Killed

PROMPTS = ["a red circle", "a blue star", "a green square"]
SETTINGS = BenchConfig(
    search=["random"], steps=1, device="cpu", seed=5, budget=[6], allocation="threshold minimum=2 chance=0"
)


class Bright:
    """Likes bright pictures, and dies before call number `left`; easy prompts are those of few letters."""

    name, left = "bright", 10**6

    def __call__(self, images, prompts):
        Bright.left -= 1
        if Bright.left < 0:
            raise Killed
        return images.flatten(1).mean(1) * torch.tensor([len(each) - 11.0 for each in prompts])


@pytest.fixture(autouse=True)
def bright(monkeypatch):
    monkeypatch.setattr("diffscale.bench.networks.load_verifier", lambda *_, **__: Bright())
    monkeypatch.setattr(Bright, "left", 10**6)


def told(samples):
    return [(s["prompt"], s["nfe"], s["key"], s["score"]["best"]) for s in samples]


def test_it_is_told_apart_from_equal_budgets_and_pays_for_nothing_twice(tmp_path, monkeypatch):
    ran = []
    monkeypatch.setattr(bench, "run_searches", lambda *a, _run=bench.run_searches, **k: ran.append(0) or _run(*a, **k))
    shared = run(SETTINGS, PROMPTS, tmp_path)
    spent = [s["nfe"] for s in shared]
    assert sum(spent) <= 18 and min(spent) >= 2 and len(set(spent)) > 1
    assert {s["allocation"] for s in shared} == {SETTINGS.allocation}
    began = len(ran)
    assert told(run(SETTINGS, PROMPTS, tmp_path)) == told(shared) and len(ran) == began
    plain = SETTINGS.model_copy(update={"allocation": None})
    equal = run(plain, PROMPTS, tmp_path)
    assert [s["nfe"] for s in equal] == [6, 6, 6] and not any("allocation" in s for s in equal)
    # Other prompts are another whole.
    fewer = run(SETTINGS, PROMPTS[:2], tmp_path)
    assert sum(s["nfe"] for s in fewer) <= 12 and {s["name"] for s in fewer}.isdisjoint(s["name"] for s in shared)
    row = summarise(cells(SETTINGS), [*shared, *equal])[0]
    assert row["allocation"] == SETTINGS.allocation and row["samples"] == 3 and row["nfe"] == sum(spent) / 3


@pytest.mark.parametrize("calls", [1, 3, 5, 6])
def test_killed_anywhere_it_ends_as_it_would_have(tmp_path, monkeypatch, calls):
    settings = SETTINGS.model_copy(update={"batch_size": 3})
    whole = run(settings, PROMPTS, tmp_path / "whole")
    monkeypatch.setattr(Bright, "left", calls)
    with pytest.raises(Killed):
        run(settings, PROMPTS, tmp_path / "killed")
    monkeypatch.setattr(Bright, "left", 10**6)
    assert told(run(settings, PROMPTS, tmp_path / "killed")) == told(whole)
    # A line that was lost is made again, and all of its cell with it.
    file = tmp_path / "killed" / "samples.jsonl"
    file.write_text(file.read_text().partition("\n")[0] + "\n")
    assert told(run(settings, PROMPTS, tmp_path / "killed")) == told(whole)


def test_what_cannot_share_is_refused_before_anything_is_computed(tmp_path):
    for change, said in (
        ({"search": ["svdd"]}, "svdd cannot be given more on its way"),
        ({"allocation": "threshold minimum=7"}, "give a larger budget, or the allocation a smaller minimum"),
    ):
        with pytest.raises(DiffscaleError, match=said):
            run(SETTINGS.model_copy(update=change), PROMPTS, tmp_path)
    with closing(sqlite3.connect(tmp_path / "journal.sqlite")) as journal:
        assert journal.execute("SELECT count(*) FROM replies").fetchone() == (0,)
    wrong = CliRunner().invoke(app, ["bench", "--allocation", "threshold chance=2", "--output", str(tmp_path / "no")])
    assert wrong.exit_code and not (tmp_path / "no").exists()


def test_the_command_says_that_they_share(tmp_path):
    texts = tmp_path / "prompts.txt"
    texts.write_text("\n".join(PROMPTS))
    out = tmp_path / "out"
    words = [
        "bench",
        str(texts),
        "--search",
        "random",
        "--allocation",
        "threshold minimum=2",
        "--budget",
        "4",
        "--steps",
        "1",
    ]
    found = CliRunner().invoke(app, [*words, "--device", "cpu", "--output", str(out)])
    assert found.exit_code == 0, found.output
    assert "share one budget by threshold minimum=2" in " ".join(found.output.split())
    assert json.loads((out / "results.json").read_text())["settings"]["allocation"] == "threshold minimum=2"
    assert len(parse_jsonl((out / "samples.jsonl").read_text(), out)) == 3
