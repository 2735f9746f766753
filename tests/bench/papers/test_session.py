"""An item from the command line to the page: nothing is computed twice, what changed is stale, files make the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from commands import run_diffscale
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from diffscale._util.errors import DiffscaleError
from diffscale.bench import run
from diffscale.bench.networks import Networks
from diffscale.bench.papers import digests, figures, page, recipe, session
from diffscale.bench.papers.plan import Speeds
from diffscale.bench.papers.points import Call, Point
from diffscale.bench.papers.recipe import Part, Setting
from diffscale.bench.papers.session import Session, made_of
from diffscale.bench.series import Cell
from diffscale.engine.flops import count_flops
from diffscale.models import dtypes
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.report.text import NotDrawn
from diffscale.types import ClassLabel
from diffscale.verifiers import load as load_verifier

TEXTS = {
    "model": "shapes-flux",
    "prompts": "shapes-mini",
    "limit": 2,
    "steps": 2,
    "judges": ["clip"],
    "strips": 1,
    "pairs": {"candidates": 3, "of": ["clip_ssl", "clip"]},
    "series": {
        "steps": {"final": [2, 4]},
        "search": {"verifier": "ensemble of=clip,aesthetic", "budgets": [0, 4, 8]},
        "cheap": {"verifier": "clip", "steps": 1, "final": [2], "budgets": [4]},
        "ZO-2": {"verifier": "clip", "search": "zero_order n=2", "steps": 1, "final": [2], "budgets": [2, 4]},
    },
}
CLAIM = {
    "says": "search helps",
    "test": "compare",
    "options": {
        "all_of": [{"a": ["texts", "search"], "b": ["texts", "steps", "first"], "measure": "clip", "is": "better"}]
    },
}
RECIPE = {
    "title": "A tiny item",
    "expected": "It runs & is <drawn>.",
    "settings": {
        "shapes": {
            "view": "curves",
            "parts": {"texts": TEXTS},
            "panels": [{"part": "texts", "y": "clip"}, {"part": "texts", "x": "clip_ssl", "y": "clip"}],
            "claims": {"helps": CLAIM},
            "remarks": {"helps": "few & noisy"},
        }
    },
    "printed": {"of": "another model", "columns": ["model", "score"], "rows": [["theirs", 0.7]]},
}


def _diffscale(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    return run_diffscale(monkeypatch, "reproduce", *arguments)


@pytest.fixture
def recipes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "recipes"
    folder.mkdir()
    (folder / "T.figure1.yaml").write_text(yaml.safe_dump(RECIPE))
    monkeypatch.setattr(recipe, "RECIPES", folder)
    return folder


def test_an_item_from_the_command_to_the_page(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert _diffscale(monkeypatch, "list") == 0 and "A tiny item" in capsys.readouterr().out
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out), "--device", "cpu") == 0
    raw = json.loads((out / "T.figure1" / "raw.json").read_text())
    series = raw["parts"]["texts"]["series"]
    # 1 sample, 2 and 4 candidates; 4 cheap ones, or 2 and 4 neighbours, and the winner again.
    assert [at["nfe"] for at in series["search"]] == [2, 4, 8]
    assert [at["nfe"] for at in (*series["cheap"], *series["ZO-2"])] == [6, 4, 6]
    assert series["steps"][0]["scores"] == series["search"][0]["scores"]
    for at in (at for points in series.values() for at in points):
        assert len(at["scores"]["clip"]) == 2 and at["flops"] > 0
        assert Image.open(out / "T.figure1" / "pictures" / at["pictures"][0]).size == (64, 64)
    assert np.array(raw["parts"]["texts"]["pairs"]["clip_ssl"]).shape == (2, 3)
    told = capsys.readouterr().out
    assert "TFLOPs" in told and "search helps" in told

    # The page is made of the files alone: the same again elsewhere, without a model.
    made = (out / page.PAGE).read_text()
    assert "It runs &amp; is &lt;drawn&gt;." in made and "another model" in made and "few &amp; noisy" in made
    # What is no headline is an estimate with an interval.
    assert "search over steps (first), clip: +" in made and "not decided" not in made
    copy = tmp_path / "copy"
    shutil.copytree(out, copy, ignore=shutil.ignore_patterns("cache", "*.html", "*.md", "figure.*", "verdicts.json"))
    assert page.build(copy).read_text() == made
    for file in ("figure.svg", "figure.png", "table.md"):
        assert (copy / "T.figure1" / file).read_bytes() == (out / "T.figure1" / file).read_bytes()

    # Done is done; a lost result is read from the benches.
    before = (out / "T.figure1" / "raw.json").read_bytes()
    make_sampler = run.make_sampler
    monkeypatch.setattr(run, "make_sampler", None)
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out)) == 0
    (out / "T.figure1" / "raw.json").unlink()
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out)) == 0
    assert (out / "T.figure1" / "raw.json").read_bytes() == before
    # Broken is lost, and what was chosen is chosen again.
    (out / "T.figure1" / "raw.json").write_bytes(before[:200])
    (out / "T.figure1" / "recipe.json").write_bytes(b"{}")
    (out / "cache" / "dtypes.json").write_bytes(b'{"shapes-flux": ["float32"]}')
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out)) == 0
    assert (out / "T.figure1" / "raw.json").read_bytes() == before
    for broken in (b"", b"[]", b'{"x": {"side": 3}}', b'{"x": "fast"}'):
        (tmp_path / "speeds.json").write_bytes(broken)
        assert Speeds(tmp_path, LoadOptions(), Networks("cpu"))._known == {}

    def fail(*_: object) -> None:
        raise ValueError("odd")

    # The page is there without a figure that cannot be drawn.
    with monkeypatch.context() as patched, pytest.warns(NotDrawn, match=r"figure of T\.figure1 could not be drawn"):
        patched.setattr(figures, "draw", fail)
        assert "It runs" in page.build(out).read_text()
    assert page.build(out).read_text() == made
    capsys.readouterr()

    # Another view is not another run; other numbers are.
    changed = json.loads(json.dumps(RECIPE))
    changed["settings"]["shapes"]["claims"]["helps"]["says"] = "search helps much"
    (recipes / "T.figure1.yaml").write_text(yaml.safe_dump(changed))
    assert "Stale" not in page.build(out).read_text() and "helps much" in (out / page.PAGE).read_text()
    changed["settings"]["shapes"]["parts"]["texts"]["series"]["search"]["budgets"] = [0, 4]
    (recipes / "T.figure1.yaml").write_text(yaml.safe_dump(changed))
    assert page.items(out)[0].stale
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out)) == 0  # still without a model
    assert "is stale" in capsys.readouterr().out and "Stale" not in (out / page.PAGE).read_text()

    # What another version wrote is read where it is needed alone, and told of.
    held = json.loads((out / "T.figure1" / "recipe.json").read_text())
    (out / "T.figure1" / "recipe.json").write_text(json.dumps({**held, "recipe": {"titel": "old"}}))
    page.build(out)
    changed["settings"]["shapes"]["parts"]["texts"]["seed"] = 1
    (recipes / "T.figure1.yaml").write_text(yaml.safe_dump(changed))
    with pytest.raises(DiffscaleError, match=r"T\.figure1 is of another version.*run T\.figure1 again"):
        page.build(out)
    del changed["settings"]["shapes"]["parts"]["texts"]["seed"]
    (recipes / "T.figure1.yaml").write_text(yaml.safe_dump(changed))

    # A run that was killed before it wrote what its numbers were made with shows nothing, and goes on.
    (out / "T.figure1" / "recipe.json").unlink()
    with pytest.raises(DiffscaleError, match="no results"):
        page.build(out)
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out)) == 0
    assert "setting shapes" in (out / page.PAGE).read_text()
    # A smaller run replaces no numbers of a larger one.
    before = (out / "T.figure1" / "raw.json").read_bytes()
    capsys.readouterr()
    for smaller in (["--limit", "1"], ["--quick", "--limit", "1"]):
        assert _diffscale(monkeypatch, "T.figure1", "--output", str(out), *smaller) == 2
        assert "give another --output" in capsys.readouterr().err
    assert (out / "T.figure1" / "raw.json").read_bytes() == before

    # Cold again, to the same numbers; not where the run is refused.
    (out / "cache" / "old").touch()
    for wrong in (["--limit", "1"], ["--offload", "modle"], ["--device", "tpu"]):
        assert _diffscale(monkeypatch, "T.figure1", "--output", str(out), "--no-resume", *wrong) == 2
        assert (out / "cache" / "old").exists() and (out / "T.figure1" / "raw.json").exists()
    capsys.readouterr()
    (out / "cache").rename(tmp_path / "disk")
    (out / "cache").symlink_to(tmp_path / "disk")
    monkeypatch.setattr(run, "make_sampler", make_sampler)
    assert _diffscale(monkeypatch, "T.figure1", "--output", str(out), "--no-resume", "--device", "cpu") == 0
    assert not (out / "cache" / "old").exists() and list((tmp_path / "disk").glob("*/samples.jsonl"))
    found, held = (
        [at["scores"]["clip"] for points in json.loads(text)["parts"]["texts"]["series"].values() for at in points]
        for text in ((out / "T.figure1" / "raw.json").read_text(), before)
    )
    assert np.allclose(found, held, atol=0.02)  # pictures of batches of other sizes may differ by one level


def test_other_prompts_in_the_same_file_are_another_item(recipes: Path, tmp_path: Path) -> None:
    prompts, setting = tmp_path / "prompts.txt", RECIPE["settings"]["shapes"]  # type: ignore[index]
    prompts.write_text("a red circle\n")
    part = Part(**{**TEXTS, "prompts": str(prompts)})  # type: ignore[arg-type]
    given = Setting(**{**setting, "parts": {"texts": part}})
    before = made_of(given)
    assert made_of(given) == before
    prompts.write_text("a blue circle\n")
    assert made_of(given) != before


def test_an_item_whose_search_finds_nothing_has_no_numbers(tmp_path: Path) -> None:
    call, part = Call("shapes-flux", 1, (), "float32", 0), Part(**{**TEXTS, "limit": 1})  # type: ignore[arg-type]
    cell = Cell("random", f"{__name__}:unscorable", 2)
    with pytest.raises(DiffscaleError, match="None of the 2 candidates"), pytest.warns(UserWarning):
        Session(tmp_path, LoadOptions(device="cpu")).run(call, part, [cell], lambda *_, **__: None)


def unscorable(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return torch.full((len(images),), float("nan"))


def test_a_scheduler_of_the_recipe_makes_another_call() -> None:
    own = Call("shapes-pixart", 2, (), "float32", 0)
    other = Call("shapes-pixart", 2, (), "float32", 0, "DDPMScheduler clip_sample=false")
    networks, loading = Networks("cpu"), LoadOptions(device="cpu")
    kinds = [
        type(networks.pipeline(call.model, call.settings(loading)).scheduler).__name__ for call in (own, other, own)
    ]
    assert kinds == ["DDIMScheduler", "DDPMScheduler", "DDIMScheduler"] and own.id != other.id


def test_a_point_is_a_cell_of_the_bench_of_its_call() -> None:
    call, last = (Call("shapes-flux", steps, (), "float32", 0) for steps in (2, 4))
    assert (
        Point(call, None, "random", "clip", 0).cell == Point(call, None, "random", "", 0).cell == Cell("random", "", 0)
    )
    assert Point(call, last, "zero_order n=2", "clip", 8).cell == Cell("zero_order n=2", "clip", 8, final_steps=4)


def test_wrong_names_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _diffscale(monkeypatch, "A.table22") == 2
    assert "did you mean 'A.table2'" in capsys.readouterr().err
    assert _diffscale(monkeypatch, "A.table2", "--setting", "papers") == 2
    assert "did you mean 'paper'" in capsys.readouterr().err
    file = tmp_path / "file"
    file.write_text("")
    for wrong, words in (
        (["--output", str(file)], "choose another place"),
        (["--suite", "drawbench"], "--suite as name=value"),
        (["--suite", "drawbnch=p.csv"], "did you mean 'drawbench'"),
        (["--data", "=p"], "--data as name=value"),
        (["--batch-size", "0"], "greater than"),
    ):
        assert _diffscale(monkeypatch, "A.table2", *wrong) == 2
        assert words in capsys.readouterr().err


def test_a_model_s_digest_changes_with_its_weights_and_its_call_alone(tmp_path: Path) -> None:
    def digest_with(stated: dict[str, Any], weights: bytes = b"weights", config: str = "{}") -> str:
        (tmp_path / "diffscale.json").write_text(json.dumps(stated))
        (tmp_path / "model.safetensors").write_bytes(weights)
        (tmp_path / "config.json").write_text(config)
        digests.weights_digest.cache_clear()
        return digests.weights_digest(str(tmp_path))

    own = {"description": "a model", "call": {"num_inference_steps": 4}}
    before = digest_with(own)
    assert before == digest_with({**own, "description": "described otherwise", "suites": ["shapes"]})
    changed = [digest_with({**own, "call": {"num_inference_steps": 5}}), digest_with(own, b"others"),
               digest_with(own, config='{"size": 2}')]  # fmt: skip
    assert len({before, *changed}) == 4


def test_what_a_part_leaves_at_its_default_does_not_count() -> None:
    def made(**given: Any) -> str:
        return made_of(Setting(view="table", parts={"texts": Part(**{**TEXTS, **given})}))  # type: ignore[arg-type]

    assert made() == made(seed=0, dtype="auto", only=[])
    # What auto stands for is not told here; a dtype that a recipe names is.
    assert len({made(), made(dtype="float32"), made(dtype="bfloat16")}) == 3
    setting = Setting(**{**RECIPE["settings"]["shapes"], "parts": {"texts": {**TEXTS, "dtype": "bfloat61"}}})  # type: ignore
    wrong = recipe.Recipe(title="T", expected="", settings={"shapes": setting})
    with pytest.raises(DiffscaleError, match="did you mean 'bfloat16'"):
        recipe.resolved(wrong, "shapes")


def test_flops_of_a_whole_search_are_those_of_its_decoder_and_verifier_too(tmp_path: Path) -> None:
    given = {"model": "shapes-sit-s", "prompts": "shapes-classes", "limit": 1, "steps": 1, "dtype": "float32",
             "series": {"search": {"verifier": "clip_zeroshot", "budgets": [0, 6]}}}  # fmt: skip
    made = Session(tmp_path / "out", LoadOptions(device="cpu"))
    rows = {}
    for cost in ("denoiser", "search"):
        part = Part(**given, cost=cost)  # type: ignore[arg-type]
        setting = Setting(view="table", parts={"classes": part})
        session.run(f"T.{cost}", setting, made)
        raw = json.loads((tmp_path / "out" / f"T.{cost}" / "raw.json").read_text())["parts"]["classes"]
        assert raw.get("cost") == (None if cost == "denoiser" else "search")
        rows[cost] = [row["flops"] for row in raw["series"]["search"]]
    vae, picture = load_pipeline("shapes-sit-s", LoadOptions(device="cpu")).vae, torch.rand(1, 3, 64, 64)
    side = 64 // 2 ** (len(vae.config.block_out_channels) - 1)
    with torch.no_grad(), FlopCounterMode(display=False) as decoder:
        vae.decode(torch.zeros(1, vae.config.latent_channels, side, side))
    verifier, label = load_verifier("clip_zeroshot", image_model="shapes-sit-s"), ClassLabel("red circle", 0)
    verifier(picture, [label])  # features of the classes are made once, and no candidate pays for them
    with torch.no_grad(), count_flops() as scored:
        verifier(picture, [label])
    plain, searched = (whole - own for own, whole in zip(rows["denoiser"], rows["search"], strict=True))
    assert plain == pytest.approx(decoder.get_total_flops(), rel=1e-6)
    # A step of Heun is 2 NFE.
    assert searched == pytest.approx(3 * (decoder.get_total_flops() + scored.total), rel=1e-6)


def test_samples_lie_apart_by_the_dtype_that_was_used() -> None:
    ids = {Call("shapes-flux", 2, (), dtype, 0).id for dtype in ("float32", "bfloat16")}
    assert len(ids) == 2
    with pytest.raises(ValueError, match="auto"):
        _ = Call("shapes-flux", 2, (), "auto", 0).id


def test_an_item_says_which_dtype_auto_was_and_its_folder_keeps_it(
    recipes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shapes, out = RECIPE["settings"]["shapes"], tmp_path / "out"  # type: ignore[index]
    small = {"model": "shapes-flux", "prompts": "shapes-mini", "limit": 1, "steps": 1, "judges": ["aesthetic"]}
    parts = {
        "texts": {**small, "series": {"steps": {}}},
        "named": {**small, "dtype": "bfloat16", "series": {"steps": {}}},
    }
    for number in (1, 2):
        other = {"title": "T", "expected": "", "settings": {"shapes": {**shapes, "parts": parts, "view": "table"}}}
        other["settings"]["shapes"] |= {"panels": [], "claims": {}, "remarks": {}}  # type: ignore[index]
        parts["texts"]["seed"] = number
        (recipes / f"T.figure{number}.yaml").write_text(yaml.safe_dump(other))

    def raw(item: str) -> dict[str, Any]:
        return dict(json.loads((out / item / "raw.json").read_text()))

    arguments = ["--output", str(out), "--device", "cpu"]
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: True)
    assert _diffscale(monkeypatch, "T.figure1", *arguments) == 0
    assert "The dtype is bfloat16, which this processor multiplies" in capsys.readouterr().out
    # Another machine: what is there is not stale, and what is added is in the same dtype, however slow.
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: False)
    assert _diffscale(monkeypatch, "T.figure1", *arguments) == 0
    assert "T.figure1 is done" in (said := capsys.readouterr().out) and "slow" not in said
    assert _diffscale(monkeypatch, "T.figure2", *arguments) == 0
    assert " ".join(capsys.readouterr().out.split()).count("slow on this processor") == 1
    assert not any(item.stale for item in page.items(out))
    for item in ("T.figure1", "T.figure2"):
        assert {name: part["dtype"] for name, part in raw(item)["parts"].items()} == dict.fromkeys(parts, "bfloat16")
    # Elsewhere it is as suits this one, and the same item; a recipe that names a dtype is obeyed.
    other = Session(tmp_path / "other", LoadOptions(device="cpu"))
    settled = other.settle(recipe.resolved(recipe.load("T.figure1"), "shapes"))
    assert {name: part.dtype for name, part in settled.parts.items()} == {"texts": "float32", "named": "bfloat16"}
