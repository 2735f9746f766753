"""Trainings of items, on a tiny SDXL: made once, gone on with, stale when changed; their logs are shown from files."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from matplotlib.figure import Figure
from safetensors.torch import load_file

sys.path.append(str(Path(__file__).parents[2] / "train"))
import tiny
from diffscale_shapes import data, datasets

from diffscale._util.config import save
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.bench.papers import figures, numbers, page, recipe, session, trainings
from diffscale.bench.papers.claims import trend
from diffscale.bench.papers.recipe import LogPanel, Setting
from diffscale.bench.papers.session import Session
from diffscale.bench.series import PromptRepeat
from diffscale.engine import noise
from diffscale.models import dtypes
from diffscale.models.options import LoadOptions
from diffscale.train import loop
from diffscale.train.run_directory import LOG_FILE, list_checkpoints, read_log
from diffscale.train.settings import TrainConfig

STEPS = 3


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("trainings")
    tiny.pictures(root / "pictures")
    return tiny.save(root / "base")


@pytest.fixture
def training(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    return {
        "method": "sharpen-sft", "model": str(base), "data": str(base.parent / "pictures"), "reward": ["tiny:redness"],
        "n": 2, "m": 2, "rank": 2, "learning_rate": 0.01, "train_batch_size": 2, "max_train_steps": STEPS,
        "checkpointing_steps": 1,
    }  # fmt: skip


@pytest.fixture
def recipes(training: dict[str, Any], base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """T.table1 samples from a training whose log T.figure2 shows."""
    folder = tmp_path / "recipes"
    (folder / "trainings").mkdir(parents=True)
    monkeypatch.setattr(recipe, "RECIPES", folder)
    (folder / "trainings" / "T.yaml").write_text(yaml.safe_dump({"shapes": {"sharp": training}}))
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red hill\na green car\n")
    part = {
        "model": str(base), "prompts": str(prompts), "steps": 2, "judges": ["tiny:redness"],
        "series": {"base": {}, "sharpened": {"model": "training its name"}},
    }  # fmt: skip
    table = {
        "view": "table", "parts": {"texts": part}, "trainings": {"its name": {"like": "sharp"}},
        "table": {"part": "texts", "columns": {"tiny:redness": "redness"}},
        "quick": {"trainings": {"*": {"max_train_steps": 1}}},
    }  # fmt: skip
    figure = {
        "view": "logs", "trainings": {"another": {"like": "sharp", "n": 2}},
        "logs": [{"of": ["another"], "y": "loss"}, {"of": ["another"], "y": "reward", "x": "seconds"}],
        "claims": {"rises": {"says": "it rises", "test": "trend",
                             "options": {"of": ["another"], "y": "reward", "way": "rises"}}},
    }  # fmt: skip
    for name, setting in (("T.table1", table), ("T.figure2", figure)):
        written = {"title": name, "expected": "little", "settings": {"shapes": setting}}
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(written))
    return folder


@pytest.fixture
def trained_now(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The step that each call of the loop ended with."""
    ends: list[int] = []
    own = loop.train

    def train(*given: Any) -> loop.Ended:
        ended = own(*given)
        ends.append(ended.step)
        return ended

    monkeypatch.setattr(trainings.loop, "train", train)
    return ends


def _run(item: str, out: Path, **changed: Any) -> Setting:
    """As the command does."""
    options = {"setting": "shapes", **changed}
    loaded = recipe.load(item)
    setting = recipe.resolved(loaded, **options)
    session.run(item, setting, Session(out, LoadOptions(device="cpu")))
    page.write_recipe(out, item, loaded, setting, options)
    return setting


def test_items_share_a_training_sample_from_it_and_the_page_is_made_of_files(
    recipes: Path, training: dict[str, Any], tmp_path: Path, trained_now: list[int]
) -> None:
    out = tmp_path / "out"
    setting = _run("T.table1", out)
    _run("T.figure2", out)
    assert trained_now == [STEPS]
    raw = json.loads((out / "T.table1" / "raw.json").read_text())
    assert (raw["parts"]["texts"]["dtype"], raw["trainings"]["its name"]["mixed_precision"]) == ("float32", "no")
    (model,) = {at["model"] for at in raw["parts"]["texts"]["series"]["sharpened"]}
    assert model == setting.parts["texts"].series["sharpened"].model == trainings.called(training)

    # Its pictures are those of the folder that the training left, used as any model.
    folder = trainings.folder_of(trainings.id_of(training), out / "cache")
    prompts = ["a red hill", "a green car"]
    keys = torch.tensor([noise.fold(PromptRepeat(prompt, 0).key(0), "candidate", 0) for prompt in prompts])
    sampler = make_sampler(str(folder), prompts, steps=2, pipe_args={}, loading=LoadOptions(device="cpu"))
    pictures = sampler.decode(sampler.run(sampler.prior(keys, torch.arange(2))).x)
    scores = raw["parts"]["texts"]["series"]["sharpened"][0]["scores"]["tiny:redness"]
    assert scores == pytest.approx(tiny.redness(pictures, []).tolist(), abs=1e-2)
    assert scores != raw["parts"]["texts"]["series"]["base"][0]["scores"]["tiny:redness"]

    made = page.build(out).read_text()
    assert "tiny:redness" in made and "it rises" in made and (out / "T.figure2" / "figure.svg").exists()
    copy = tmp_path / "copy"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("cache", "*.html", "*.md", "figure.*", "verdicts.json"))
    assert page.build(copy).read_text() == made
    assert (copy / "T.figure2" / "figure.png").read_bytes() == (out / "T.figure2" / "figure.png").read_bytes()

    # A lost result does not train again; a changed training is another one.
    (out / "T.table1" / "raw.json").unlink()
    _run("T.table1", out)
    assert trained_now == [STEPS]
    changed = {**training, "max_train_steps": 1}
    (recipes / "trainings" / "T.yaml").write_text(yaml.safe_dump({"shapes": {"sharp": changed}}))
    assert [item.stale for item in page.items(out)] == [True, True]
    _run("T.table1", out)
    assert trained_now == [STEPS, 1] and [item.stale for item in page.items(out)] == [True, False]


def test_a_killed_training_goes_on_from_its_checkpoint(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(Exception):
        pass

    whole = trainings.make(training, "whole", tmp_path / "whole")
    own, ran = loop._Training._step, []

    def step(self: Any, terminated: bool) -> None:
        if ran == [0, 1]:
            raise Killed
        ran.append(self.state.step)
        own(self, terminated)

    monkeypatch.setattr(loop._Training, "_step", step)
    with pytest.raises(Killed):
        trainings.make(training, "cut", tmp_path / "cut")
    ran.clear()
    folder = trainings.make(training, "cut", tmp_path / "cut")
    assert ran == [2] and folder.parent.name == whole.parent.name
    one, other = ([{**row, "seconds": 0} for row in read_log(at / LOG_FILE)] for at in (whole, folder))
    assert one == other and len(one) == STEPS and len(list_checkpoints(folder)) == 1


def test_a_longer_training_goes_on_from_a_shorter_one_and_is_the_same(training: dict[str, Any], tmp_path: Path) -> None:
    whole = trainings.make(training, "whole", tmp_path / "whole")
    shorter, other = {**training, "max_train_steps": 2}, {**training, "max_train_steps": 1, "seed": 1}
    for each in (shorter, other):
        trainings.make(each, "shorter", tmp_path / "two")
    ran: list[str] = []
    folder = trainings.make(
        training, "longer", tmp_path / "two", lambda what, *_, **__: ran.append(what), [other, training, shorter]
    )
    assert sum(what.endswith("steps") for what in ran) == 1
    one, two = (load_file(at / "pytorch_lora_weights.safetensors") for at in (whole, folder))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    logs = ([{**row, "seconds": 0} for row in read_log(at / LOG_FILE)] for at in (whole, folder))
    assert next(logs) == next(logs)
    # One that is ended by its seconds, has another seed, or a schedule that ends with it, begins alone.
    for change in ({"max_train_seconds": 9.0}, {"seed": 1}, {"lr_scheduler": "linear"}, {"n": 3}, {"data": "plain"}):
        assert not trainings.begins_with({**training, **change}, shorter)
    assert trainings.begins_with(training, shorter) and not trainings.begins_with(shorter, training)


def test_a_training_of_so_many_operations_has_their_steps(training: dict[str, Any], recipes: Path) -> None:
    shared = yaml.safe_load((recipes / "trainings" / "T.yaml").read_text())
    shared["shapes"]["sharp"] |= {"gflop_a_step": 80, "max_train_seconds": 60}
    (recipes / "trainings" / "T.yaml").write_text(yaml.safe_dump(shared))
    given = {"timed": {"like": "sharp"}, "counted": {"like": "sharp", "tflop": 2.0}}
    found = trainings.expanded(given, recipes, "T", "shapes")
    timed, counted = (trainings.config_of(found[name]) for name in ("timed", "counted"))
    assert (timed.max_train_steps, timed.max_train_seconds) == (STEPS, 60)
    assert (counted.max_train_steps, counted.max_train_seconds) == (25, None)
    assert trainings.seconds(found["counted"], 20, 100.0, 4e8) == pytest.approx(50)
    with pytest.raises(DiffscaleError, match="'alone' has a tflop and no gflop_a_step"):
        trainings.expanded({"alone": {**training, "tflop": 1.0}}, recipes, "T", "shapes")


def test_a_precision_that_a_recipe_leaves_open_is_the_machine_s_and_kept(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[TrainConfig] = []

    def train(config: TrainConfig, _: Any) -> loop.Ended:
        asked.append(config)
        save(config, config.output_dir / "config.yaml")
        return loop.Ended("finished", 1, config.output_dir)

    monkeypatch.setattr(trainings.loop, "train", train)
    monkeypatch.setattr(trainings, "best_device", lambda: "cpu")
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: True)
    trainings.make(training, "open", tmp_path)
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: False)
    with pytest.warns(UserWarning, match="bfloat16, in which this run was begun and which is slow"):
        trainings.make(training, "open", tmp_path)
    trainings.make(training, "open", tmp_path / "slow")
    trainings.make({**training, "mixed_precision": "bf16"}, "named", tmp_path / "slow")
    monkeypatch.setattr(trainings, "best_device", lambda: "cuda")
    trainings.make(training, "open", tmp_path / "gpu")
    assert [config.mixed_precision for config in asked] == ["bf16", "bf16", None, "bf16", None]
    assert asked[0].output_dir == asked[1].output_dir


def test_a_stopped_training_says_how_to_go_on(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainings.loop, "train", lambda *_: loop.Ended("stopped", 7, tmp_path))
    with pytest.raises(DiffscaleError, match=r"stopped at step 7.*same command again"):
        trainings.make(training, "T.table1: sharp", tmp_path)


def test_a_data_set_of_shapes_is_drawn_once(
    training: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[Path] = []
    own = data.write_dataset
    monkeypatch.setattr(datasets, "write_dataset", lambda *given: drawn.append(given[1]) or own(*given))  # type: ignore
    small = {**training, "data": "stars size=4", "max_train_steps": 1}
    folders = {trainings.make({**small, "seed": seed}, "small", tmp_path) for seed in (0, 1)}
    assert drawn == [tmp_path / "data" / "stars-4"] and len(folders) == 2
    captions = [json.loads(line)["text"] for line in (drawn[0] / "metadata.jsonl").read_text().splitlines()]
    assert len(captions) == 4 and all("star" in caption for caption in captions)
    for text in ("stars 4", "stars size=4 more=1"):
        with pytest.raises(DiffscaleError, match="stars size=100"):
            trainings.make({**small, "data": text}, "wrong", tmp_path)


def test_the_id_changes_with_what_decides_the_weights_alone(training: dict[str, Any], base: Path) -> None:
    same = [{}, {"output_dir": "elsewhere"}, {"checkpointing_steps": 7}, {"beta": None}]
    other = [{"n": 3}, {"data": "plain"}, {"reward": ["tiny:darkness"]}, {"max_train_seconds": 5}, {"seed": 1},
             {"held_out_prompts": ["file.txt"]}, {"model": "shapes-sdxl"}]  # fmt: skip
    assert len({trainings.id_of({**training, **change}) for change in same}) == 1
    assert len({trainings.id_of({**training, **change}) for change in (*same, *other)}) == 1 + len(other)
    text = trainings.called(training)
    assert trainings.base_of(text) == str(base) and trainings.id_in(text) == trainings.id_of(training)
    assert trainings.base_of("shapes-sdxl") == "shapes-sdxl" and trainings.id_in("shapes-sdxl") is None


def test_what_the_command_gives_reaches_the_trainings(recipes: Path, training: dict[str, Any]) -> None:
    loaded = recipe.load("T.table1")
    setting = recipe.resolved(
        loaded, "shapes", quick=True, suites={"drawbench": "given.csv"}, data={training["data"]: "owner/pictures"}
    )
    (found,) = setting.trainings.values()
    config = trainings.config_of(found)
    assert config.max_train_steps == 1 and config.held_out_prompts == ["given.csv"]
    assert found["data"] == "owner/pictures"
    # Items that do not measure on that suite still share what is trained without it.
    (other,) = recipe.resolved(recipe.load("T.figure2"), "shapes", suites={"drawbench": "given.csv"}).trainings.values()
    assert trainings.config_of(other).held_out_prompts == ["given.csv"]


def test_wrong_trainings_are_told(recipes: Path, training: dict[str, Any]) -> None:
    for change, words in (({"methods": "sft"}, "methods"), ({"method": "sfd"}, "did you mean 'sft'"),
                          ({"n": 1, "method": "sharpen-rlhf"}, "n of 2 or more")):  # fmt: skip
        with pytest.raises(DiffscaleError, match=words):
            trainings.config_of({**training, **change})
    with pytest.raises(DiffscaleError, match="has no data"):
        trainings.config_of({"method": "sft", "model": "shapes-sdxl"})
    written = yaml.safe_load((recipes / "T.table1.yaml").read_text())
    setting = written["settings"]["shapes"]
    setting["parts"]["texts"]["series"]["sharpened"]["model"] = "training its nam"
    (recipes / "T.table1.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(DiffscaleError, match="did you mean 'its name'"):
        recipe.resolved(recipe.load("T.table1"), "shapes")
    setting["trainings"]["its name"]["like"] = "shrap"
    (recipes / "T.table1.yaml").write_text(yaml.safe_dump(written))
    with pytest.raises(DiffscaleError, match="did you mean 'sharp'"):
        recipe.load("T.table1")


def test_seconds_of_a_training_by_hand(training: dict[str, Any]) -> None:
    def seconds(**change: Any) -> float:
        return trainings.seconds({**training, **change}, 20, 100.0, 1e9)

    assert seconds() == pytest.approx(3 * 2 * (2 * 2 + 3 * 2) / 100)
    assert seconds(gradient_accumulation_steps=4) == pytest.approx(4 * 3 * 2 * 10 / 100)
    assert seconds(method="sharpen-rlhf") == pytest.approx(3 * 2 * (20 + 4 + 16) / 100)
    own = {"own_samples": "each", "sample_steps": 5}
    assert seconds(method="sharpen-rlhf", **own) == pytest.approx(3 * 2 * (2 * 5 + 4 + 16) / 100)
    assert seconds(method="ddpo", sample_steps=5, n=3, m=3) == pytest.approx(3 * 2 * 20 / 100)
    assert seconds(method="sft", reward=[], n=3, m=3) == pytest.approx(3 * 2 * 3 / 100)
    assert seconds(max_train_seconds=0.25) == 0.25


def _log(values: list[float], std: float = 0.0) -> list[dict[str, float]]:
    return [
        {"step": i + 1, "seconds": 0.5, "reward": value, "reward_std": std, "loss": -value}
        for i, value in enumerate(values)
    ]


def test_curves_of_logs_are_means_and_deviations_of_windows() -> None:
    values = np.random.default_rng(0).normal(size=80)
    rows = {
        "one": _log(values.tolist(), std=3.0),
        "one, flat": _log(values.tolist()),
        "untold": [{"step": 1, "seconds": 1.0}],
    }
    axes = Figure().subplots()
    figures.draw_logs(axes, rows, LogPanel(of=["one", "untold"], y="reward", x="seconds"), {"one": 0, "untold": 1})
    (line,), (band,) = axes.get_lines(), axes.collections
    assert np.allclose(line.get_ydata(), values.reshape(40, 2).mean(1))
    assert np.allclose(line.get_xdata(), np.arange(1, 41))  # two steps of half a second
    deviation = np.sqrt(values.reshape(40, 2).var(1) + 9)
    edge = band.get_paths()[0].vertices[:, 1]
    assert edge.max() == pytest.approx((values.reshape(40, 2).mean(1) + deviation).max())
    axes = Figure().subplots()
    figures.draw_logs(axes, rows, LogPanel(of=["one, flat"], y="loss", title="flat"), {"one": 2})
    assert axes.get_lines()[0].get_color() == "C2" and axes.get_lines()[0].get_label() == "one"
    assert axes.get_lines()[0].get_xdata()[[0, -1]].tolist() == [2, 80] and "1/40" in axes.get_ylabel()


def test_trends_are_seen_where_they_are() -> None:
    noise = np.random.default_rng(1).normal(0, 0.2, 400)
    rising = (np.linspace(0, 1, 400) + noise).tolist()
    raw = {"item": "T", "logs": {"up": _log(rising), "flat": _log(noise.tolist()), "short": _log(rising[:30])}}
    up = trend(raw, ["up"], "reward", "rises")
    assert up.holds < 1e-6 and trend(raw, ["up"], "loss", "falls").holds == pytest.approx(up.holds)
    assert trend(raw, ["up"], "reward", "falls").fails == pytest.approx(up.holds)
    assert numbers.change(raw["logs"]["up"], "reward").estimate == pytest.approx(1, abs=0.2)
    flat = trend(raw, ["up", "flat"], "reward", "rises")
    assert flat.holds > 0.01  # all of them must
    short = trend(raw, ["short"], "reward", "rises")
    assert short.holds == pytest.approx(0.5) and "too few steps" in short.found
    with pytest.raises(DiffscaleError, match="no training 'down'"):
        trend(raw, ["down"], "reward", "rises")


def test_steps_on_samples_of_steps_before_are_no_further_evidence(training: dict[str, Any], tmp_path: Path) -> None:
    """A round of two steps whose samples are seen three times: of six steps the first two count."""
    own = {**training, "method": "sharpen-rlhf", "gradient_accumulation_steps": 2, "samples_per_round": 8,
           "num_inner_epochs": 3}  # fmt: skip
    rising = (np.linspace(0, 1, 240) + np.random.default_rng(2).normal(0, 0.2, 240)).tolist()
    (tmp_path / "trainings").mkdir()
    (tmp_path / "trainings" / "log.jsonl").write_text("\n".join(map(json.dumps, _log(rising))))
    raw: dict[str, Any] = {"item": "T", "trainings": {"one": {"log": "log.jsonl"}}}
    once = {**own, "samples_per_round": None, "num_inner_epochs": 1}
    every = [1, 2, 3, 4, 5, 6]
    for settings, fresh in ((own, [1, 2, 7, 8, 13, 14]), (once, every), (training, every)):
        rows = trainings.read_logs(tmp_path, raw, {"one": settings})["one"]
        assert [row["step"] for row in rows if not row["again"]][:6] == fresh
    rows = trainings.read_logs(tmp_path, raw, {"one": own})["one"]
    kept = [row for row in _log(rising) if row["step"] % 6 in (1, 2)]
    assert len(kept) == 80 and numbers.change(rows, "reward") == numbers.change([*kept, {"step": 240}], "reward")
    late = [{**row, "again": 60 < row["step"] <= 180} for row in _log((np.arange(1, 241) / 240).tolist())]
    assert numbers.change(late, "reward").estimate == pytest.approx(1)  # where steps were, not how many count
    assert numbers.change(rows[:170], "reward").error == np.inf  # 58 steps with samples of their own
