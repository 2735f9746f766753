"""`diffscale tape` and `diffscale tune auto` on Shapes: what is written, told and refused."""

import json
from dataclasses import replace

import pytest
import torch
from commands import run_diffscale

import diffscale
from diffscale.samplers.toy import ToySampler
from diffscale.searches.profiles import read_profile
from diffscale.suites.prompts import load
from diffscale.tape.profile import measured
from diffscale.tape.record import Plan, record
from diffscale.tape.tape import Tape, load_tape
from diffscale.testing import NearPoint
from diffscale.verifiers.valued import read_value

RECORD = ["tape", "record", "shapes-mini", "--limit", "2", "--candidates", "4", "--steps", "4", "--drafts", "2,3"]
RECORD += ["--verifier", "clip", "--verifier", "aesthetic", "--dtype", "float32", "--output"]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    path = tmp_path_factory.mktemp("shapes") / "flux.tape"
    with pytest.MonkeyPatch.context() as patched:
        assert run_diffscale(patched, *RECORD, path) == 0
    return path


@pytest.fixture(scope="module")
def toy(tmp_path_factory):
    path = tmp_path_factory.mktemp("toy") / "toy.tape"
    both = {"near": NearPoint(), "far": NearPoint((-4.0, 0.0))}
    plan = Plan(32, predictions=(2, 4), drafts=((2, ""), (3, "")))
    record(ToySampler(("a", "b", "c"), 8), both, plan, path, about={"judge": "far"})
    return path


def test_a_tape_holds_what_random_search_finds_and_what_the_judge_says(recorded):
    tape = load_tape(recorded)
    assert [*tape.scores] == ["clip", "aesthetic", "shapes-judge"] and list(tape.predictions) == [1, 3]
    assert [(kind.steps, kind.nfe) for kind in tape.drafts] == [(2, 2), (3, 3)]
    assert tape.prompts == load("shapes-mini", 2) and tape.about["dtype"] == "float32"
    for name in tape.scores:
        found = diffscale.search("shapes-flux", tape.prompts[1], verifier=name, nfe=16, steps=4, dtype="float32")
        torch.testing.assert_close(tape.finals(name)[1], found.pool[:, 0], atol=1e-4, rtol=1e-4)
    assert [each.name for each in recorded.parent.iterdir()] == [recorded.name]


def test_the_same_recording_is_read_and_another_one_is_refused(recorded, monkeypatch, capsys):
    before = recorded.read_bytes()
    monkeypatch.setattr("diffscale.tape.record._Recorder", None)  # nothing may be computed
    assert run_diffscale(monkeypatch, *RECORD, recorded) == 0
    for changed, said in (
        (["--seed", "1"], "seed was 0, now 1"),
        (["--steps", "5"], "steps was 4, now 5"),
        (["--limit", "1"], "its prompts)"),
        (["--pipe-arg", "guidance_scale=2"], "pipe_args was {}, now {'guidance_scale': 2}"),
        (["--dtype", "bfloat16"], "dtype was 'float32', now 'bfloat16'"),
    ):
        assert run_diffscale(monkeypatch, *RECORD, recorded, *changed) == 2
        assert f"of another recording ({said}" in capsys.readouterr().err, changed
    assert recorded.read_bytes() == before


def test_a_recording_goes_on_in_the_dtype_that_it_was_begun_in(recorded, tmp_path, monkeypatch):
    load_tape(recorded).save(tmp_path / "a.tape.0")
    monkeypatch.setattr("diffscale.tape.record._Recorder", None)
    auto = [each for each in RECORD if each not in ("--dtype", "float32")]
    assert run_diffscale(monkeypatch, *auto, tmp_path / "a.tape") == 0
    assert load_tape(tmp_path / "a.tape").about["dtype"] == "float32"
    assert [each.name for each in tmp_path.iterdir()] == ["a.tape"]


def test_no_judge_is_recorded_of_prompts_that_it_cannot_read(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("two red stars\na bear on a skateboard\n")
    arguments = ["--candidates", "1", "--steps", "2", "--predictions", "none", "--output", tmp_path / "a.tape"]
    assert run_diffscale(monkeypatch, "tape", "record", tmp_path / "prompts.txt", *arguments) == 0
    tape = load_tape(tmp_path / "a.tape")
    assert [*tape.scores] == ["clip"] and tape.width == 1 and tape.about["judge"] is None


def test_replay_tells_what_searches_find_and_goes_on_after_those_that_fail(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "150")
    searches = ["--search", "draft", "--search", "draft steps=5", "--search", "random", "--budget", "48"]
    assert run_diffscale(monkeypatch, "tape", "replay", toy, *searches, "--output", tmp_path / "r.json") == 0
    said, results = capsys.readouterr().out, json.loads((tmp_path / "r.json").read_text())
    assert "warning: draft steps=5 at 48 NFE: The tape has drafts of 2, 3 steps, not of 5: record them." in said
    assert (results["verifier"], results["judge"], results["draws"], results["prompts"]) == ("near", "far", 4, 3)
    drafted, failed, plain = results["rows"]
    assert "not of 5" in failed["error"] and plain["finished"] == 6 and plain["nfe"] == 48
    assert drafted["worth"]["mean"] > 1 and drafted["gain"]["mean"] > 0 and "judge_gain" in drafted
    line = next(line for line in said.splitlines() if line.startswith("draft"))
    assert f"{drafted['score']['mean']:.3f}" in line and f"{drafted['judge']['mean']:.3f}" in line
    # The judge says nothing of what it was searched with itself.
    again = ["tape", "replay", toy, "--verifier", "far", "--output", tmp_path / "r.json"]
    assert run_diffscale(monkeypatch, *again) == 0
    results = json.loads((tmp_path / "r.json").read_text())
    assert (results["judge"], [row["budget"] for row in results["rows"]]) == (None, [64, 64, 64])
    assert run_diffscale(monkeypatch, *again[:-4], "--verifier", "ensemble of=near,far", "--judge", "near") == 0
    assert "score: ensemble of=near,far; judge: near" in capsys.readouterr().out


def test_what_no_search_finds_on_a_tape_is_an_error(toy, tmp_path, monkeypatch, capsys):
    for more, said in (
        (["--search", "zero_order", "--budget", "48"], "No search could be replayed: A tape holds whole samples"),
        (["--budget", "7"], "No search could be replayed: "),
        (["--budget", "9999999"], "No search could be replayed: "),
        (["--verifier", "clip"], "Unknown verifier of the tape 'clip'"),
        (["--judge", "clip"], "Unknown verifier of the tape 'clip'"),
        (["--verifier", "ensemble of=clip,aesthetic"], "Unknown verifier of the tape 'clip'"),
        (["--search", "drft"], "did you mean 'draft'"),
        (["--output", tmp_path], "cannot be written"),
    ):
        assert run_diffscale(monkeypatch, "tape", "replay", toy, *more) == 2
        assert said in capsys.readouterr().err


def test_prompts_without_scores_are_told_of(toy, tmp_path, monkeypatch, capsys):
    tape = load_tape(toy)
    tape.scores["near"][1, 3, -1] = -torch.inf
    Tape(**vars(tape)).save(tmp_path / "t.tape")
    assert run_diffscale(monkeypatch, "tape", "replay", tmp_path / "t.tape", "--search", "random") == 0
    assert "without 1 of 3 prompts" in capsys.readouterr().out


def test_a_profile_is_measured_on_a_tape(recorded, tmp_path, monkeypatch, capsys):
    arguments = ["tune", "auto", "--tape", recorded, "--output", tmp_path / "p.json"]
    assert run_diffscale(monkeypatch, *arguments, "--verifier", "aesthetic") == 0
    assert read_profile(tmp_path / "p.json") == measured(load_tape(recorded), "aesthetic")
    about = json.loads((tmp_path / "p.json").read_text())["about"]
    assert (about["model"], about["verifier"], about["prompts"]) == ("shapes-flux", "aesthetic", 2)
    assert "predictions after 3 steps" in capsys.readouterr().out
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert json.loads((tmp_path / "p.json").read_text())["about"]["verifier"] == "clip"
    assert run_diffscale(monkeypatch, *arguments, "--verifier", "dino_ssl") == 2


def test_auto_takes_the_profile_of_a_tape(toy, tmp_path, monkeypatch):
    profile, results = tmp_path / "p.json", tmp_path / "r.json"
    assert run_diffscale(monkeypatch, "tune", "auto", "--tape", toy, "--output", profile) == 0
    search = ["--search", f"auto profile={profile}", "--budget", "48", "--output", results]
    assert run_diffscale(monkeypatch, "tape", "replay", toy, *search) == 0
    assert 0 < json.loads(results.read_text())["rows"][0]["nfe"] <= 48


def test_a_profile_is_measured_on_a_tape_that_is_recorded_for_it_and_kept(tmp_path, monkeypatch):
    arguments = ["tune", "auto", "--limit", "1", "--candidates", "3", "--steps", "2", "--drafts", "1"]
    arguments += ["--output", tmp_path / "p.json"]
    assert run_diffscale(monkeypatch, *arguments) == 0
    tape = load_tape(tmp_path / "p.json.tape")
    assert read_profile(tmp_path / "p.json") == measured(tape, "clip") and tape.candidates == 3
    (tmp_path / "p.json").unlink()
    monkeypatch.setattr("diffscale.tape.record._Recorder", None)  # nothing may be computed
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert read_profile(tmp_path / "p.json") == measured(tape, "clip")


@pytest.mark.parametrize("given", ["", "0", "3 ", "many", "3,,5", "-1", "1.5", "9999999", "3, via,"])
def test_drafts_are_numbers_of_steps_and_ways(given, tmp_path, monkeypatch, capsys):
    # "3 " is right, but a model of 2 steps has no such prediction.
    more = ["--steps", "2", "--predictions", "7", "--drafts", given, "--output", tmp_path / "a.tape"]
    assert run_diffscale(monkeypatch, "tape", "record", "shapes-mini", "--limit", "1", *more) == 2
    said = capsys.readouterr().err
    assert ("after 1 to 1 steps, not after 7" if given == "3 " else "The setting drafts.") in said


def test_a_value_model_is_learned_from_a_tape_and_searched_with(tmp_path, monkeypatch, capsys):
    tape, value = tmp_path / "a.tape", tmp_path / "clip.value"
    record = ["tape", "record", "shapes-mini", "--limit", "8", "--candidates", "4", "--steps", "4", "--drafts", "2"]
    assert run_diffscale(monkeypatch, *record, "--views", "--dtype", "float32", "--output", tape) == 0
    assert load_tape(tape).views["clip"].shape == (8, 4, 3, 257)
    assert run_diffscale(monkeypatch, "tune", "value", tape, "--output", value) == 0
    said = capsys.readouterr().out
    assert "predictions after 3 steps" in said and "drafts of 2 steps" in said and "a quarter of the prompts" in said
    text = f"valued file={value} of=clip"
    assert text in said.replace("\n", "")
    replay = ["tape", "replay", tape, "--verifier", text, "--search", "halving at=3", "--budget", "8"]
    assert run_diffscale(monkeypatch, *replay) == 0
    prompt = load_tape(tape).prompts[0]
    search = ["--search", "draft steps=2 n=4", "--budget", "16", "--steps", "4", "--dtype", "float32"]
    generate = ["generate", prompt, *search, "--verifier", text, "--output", tmp_path / "g"]
    assert run_diffscale(monkeypatch, *generate) == 0
    result = json.loads((tmp_path / "g" / "result.json").read_text())
    finals = load_tape(tape).finals("clip")[0]  # of the same noises
    assert float((finals - result["best"]["score"]).abs().min()) < 1e-4
    # Another model in the file makes it another run.
    (tmp_path / "g" / "result.json").unlink()
    learned = read_value(value)
    replace(learned, bias=learned.bias + 1).save(value)
    capsys.readouterr()
    assert run_diffscale(monkeypatch, *generate) == 2
    assert f"file {value} has changed since this run began" in " ".join(capsys.readouterr().err.split())
