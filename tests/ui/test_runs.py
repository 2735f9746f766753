"""What the page knows of run folders, without gradio: forms, feeds, the process that searches, and the queue."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_diffscale

from diffscale import DiffscaleError
from diffscale._util import config
from diffscale._util.files import locked
from diffscale.ui import feed, html, worker
from diffscale.ui.forms import FIELDS, form_of, new_folder, settings_of
from diffscale.ui.jobs import Jobs
from diffscale.ui.runs import Run, find_runs

FORM = {"prompt": "a red star", "model": "shapes-flux", "search": "random", "budget": 8, "seed": 0}
FORM["verifier"] = "test_runs:brightness"
MORE = "steps: 2\ndtype: float32\nbatch_size: 1\n"
stop_at: list[int] = []
scored: list[float] = []


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    if stop_at and len(scored) == stop_at[0]:
        stop_at.clear()
        os.kill(os.getpid(), signal.SIGINT)
    scores = images.mean((1, 2, 3))
    scored.extend(scores.tolist())
    return scores


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    scored.clear()
    return new_folder(tmp_path, settings_of(FORM, MORE))


def test_a_form_becomes_settings_and_back(folder: Path) -> None:
    form, more = form_of(Run(folder).settings)
    assert form == FORM and "steps: 2" in more and "dtype" not in more
    assert folder.name.endswith("-a-red-star")
    assert new_folder(folder.parent, settings_of(FORM, "")) != folder
    form, more = form_of({})
    assert set(form) == set(FIELDS) and form["budget"] == 1280 and more == ""


@pytest.mark.parametrize(
    ("changed", "more", "sentence"),
    [
        ({"prompt": ""}, "", "Fill in the prompt"),
        ({"budget": None}, "", "Fill in the budget"),
        ({"budget": -1}, "", "budget"),
        ({"search": "randem"}, "", "did you mean 'random'"),
        ({"verifier": "clop"}, "", "did you mean 'clip'"),
        ({}, "steps: [", "cannot be read, as YAML"),
        ({}, "fast", "`name: value` lines"),
        ({}, "budget: 3", "Leave budget out"),
        ({}, "stepps: 3", "stepps"),
    ],
)
def test_a_wrong_form_is_told_in_a_sentence(changed: dict[str, Any], more: str, sentence: str) -> None:
    with pytest.raises(DiffscaleError, match=sentence.replace("[", r"\[")):
        settings_of({**FORM, **changed}, more)


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiffscaleError, match="cannot be written to"):
        new_folder(tmp_path / "file", settings_of(FORM, ""))


def test_a_run_leaves_what_a_page_watches(folder: Path) -> None:
    assert worker.main(folder) == 0
    run = Run(folder)
    assert run.result is not None and html.standing(run, None) == "done"
    assert [each.nfe for each in run.candidates] == [2, 4, 6, 8]
    assert [each.score[0] for each in run.candidates] == pytest.approx(scored[:4])
    assert all(each.picture.stat().st_size for each in run.candidates)
    last = feed.points(folder)[-1]
    assert (last.nfe, last.total) == (8, 8) and last.best == pytest.approx(max(scored[:4]))
    assert run.points[-1].best == pytest.approx(run.result["best"]["score"])
    computed = len(scored)
    assert worker.main(folder) == 0 and len(scored) == computed


def test_a_stopped_run_goes_on_and_shows_every_candidate_once(folder: Path) -> None:
    stop_at.append(2)
    assert worker.main(folder) == 128 + signal.SIGINT
    run = Run(folder)
    assert html.standing(run, None) == "stopped" and run.result is None
    assert "Stopped at 4 of 8 NFE" in html.status(run, None)
    best = [max(scored[: i + 1]) for i in range(2)]
    curve = {point.nfe: point.best for point in run.points}
    assert list(curve) == [2, 4] and list(curve.values()) == pytest.approx(best)
    # A line that a kill has cut off spoils no other.
    with (folder / "live" / "candidates.jsonl").open("a") as file:
        file.write('\n{"nfe": 6, "sc')
    assert worker.main(folder) == 0
    assert [each.nfe for each in Run(folder).candidates] == [2, 4, 6, 8]
    assert [each.score[0] for each in Run(folder).candidates] == pytest.approx(scored[:4])


def test_a_run_of_the_command_goes_on_from_the_page(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_at.append(2)
    command = ["generate", "--config", folder / "config.yaml", "--output", folder]
    assert run_diffscale(monkeypatch, *command) == 128 + signal.SIGINT
    assert html.standing(Run(folder), None) == "stopped"
    assert worker.main(folder) == 0
    assert [each.nfe for each in Run(folder).candidates] == [6, 8]  # the others are in the result


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [({"model": "no/such/folder"}, "no/such/folder"), ({"budget": 1}, "does not pay for one sample")],
)
def test_what_fails_in_the_process_is_its_last_line(
    tmp_path: Path, changed: dict[str, Any], sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    folder = new_folder(tmp_path, settings_of({**FORM, **changed}, MORE))
    assert worker.main(folder) == 2
    feed.log_file(folder).parent.mkdir(exist_ok=True)
    feed.log_file(folder).write_text(capfd.readouterr().out)
    run = Run(folder)
    assert html.standing(run, None) == "failed" and sentence in run.error
    assert sentence in html.status(run, None) and "Traceback" not in html.status(run, None)


def test_a_feed_that_cannot_be_written_costs_no_search(folder: Path) -> None:
    (folder / "live").mkdir()
    (folder / "live" / "candidates.jsonl").mkdir()
    with pytest.warns(UserWarning, match="could not be drawn"):
        worker.compute(folder)
    assert Run(folder).result is not None


def test_scores_that_are_none_are_shown_as_none(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("prompt: <b>\nbudget: 4\n")
    written = feed.Feed(tmp_path)
    images = torch.rand(2, 3, 8, 8)
    written.observe(0, torch.tensor([-1, 2]), torch.tensor([-math.inf, 0.5]), images, [2, 4])
    run = Run(tmp_path)
    assert [each.score for each in run.candidates] == [[None], [0.5]]
    shown = html.status(run, None) + html.pictures(run)
    assert "no score" in shown and "<b>" not in shown and "first finished 0.500" in shown


def test_scores_of_components_are_not_ranked_before_the_end(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("prompt: rain\nbudget: 4\n")
    scores = torch.tensor([[0.25, 7.0], [0.5, 1.0]])
    feed.Feed(tmp_path).observe(0, torch.tensor([1, 2]), scores, torch.rand(2, 3, 8, 8), [2, 4])
    shown = html.pictures(Run(tmp_path))
    assert "0.2500 / 7.0000" in shown and "best so far" not in shown and "the last first" in shown


def test_runs_are_found_below_and_by_what_they_are(folder: Path, tmp_path: Path) -> None:
    bench = tmp_path / "a" / "b" / "bench"
    bench.mkdir(parents=True)
    (bench / "report.html").write_text("<p>report</p>")
    (bench / "inner").mkdir()
    (bench / "inner" / "config.yaml").write_text("suite: shapes-mini\n")
    assert set(find_runs([tmp_path])) == {folder, bench}
    assert html.standing(Run(bench), None) == "other" and "report can be opened" in html.status(Run(bench), None)
    assert "&lt;p&gt;report" in html.report(Run(bench)) and 'sandbox="allow-scripts' in html.report(Run(bench))
    assert "no report.html" in html.report(Run(folder))
    with locked(folder):
        assert html.standing(Run(folder), None) == "elsewhere"
    assert html.standing(Run(folder), None) == "stopped"


def test_two_runs_are_compared_by_what_differs(folder: Path, tmp_path: Path) -> None:
    other = new_folder(tmp_path, settings_of({**FORM, "seed": 7}, MORE))
    for each in (folder, other):
        assert worker.main(each) == 0
    shown = html.comparison([Run(folder), Run(other)])
    assert "<th>seed</th><td>0</td><td>7</td>" in shown and "<th>steps</th>" not in shown
    best = json.loads((other / "result.json").read_text())["best"]["score"]
    assert f"{best:.4f}" in shown
    assert "All settings are the same" in html.comparison([Run(folder), Run(folder)])
    config.save(settings_of({**FORM, "verifier": "clip"}, MORE), other / "config.yaml")
    assert "do not compare" in html.comparison([Run(folder), Run(other)])


def test_searches_wait_for_each_other_and_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\ntrap "exit 130" INT\necho begun > "$3/begun"\n'
                      'while [ ! -e "$3/end" ]; do sleep 0.05; done\n[ ! -e "$3/die" ] || kill -9 $$\n')  # fmt: skip
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for each in (first, second, third):
        each.mkdir()
    jobs = Jobs()
    for each in (first, second, third, first):
        jobs.add(each)
    wait_for(lambda: (first / "begun").exists())
    assert [jobs.place(each) for each in (first, second, third)] == [0, 1, 2]
    jobs.stop(second)
    assert [jobs.place(each) for each in (first, second, third)] == [0, None, 1]
    jobs.stop(first)
    wait_for(lambda: (third / "begun").exists())
    assert jobs.place(first) is None and not Run(first).error and not (second / "begun").exists()
    (third / "die").touch()
    (third / "end").touch()
    wait_for(lambda: jobs.place(third) is None)
    assert "SIGKILL" in Run(third).error
    jobs.add(first)
    wait_for(lambda: jobs.place(first) == 0)
    assert jobs.close() == [first] and jobs.place(first) is None


def wait_for(done: Any) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_other_machines_need_a_password(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("DIFFSCALE_UI_PASSWORD", raising=False)
    monkeypatch.setattr(sys.stdin, "isatty", lambda: False, raising=False)
    for host in ("0.0.0.0", "::", "192.168.1.2", "box.example"):
        assert run_diffscale(monkeypatch, "ui", "--host", host) == 2
        error = capsys.readouterr().err
        assert "the page needs a password: set DIFFSCALE_UI_PASSWORD" in error and "Traceback" not in error
