"""`report.html` of generate, bench and train: self-contained, escaped, small, made of the folder's files alone."""

from __future__ import annotations

import errno
import itertools
import json
import re
import shlex
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from commands import run_diffscale
from PIL import Image

from diffscale._util import config
from diffscale.bench import bench_page, generate, generate_page
from diffscale.bench import report as bench_report
from diffscale.bench import run as bench
from diffscale.bench.bench_page import difference
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.bench.hacking import sentence_of_unread
from diffscale.report import charts, page
from diffscale.report.text import NotDrawn, drawing
from diffscale.train import output as train_output
from diffscale.train import page as train_page
from diffscale.train.configs import resolve

EVIL = "<script>alert(1)</script> \"quoted\" & 'so' </title>"


def light(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def dark(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return 1 - images.mean((1, 2, 3))


class _Page(HTMLParser):
    """The tags of a page, and its texts by the tag that they stand in."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.texts: dict[str, list[str]] = {}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        while self.open and self.open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        self.texts.setdefault(self.open[-1] if self.open else "", []).append(data)

    def every(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def _read(folder: Path) -> _Page:
    """The page of a folder, which must need nothing but what lies beside it."""
    text = (folder / "report.html").read_text(encoding="utf-8")
    found = _Page(text)
    assert len(found.every("script")) == 1 and "src" not in found.every("script")[0]
    for _, attributes in found.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "data-link"):
            address = attributes.get(name) or ""
            assert address.startswith(("data:image/webp;base64,", "#")) or ":" not in address, address
            if address and not address.startswith(("data:", "#")):
                assert (folder / unquote(address)).is_file(), address
    assert not re.search(r"@import|url\((?!#)", text)
    # An empty one is that of the frame in which pictures are enlarged.
    assert all(attributes.get("alt") for attributes in found.every("img")[:-1])
    assert all(attributes.get("aria-label") for attributes in found.every("svg"))
    assert "prefers-color-scheme: dark" in text
    return found


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("generated")
    settings = GenerateConfig(
        prompt=EVIL, search="zero_order n=2", verifier=f"{__name__}:light", budget=24, steps=4, dtype="float32",
        device="cpu", pipe_args={"guidance_scale": 2.5},
    )  # fmt: skip
    generate.prepare(folder, settings)
    generate.run(settings, folder)
    return folder


def test_a_search_is_shown_whole_and_what_users_type_is_text(generated: Path) -> None:
    found = _read(generated)
    assert EVIL in "".join(found.texts["h1"]) and "alert(1)" not in "".join(found.texts["script"])
    result = json.loads((generated / "result.json").read_text())
    sources = [attributes["src"] for attributes in found.every("img") if attributes.get("src")]
    assert len(sources) == 2 + result["candidates"] and len(found.every("svg")) == 1
    values = [json.loads(each["data-values"] or "") for each in found.every("figure") if "data-values" in each]
    assert [each["number"] for each in values] == [each["number"] for each in result["gallery"]]
    assert [each["NFE"] for each in values] == [each["nfe"] for each in result["gallery"]]
    cells = "".join(found.texts["td"])
    assert str(result["network_forwards"]) in cells and torch.__version__.split("+")[0] in cells
    rounds = result["rounds"]
    assert rounds[-1] == [result["candidates"], result["nfe"]] and len(rounds) == len(result["seconds_by_round"]) > 2
    assert result["seconds_by_round"][-1] == pytest.approx(result["seconds"], abs=2e-3)


def test_the_command_on_a_page_is_the_run(generated: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = _read(generated)
    words = shlex.split(next(text for text in found.texts["code"] if "NEW_FOLDER" in text))
    assert words[:2] == ["diffscale", "generate"] and words[-1] == "NEW_FOLDER"
    asked: list[GenerateConfig] = []
    monkeypatch.setattr(generate, "settle", lambda output, settings, say: asked.append(settings) or settings)
    monkeypatch.setattr(generate, "prepare", lambda *_: json.loads((generated / "result.json").read_text()))
    assert run_diffscale(monkeypatch, *words[1:-1], generated) == 0
    assert asked == [config.resolve(GenerateConfig, generated / "config.yaml")]


def test_all_kinds_of_settings_become_flags_again(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = GenerateConfig(
        prompt="it's", pipe_args={"a": "5", "b": [1, "x y"], "c": True, "d": "plain", "e": 0.5, "f": None},
        lora=["a:0.5", "b"], compile=True, seed=-3,
    )  # fmt: skip
    line = config.command_line(settings)
    assert "--compile" in line and "--lora a:0.5 --lora b" in line and line.startswith("'it'\"'\"'s'")
    asked: list[GenerateConfig] = []

    def settle(output: Path, given: GenerateConfig, say: Any) -> GenerateConfig:
        asked.append(given)
        raise SystemExit(0)

    monkeypatch.setattr(generate, "settle", settle)
    assert run_diffscale(monkeypatch, "generate", *shlex.split(line)) == 0
    assert asked == [settings]


def test_a_page_that_fails_is_a_warning_and_is_made_again(
    generated: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (generated / "report.html").read_bytes()

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched, pytest.warns(NotDrawn, match=r"report\.html could not be drawn.*No space"):
        patched.setattr(page, "write_text", full)
        generate_page.write(generated)
    assert (generated / "report.html").read_bytes() == before
    (generated / "report.html").unlink()
    settings = config.resolve(GenerateConfig, generated / "config.yaml")
    assert generate.prepare(generated, settings) is None  # it is made by the same command again, and
    assert run_diffscale(monkeypatch, "report", generated) == 0
    assert (generated / "report.html").read_bytes() == before
    assert generate.prepare(generated, settings) is not None
    assert run_diffscale(monkeypatch, "report", generated / "images") == 2
    assert "holds no finished run" in capsys.readouterr().err


def test_a_judge_that_falls_while_the_score_rises_is_a_warning(generated: Path, tmp_path: Path) -> None:
    for name in ("result.json", "config.yaml", "best.png", "baseline.png"):
        (tmp_path / name).write_bytes((generated / name).read_bytes())
    result = json.loads((generated / "result.json").read_text())
    result["best"]["score"], result["baseline"]["score"] = 0.9, 0.1
    ends = {"best": {"score": 0.2}, "baseline": {"score": 0.8}}
    for each in result["gallery"]:
        each["scores"]["oracle"] = 1 - each["score"]
    for searched_with, warned in ((False, 1), (True, 0)):
        result["judges"] = {"oracle": {"searched_with": searched_with, **ends}}
        (tmp_path / "result.json").write_text(json.dumps(result))
        generate_page.write(tmp_path)
        found = _read(tmp_path)
        warnings = [each for each in found.every("p") if each.get("class") == "warning"]
        assert len(warnings) == warned and len(found.every("svg")) == 1 + warned
    assert "images" not in {path.name for path in tmp_path.iterdir()} and not found.every("select")
    for scores, warned in ((itertools.repeat(0.0), 1), (itertools.count(), 0)):
        for each, score in zip(result["gallery"], scores, strict=False):
            each["score"] = score
        (tmp_path / "result.json").write_text(json.dumps({**result, "judges": {}}))
        generate_page.write(tmp_path)
        assert sum("does not tell these pictures apart" in text for text in _read(tmp_path).texts["p"]) == warned


def test_a_page_of_64_large_pictures_is_below_3_mb_and_links_to_more(tmp_path: Path) -> None:
    noise = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(70):
        pixels = noise.integers(0, 256, (256, 256, 3), np.uint8)  # which no format makes small
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    pictures = page.PagePictures(tmp_path)
    sources = [pictures.small(f"images/{number}.png") for number in range(70)]
    assert sum(source.startswith("data:") for source in sources) == page.INLINED == 64
    assert sources[-1] == "images/69.png" and sum(map(len, sources)) < 2_900_000
    assert pictures.small("images/none.png") == "" and page.PagePictures(tmp_path).small("../x.png") == ""
    (tmp_path / "images" / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    assert page.PagePictures(tmp_path).small("images/broken.png") == ""


def test_a_chart_takes_its_ink_from_the_page_and_any_name() -> None:
    curves = {EVIL: [(1.0, {"mean": 0.0}), (2.0, {"mean": 1.0})], "日本語 \ud800": [(1.0, {"mean": 1.0})]}
    curves |= {r"$\frac{1}$ $$": [(1.5, {"mean": 0.5})], "": [(2.0, {"mean": 0.0})]}
    with drawing("a chart"):
        svg = charts.lines(curves, "x", EVIL, doubling=True)
    assert "currentColor" in svg and "#010203" not in svg and "<script>" not in svg
    assert set(re.findall(r'id="([^"]+)"', svg)) and "<metadata" not in svg


def test_differences_are_paired_by_prompt_and_repeat() -> None:
    def sample(prompt: str, repeat: int, score: float | None) -> dict[str, Any]:
        return {"prompt": prompt, "repeat": repeat, "score": score}

    before = [sample("a", 0, 1.0), sample("a", 1, 3.0), sample("b", 0, 10.0), sample("c", 0, 5.0)]
    after = [sample("b", 0, 11.0), sample("a", 0, 2.0), sample("a", 1, 8.0), sample("d", 0, 0.0), sample("c", 0, None)]
    found = difference(before, after, lambda each: each["score"])
    assert found is not None
    assert found["mean"] == pytest.approx(((1 + 5) / 2 + 1) / 2) and found["low"] == 1.0 and found["high"] == 3.0
    assert difference(before, [sample("d", 0, 1.0)], lambda each: each["score"]) is None


def test_a_bench_is_compared_with_its_first_search(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = BenchConfig(
        search=["random", "zero_order n=2"], verifier=[f"{__name__}:light", f"{__name__}:dark"], budget=[4, 12],
        steps=4, dtype="float32", device="cpu",
    )  # fmt: skip
    samples = bench.run(settings, [EVIL, "two green stars"], tmp_path)
    rows = bench_report.write(settings, bench.cells(settings), samples, tmp_path)
    found = _read(tmp_path)
    shown = [each for each in found.every("div") if each.get("class") == "row"]
    assert [each["data-prompt"] for each in shown] == [EVIL, "two green stars"] * 2
    assert len([each for each in found.every("img") if each.get("src")]) == 4 * 3  # plain, and of each search
    cells = [text.strip() for text in found.texts["span"]]
    change = rows[3]["score"]["mean"] - rows[1]["score"]["mean"]
    assert any(f"{change:+.3f}" in text for text in cells)
    before = (tmp_path / "report.html").read_bytes()
    assert run_diffscale(monkeypatch, "report", tmp_path) == 0
    assert (tmp_path / "report.html").read_bytes() == before
    # A line of an earlier version has no plain picture, and a picture may be gone.
    lines = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    for each in lines:
        del each["plain_image"]
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (tmp_path / lines[-1]["image"]).unlink()
    bench_page.write(tmp_path)
    assert "it was not kept" in "".join(_read_texts(tmp_path)) and "is not there" in "".join(_read_texts(tmp_path))


def test_a_judge_that_cannot_read_all_prompts_is_told() -> None:
    samples = [{"prompt": "a", "scores": {"oracle": {"best": 1.0}}}, {"prompt": "b", "scores": {}}]
    assert sentence_of_unread(samples, "oracle").startswith("oracle can read 1 of the 2 prompts")
    assert sentence_of_unread([*samples, {"prompt": "c", "error": "failed"}], "oracle") == sentence_of_unread(
        samples, "oracle"
    )
    for all_or_none in (samples[:1], samples[1:], []):
        assert sentence_of_unread(all_or_none, "oracle") == "" == sentence_of_unread(samples, None)


def _read_texts(folder: Path) -> list[str]:
    found = _Page((folder / "report.html").read_text(encoding="utf-8"))
    return [text for texts in found.texts.values() for text in texts]


def test_a_training_has_its_curves_checkpoints_and_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flags = {
        "pretrained_model_name_or_path": "shapes-flux", "train_prompts": "p.txt", "reward": ["clip"],
        "output_dir": tmp_path, "keep_best": True, "validation_verifier": ["image_reward"], "validation_steps": 2,
    }  # fmt: skip
    config.save(resolve("group-dpo", None, flags), tmp_path / "config.yaml")
    seen = [
        {"step": step, "clip": 0.1 * step, "image_reward": held, "recall": 0.5, "diversity": 0.4}
        for step, held in ((0, 0.1), (2, 0.7), (4, 0.3))
    ]  # fmt: skip
    seen[0]["deviations"] = {"clip": 0.1}  # type: ignore[assignment]
    error = {"standard_error": 0.01, "pictures": 1}
    result = {
        "method": "group-dpo", "base": "shapes-flux", "steps": 4, "seconds": 8.0, "rows": 3, "nfe": 80, "notes": [EVIL],
        "reward": {"verifiers": ["clip"], "seconds_per_step": 0.5, "decode_seconds_per_step": 0.1, "pictures": 9},
        "peak_memory_bytes": 2**30, "trained_parameters": 7, "validations": seen, "validation_prompts": [EVIL],
        "cost": {"evaluations": 1200, "flops": 3.5e12},
        "gains": {"clip": {"before": 0.0, "after": 0.4, "gain": 0.4, **error},
                  "image_reward": {"before": 0.7, "after": 0.1, "gain": -0.6, **error}},
    }  # fmt: skip
    (tmp_path / "result.json").write_text(json.dumps(result))
    log = [{"step": step, "loss": 1.0, "reward": 0.1 * step} for step in range(1, 5)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
    for step in (2, 4):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for name in ("before", "step-2", "step-4", "after"):
        (tmp_path / "validation" / name).mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(tmp_path / "validation" / name / "000.png")
        (tmp_path / "validation" / name / "scores.json").write_text('{"clip": [0.25]}')
    assert train_output.read_result(tmp_path) is not None
    assert run_diffscale(monkeypatch, "report", tmp_path) == 0
    found = _read(tmp_path)
    assert len(found.every("details")) == 3 and "More curves" in found.texts["summary"]
    assert len(found.every("svg")) == 2 + 4 and len([each for each in found.every("img") if each.get("src")]) == 4
    cells = [text.strip() for text in found.texts["td"]]
    assert "checkpoint-2 (given)" in cells and "checkpoint-4" in cells and "3.5 T" in cells and "1,200" in cells
    (warning,) = [text for text in found.texts["p"] if "may have been hacked" in text]
    assert "clip rose and image_reward" in warning
    (tmp_path / "log.jsonl").write_text("")
    (tmp_path / "config.yaml").write_text("[")
    with pytest.warns(NotDrawn):
        train_page.write(tmp_path)
