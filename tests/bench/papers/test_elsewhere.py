"""Items on networks of others, on random weights in the published layout: run as any other, left out without them."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from diffscale._util.pixels import eight_bit
from diffscale.bench.papers import page, recipe
from diffscale.bench.series import PromptRepeat
from diffscale.engine import noise
from diffscale.registry import plugins

ROOT = Path(__file__).parents[3]
PART = {
    "model": "mnist", "prompts": "digits", "only": ["3", "8"], "repeats": 2, "dtype": "float32", "judges": ["lenet"],
    "series": {"steps": {"final": [2, 4]}, "search": {"verifier": "lenet", "steps": 2, "budgets": [0, 6]}},
}  # fmt: skip


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """The program, and in `tmp_path` weights and one small recipe."""
    monkeypatch.syspath_prepend(str(ROOT / "examples" / "mnist"))
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import reproduce_mnist

    torch.manual_seed(0)
    (tmp_path / "weights").mkdir()
    networks = sys.modules["networks"]
    for network, file in ((networks.DigitFlow(), "diffusion_vit"), (networks.LeNet(), "lenet")):
        save_file(network.state_dict(), tmp_path / "weights" / f"{file}.safetensors")
    (tmp_path / "recipes" / "elsewhere").mkdir(parents=True)
    table = {"part": "digits", "columns": {"lenet": "LeNet"}}
    setting = {"view": "table", "parts": {"digits": PART}, "table": table}
    content = {"title": "T", "expected": "", "settings": {"digits": setting}}
    (tmp_path / "recipes" / "elsewhere" / "T.digits.yaml").write_text(yaml.safe_dump(content))
    monkeypatch.setattr(recipe, "RECIPES", tmp_path / "recipes")
    yield reproduce_mnist
    for kind, name in (("models", "digits"), ("suites", "digits"), ("verifiers", "lenet")):
        plugins(kind)._registered.pop(name, None)
    for name in ("mnist", "networks", "reproduce_mnist"):
        sys.modules.pop(name, None)


def _run(program: Any, monkeypatch: pytest.MonkeyPatch, weights: Path, *more: str) -> None:
    monkeypatch.setattr(sys, "argv", ["reproduce_mnist.py", "--weights", str(weights), *more])
    program.main()


def test_an_item_runs_on_the_weights_of_others(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    _run(program, monkeypatch, tmp_path / "weights", "--output", str(out))
    # 4 digits: 2 and 4 steps, and three candidates of 2, the first of which is a sample of 2 steps.
    assert f"{4 * (3 * 2 + 4)} NFE" in capsys.readouterr().err
    series = json.loads((out / "T.digits" / "raw.json").read_text())["parts"]["digits"]["series"]
    assert [row["nfe"] for row in series["steps"]] == [2, 4] and [row["nfe"] for row in series["search"]] == [2, 6]
    labels = [label for label in program.DIGITS if label in ("3", "8")]
    sampler = program.digit_sampler(tmp_path / "weights", 4, digits=labels)
    keys = [noise.fold(PromptRepeat(label, repeat).key(0), "candidate", 0) for label in labels for repeat in (0, 1)]
    pictures = sampler.decode(sampler.run(sampler.prior(torch.tensor(keys), torch.tensor([0, 0, 1, 1]))).x)
    judge = program.DigitProbability(tmp_path / "weights")
    wanted = judge(eight_bit(pictures).float() / 255, ["3", "3", "8", "8"])
    assert series["steps"][1]["scores"]["lenet"] == pytest.approx(wanted.tolist(), abs=1e-5)
    best, first = (series["search"][place]["scores"]["lenet"] for place in (1, 0))
    assert all(one >= other - 1e-3 for one, other in zip(best, first, strict=True)) and best != first
    assert (out / page.PAGE).is_file()


def test_without_weights_an_item_is_left_out_with_one_sentence(
    program: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _run(program, monkeypatch, tmp_path / "nowhere", "--output", str(tmp_path / "out"))
    said = " ".join(capsys.readouterr().err.split())
    assert said.startswith("T.digits is left out") and said.endswith("diffusion_vit.safetensors.")
    assert not (tmp_path / "out").exists()
