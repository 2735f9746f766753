"""`--choose` on Shapes, in Python and in commands: what is chosen, what is told of it, and what stays as it was."""

import json

import pytest
import torch
import yaml
from commands import run_diffscale

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api.searched import Searched
from diffscale.bench import generate
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.bench.run import run as run_bench
from diffscale.engine.journal import recorded_settings
from diffscale.models.load import load_pipeline
from diffscale.verifiers import load

PROMPT = "a red circle above a blue square"
FEW = {"nfe": 24, "steps": 3, "device": "cpu", "dtype": "float32"}


@pytest.mark.parametrize("search", ["random", "zero_order n=3"])
def test_choosing_by_the_judge_gives_its_best_of_what_was_finished(search):
    images, scores = [], []

    def observe(task, keys, given, pictures, nfe):
        images.extend(pictures)
        scores.extend(given.tolist())

    found = diffscale.search("shapes-flux", PROMPT, search=search, choose="shapes-judge", observers=[observe], **FEW)
    judged = load("shapes-judge")(torch.stack(images), [PROMPT] * len(images)).double()
    assert found.best.number == judged.argmax() and found.best.value == pytest.approx(float(judged.max()))
    assert found.best.score == scores[found.best.number]
    torch.testing.assert_close(found.ranking[:, 0], judged)
    assert found.pool[:, 0].tolist() == scores and found.trace[-1][1] == max(scores)
    first = load("shapes-judge")(found.baseline.image[None], [PROMPT])
    assert found.baseline.value == pytest.approx(float(first), abs=0.02)  # of the picture in 8 bits


def test_a_plain_sample_is_ranked_among_the_candidates_of_a_search_that_did_not_sample_it():
    both = "ensemble of=aesthetic,shapes-judge"
    found = diffscale.search("shapes-flux", PROMPT, search="svdd b=2 m=2", choose=both, **FEW)
    assert found.baseline.number == -1 and 0 < found.baseline.value <= 1
    pool = torch.cat([found.ranking, found.baseline.ranking[None]])
    wanted = load(both, image_model="shapes-flux").aggregate(pool)[-1]
    assert found.baseline.value == pytest.approx(float(wanted))


def test_a_journal_knows_who_chose_and_one_without_is_what_it_was(tmp_path):
    plain, chosen = tmp_path / "plain.sqlite", tmp_path / "chosen.sqlite"
    diffscale.search("shapes-flux", PROMPT, journal=plain, **FEW)
    found = diffscale.search("shapes-flux", PROMPT, choose="aesthetic", journal=chosen, **FEW)
    known, more = recorded_settings(plain), recorded_settings(chosen)
    assert "choose" not in known and more == {**known, "choose": "aesthetic"}

    def nothing(*_):
        raise AssertionError("a picture was scored again")

    calls = load("aesthetic", image_model="shapes-flux").__class__
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(calls, "__call__", nothing)
        again = diffscale.search("shapes-flux", PROMPT, choose="aesthetic", journal=chosen, **FEW)
    assert again.best.key == found.best.key and torch.equal(again.ranking, found.ranking)
    for other in (None, "clip"):
        with pytest.raises(DiffscaleError, match="choose was 'aesthetic', now"):
            diffscale.search("shapes-flux", PROMPT, choose=other, journal=chosen, **FEW)


def test_settings_that_choose_nothing_are_those_of_before():
    assert "choose" not in BenchConfig(dtype="float32").shared()
    assert BenchConfig(dtype="float32", choose="diffscale/clip").shared()["choose"] == "clip"
    one = GenerateConfig(prompt=PROMPT)
    assert one.difference(GenerateConfig(**{k: v for k, v in one.model_dump().items() if k != "choose"})) == ""
    assert one.model_copy(update={"choose": "clip"}).difference(one) == "choose was None, now 'clip'"


def test_a_searched_pipeline_gives_what_the_chooser_likes_best():
    pipe = load_pipeline("shapes-flux", diffscale.LoadOptions(device="cpu", dtype="float32"))
    pipe.set_progress_bar_config(disable=True)
    searched = Searched(pipe, nfe=24, choose="shapes-judge", device="cpu")
    assert "choose='shapes-judge'" in repr(searched)
    searched(PROMPT, num_inference_steps=3, num_images_per_prompt=2, generator=torch.manual_seed(0))
    (result,) = searched.results
    judged = result.ranking[:, 0].sort(descending=True).values
    assert [each.value for each in result.best_candidates] == judged[:2].tolist()
    with pytest.raises(DiffscaleError, match="did you mean 'clip'"):
        Searched(pipe, choose="clop")


def test_generate_tells_both_and_goes_on_after_a_stop(tmp_path, monkeypatch, capsys):
    arguments = [
        "generate",
        PROMPT,
        "--steps",
        "3",
        "--budget",
        "24",
        "--batch-size",
        "3",
        "--search",
        "zero_order n=2",
    ]
    arguments += ["--choose", "ensemble of=aesthetic,shapes-judge", "--output"]
    assert run_diffscale(monkeypatch, *arguments, tmp_path / "whole") == 0
    said = capsys.readouterr().out
    result = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert result["choose"] == "ensemble of=aesthetic,shapes-judge"
    assert result["best"]["value"] >= result["baseline"]["value"] and result["verifier_calls"] == 16
    assert "chosen of 8" in said and "ensemble, which chose: first sample" in said and "not searched with" in said
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["choose"] == result["choose"]

    settings = GenerateConfig(
        prompt=PROMPT, steps=3, budget=24, batch_size=3, search="zero_order n=2", choose=result["choose"],
        dtype="float32",
    )  # fmt: skip
    generate.prepare(tmp_path / "cut", settings)

    def interrupt(what, nfe, budget, **_):
        if nfe > 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate.run(settings, tmp_path / "cut", interrupt)
    generate.prepare(tmp_path / "cut", settings)
    resumed = generate.run(settings, tmp_path / "cut")
    assert {k: v for k, v in resumed.items() if "seconds" not in k} == {
        k: v for k, v in result.items() if "seconds" not in k
    }
    for name in ("best.png", "candidates.png"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_who_cannot_choose_is_refused_and_leaves_the_folder_to_others(tmp_path, monkeypatch, capsys):
    arguments = ["generate", PROMPT, "--steps", "2", "--budget", "8", "--output", tmp_path / "out", "--choose"]
    assert run_diffscale(monkeypatch, *arguments, "oracle_fid") == 2
    assert "cannot make the final choice" in capsys.readouterr().err
    assert run_diffscale(monkeypatch, *arguments, "dino_ssl level=0.2", "--verifier", "clip_ssl") == 2
    assert "'clip_ssl' asks for 0.4 and 'dino_ssl' asks for 0.2" in capsys.readouterr().err
    assert run_diffscale(monkeypatch, *arguments, "shapes-judge") == 0
    assert "shapes-judge (the oracle that chose)" in capsys.readouterr().out


def test_a_bench_reports_both_and_what_the_judge_keeps(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    cells = ["--search", "random", "--search", "svdd b=1 m=2", "--budget", "12"]
    cells += ["--verifier", "clip", "--verifier", "ensemble of=clip,aesthetic", "--choose", "pick_score"]
    arguments = ["bench", "shapes-mini", "--limit", "2", "--steps", "3", *cells, "--output", tmp_path]
    assert run_diffscale(monkeypatch, *arguments) == 0
    said = capsys.readouterr().out
    assert "value: what pick_score says, which chose the pictures" in said
    samples = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    rows = json.loads((tmp_path / "results.json").read_text())["cells"]
    for sample in samples:
        assert sample["choose"] == "pick_score" and set(sample["value"]) == {"best", "baseline"}
        assert sample["spread"] > 0 or sample["candidates"] == 1
        if sample["search"] == "random":
            assert sample["value"]["best"] >= sample["value"]["baseline"] - 1e-4
    assert {row["choose"] for row in rows} == {"pick_score"} and all("kept" in row for row in rows)
    monkeypatch.setattr("diffscale.bench.run.make_sampler", None)  # nothing may be computed
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert run_diffscale(monkeypatch, *arguments[:-4], "--choose", "clip", "--output", tmp_path) == 2
    assert "choose was 'pick_score', now 'clip'" in capsys.readouterr().err


def test_a_larger_budget_of_a_bench_goes_on_from_a_smaller_one_by_the_same_chooser(tmp_path):
    settings = BenchConfig(steps=2, device="cpu", budget=[4], choose="shapes-judge")
    small = run_bench(settings, [PROMPT], tmp_path / "grown")
    (grown,) = run_bench(settings.model_copy(update={"budget": [16]}), [PROMPT], tmp_path / "grown")
    (alone,) = run_bench(settings.model_copy(update={"budget": [16]}), [PROMPT], tmp_path / "alone")
    assert small[0]["candidates"] == 2 and grown["key"] == alone["key"]
    assert grown["value"] == pytest.approx(alone["value"])
