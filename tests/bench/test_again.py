"""Pictures say how they were made, and are made again from that, to the bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import run_diffscale
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from diffscale._util.errors import DiffscaleError
from diffscale.bench import again, generate
from diffscale.bench import run as bench
from diffscale.bench.config import BenchConfig, GenerateConfig
from diffscale.bench.origin import Origin, read_origin

PROMPT = "a red circle above a blue square"
SMALL = {"prompt": PROMPT, "steps": 4, "dtype": "float32", "device": "cpu"}


def light(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean((1, 2, 3))


def _run(folder: Path, **settings: Any) -> dict[str, Any]:
    made = GenerateConfig(**{"verifier": f"{__name__}:light", **SMALL, **settings})
    assert generate.prepare(folder, made) is None
    return generate.run(made, folder)


def _again(path: Path, **given: Any) -> again.Again:
    origin, pixels = read_origin(path)
    settings = again.settings_of(origin, GenerateConfig(device="cpu", **given), path)
    return again.make_again(origin, settings, pixels, [*given])


def _pixels(path: Path) -> torch.Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


@pytest.mark.parametrize("search", ["random", "halving", "draft steps=2", "auto"])
def test_all_pictures_of_independent_candidates_are_sampled_again_by_their_keys(
    search: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = _run(tmp_path, search=search, budget=48)
    monkeypatch.setattr(again, "run_searches", None)  # no search is needed
    paths = [tmp_path / "best.png", tmp_path / "baseline.png", *sorted((tmp_path / "images").iterdir())]
    assert len(paths) == 2 + len(result["gallery"]) and len(paths) > 3
    for path in paths:
        made = _again(path)
        assert made.is_same and torch.equal(made.image, _pixels(path)), (path.name, made.off)


def test_what_descends_from_others_is_found_by_its_search_again(tmp_path: Path) -> None:
    found = _run(tmp_path, search="zero_order n=2 policy=greedy", budget=40, batch_size=3)
    path = tmp_path / "best.png"
    assert found["best"]["key"] != found["baseline"]["key"]
    with pytest.raises(DiffscaleError, match=r"Only its search .* may run code .* give --verifier .*light"):
        _again(path)
    made = _again(path, verifier=f"{__name__}:light")
    assert made.is_same and "search" in made.how
    assert made.nfe <= 40  # no further than to this candidate
    first = _again(tmp_path / "baseline.png")
    assert first.is_same and (first.how, first.nfe) == ("by its key", 4)


def test_the_sizes_of_micro_batches_give_the_same_rounding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _run(tmp_path, search="random", budget=24, batch_size=4)
    origin, pixels = read_origin(tmp_path / "images" / "00005.png")
    assert origin.micro_batches == [(0, 2)]  # six rows, in a micro-batch of four and one of two
    sampled, own = [], again._along

    def otherwise_alone(key: int, path: Any, sampler: Any) -> torch.Tensor:
        sampled.append(path)
        return own(key, path, sampler) ^ (len(sampled) == 1)  # as if it were rounded otherwise

    monkeypatch.setattr(again, "_along", otherwise_alone)
    settings = again.settings_of(origin, GenerateConfig(device="cpu"), Path("x.png"))
    made = again.make_again(origin, settings, pixels)
    assert sampled == [[(0, 1)], [(0, 2)]] and made.is_same and made.nfe == 4 + 2 * 4


def test_another_wording_and_negative_prompts_are_heeded(tmp_path: Path) -> None:
    lines = {"prompt": PROMPT, "wordings": ["a blue square below a red circle", "a red disk over a blue square"]}
    (tmp_path / "wordings.jsonl").write_text(json.dumps(lines))
    found = _run(tmp_path / "out", search="rewrites", budget=48, wordings=str(tmp_path / "wordings.jsonl"))
    worded = [each for each in found["gallery"] if each.get("wording", PROMPT) != PROMPT]
    assert worded
    (tmp_path / "wordings.jsonl").unlink()  # the picture says in which words
    for each in (worded[0], found["gallery"][0]):
        assert _again(tmp_path / "out" / each["image"]).is_same


def test_pictures_of_a_bench_are_made_again_each_of_its_repeat(tmp_path: Path) -> None:
    settings = BenchConfig(
        search=["random", "zero_order n=2"], verifier=[f"{__name__}:light"], budget=[12], repeats=2, steps=4,
        dtype="float32", device="cpu", batch_size=3,
    )  # fmt: skip
    samples = bench.run(settings, [PROMPT, "two green stars"], tmp_path)
    plain = sorted((tmp_path / "plain").iterdir())
    assert len(samples) == 8 and len(plain) == 4
    for path in [*plain, *(tmp_path / sample["image"] for sample in samples)]:
        assert _again(path, verifier=f"{__name__}:light").is_same, path
    assert len({_pixels(path).numpy().tobytes() for path in plain}) == 4


def test_what_states_no_origin_or_a_broken_one_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path / "run", search="random", budget=4)
    whole = (tmp_path / "run" / "best.png").read_bytes()
    stated = Image.open(tmp_path / "run" / "best.png").text["diffscale"]
    picture = Image.new("RGB", (64, 64))

    def saying(text: str) -> bytes:
        chunks = PngInfo()
        chunks.add_text("diffscale", text)
        picture.save(tmp_path / "made.png", pnginfo=chunks)
        return (tmp_path / "made.png").read_bytes()

    picture.save(tmp_path / "plain.jpg")
    unsaid, broken, unread = "does not say how it was made", "says of how it was made is broken", "cannot be read"
    cases = {
        b"": unread, b"text": unread, whole[: len(whole) // 2]: unread, whole[:60]: unread,
        (tmp_path / "plain.jpg").read_bytes(): unsaid,
        saying("{"): broken, saying("[]"): broken, saying("3"): broken, saying("{}"): broken,
        saying("[" * 100_000): broken,
        saying(json.dumps({**json.loads(stated), "key": "odd"})): broken,
        saying(json.dumps({**json.loads(stated), "format": 99})): "another version of diffscale",
        saying(json.dumps({**json.loads(stated), "settings": {"prompt": 3}})): "prompt is not right",
        saying(json.dumps({**json.loads(stated), "settings": {"model": "nowhere", "prompt": "x", "dtype": "float32"}})):
            "'nowhere'",
    }  # fmt: skip
    for number, (content, said) in enumerate(cases.items()):
        (file := tmp_path / f"{number}.png").write_bytes(content)
        assert run_diffscale(monkeypatch, "generate", "--from", file, "--device", "cpu") == 2, said
        error = " ".join(capsys.readouterr().err.split())
        assert said in error and "Traceback" not in error, (said, error)
        assert not file.with_name(f"{number}-again.png").exists()
    assert run_diffscale(monkeypatch, "generate", "--from", tmp_path / "nowhere.png") == 2
    assert "cannot be read" in capsys.readouterr().err


def test_the_command_says_what_became_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(tmp_path / "run", search="random", budget=8)
    path = tmp_path / "run" / "best.png"
    assert run_diffscale(monkeypatch, "generate", "--from", path, "--device", "cpu") == 0
    assert "to the bit" in capsys.readouterr().out
    assert torch.equal(_pixels(tmp_path / "run" / "best-again.png"), _pixels(path))
    # What was made says where it is from, too.
    assert run_diffscale(monkeypatch, "generate", "--from", tmp_path / "run" / "best-again.png", "--device", "cpu",
                         "--output", tmp_path / "out") == 0  # fmt: skip
    assert (tmp_path / "out" / "best-again-again.png").exists()
    capsys.readouterr()
    for option, value in (("--steps", "5"), ("--seed", "3"), ("--search", "halving")):
        assert run_diffscale(monkeypatch, "generate", "--from", path, option, value) == 2
        assert f"was made with {option[2:]}" in capsys.readouterr().err
    origin, pixels = read_origin(path)
    old = origin.model_copy(update={"versions": {**origin.versions, "torch": "1.0"}})
    again.Again(torch.from_numpy(pixels.copy()).permute(2, 0, 1), 4, "", (0.0, 0)).save(tmp_path / "old.png", old)
    monkeypatch.setattr(Origin, "other_versions", lambda self: "torch was 1.0, now 2.13")
    assert run_diffscale(monkeypatch, "generate", "--from", tmp_path / "old.png", "--device", "cpu") == 0
    assert "other versions, which may round otherwise: torch was 1.0" in " ".join(capsys.readouterr().out.split())


def test_other_versions_are_named() -> None:
    origin = Origin(settings={"prompt": "x"}, key=1, number=0, nfe=1, score=0.0, versions={"torch": "1.0"})
    assert origin.other_versions().startswith("torch was 1.0, now ")
    assert not Origin.of({"prompt": "x"}, _candidate(), "x").other_versions()


def _candidate() -> Any:
    from diffscale.engine.results import Thumbnail

    return Thumbnail(torch.zeros(3, 8, 8, dtype=torch.uint8), 0.0, 0.0, 0, 1, 4)


@pytest.mark.parametrize(
    "prompt", ["日本語 🙂 \u2028", "\ud800 half", "<script>alert(1)</script>", "x" * 5000, "nul \0"]
)
def test_any_prompt_is_stated(prompt: str, tmp_path: Path) -> None:
    origin = Origin.of({"prompt": prompt}, _candidate(), prompt)
    again.Again(torch.zeros(3, 8, 8, dtype=torch.uint8), 4, "", None).save(tmp_path / "a.png", origin)
    assert read_origin(tmp_path / "a.png")[0].settings["prompt"] == prompt
