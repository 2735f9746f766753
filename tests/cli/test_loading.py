"""The loading flags of the commands: they reach the model, are written down, and are told when they are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from commands import run_diffscale
from typer.testing import CliRunner

from diffscale.bench import generate
from diffscale.cli.main import app
from diffscale.models import loras, quantization
from diffscale.models.options import LoadOptions

SMALL = ["a red star", "--steps", "2", "--budget", "6", "--device", "cpu"]


@pytest.fixture
def loaded(monkeypatch: pytest.MonkeyPatch) -> list[LoadOptions]:
    """What pipelines are asked to be loaded with; none is."""
    from diffscale._util.errors import DiffscaleError

    asked: list[LoadOptions] = []

    def load(_: str, options: LoadOptions) -> Any:
        asked.append(options)
        raise DiffscaleError("enough")

    monkeypatch.setattr("diffscale.api.load_pipeline", load)
    monkeypatch.setattr("diffscale.bench.networks.load_pipeline", load)
    return asked


ALL = {
    "device": "cpu", "dtype": "bfloat16", "variant": "fp16", "revision": "main", "scheduler": "DDIMScheduler eta=1",
    "lora": ["a/b:0.5", "c/d"], "quantize": "torchao", "offload": "model", "vae_slicing": True, "vae_tiling": True,
    "compile": True, "attention": "flash",
}  # fmt: skip


@pytest.mark.parametrize("command", ["generate", "bench"])
def test_every_flag_reaches_the_loader(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, loaded: list[LoadOptions]
) -> None:
    flags: list[str] = []
    for name, value in ALL.items():
        flag = f"--{name.replace('_', '-')}"
        for each in value if isinstance(value, list) else [value]:
            flags += [flag] if each is True else [flag, str(each)]
    more = ["--limit", "1"] if command == "bench" else []
    assert run_diffscale(monkeypatch, command, *flags, *more, "--output", str(tmp_path / "out")) == 2
    assert loaded[0].asked() == ALL


def test_the_help_groups_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for command in ("generate", "bench"):
        page = CliRunner().invoke(app, [command, "--help"]).output
        own, loading = page.split(" Loading ")
        for name, field in LoadOptions.model_fields.items():
            assert f"--{name.replace('_', '-')}" in loading and str(field.description)[:30] in loading
        assert "--seed" in own and "--dtype" not in own


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--scheduler", "DDIMSchedular"], "did you mean 'DDIMScheduler'?"),
        (["--lora", "nowhere"], "neither shipped, nor a folder, nor a Hub id"),
        (["--attention", "flsh"], "did you mean 'flash'?"),
        (["--offload", "both"], "The setting offload is not right: Input should be 'model' or 'sequential'"),
        (["--offload", "model"], "the device is cpu"),
        (["--offload", "sequential", "--compile"], "does not go with compile"),
        (["--quantize", "torchao"], "needs the library torchao, which is not installed: pip install torchao"),
        (["--quantize", "torchoa"], "did you mean 'torchao'?"),
        (["--variant", "fp16"], "could not be loaded"),
        (["--device", "gpu"], "There is no device 'gpu': give cuda, mps or cpu."),
        (["--negative-prompt", "dull"], "no effect on FluxPipeline while true_cfg_scale is 1"),
        (["--scheduler", "DDIMScheduler"], "This model is a flow"),
    ],
)
def test_bad_input_gets_one_sentence(
    flags: list[str],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(quantization, "installed", lambda _: False)
    monkeypatch.setattr(loras, "installed", lambda _: True)
    for command in (["generate", *SMALL], ["bench", *SMALL[1:], "--limit", "1"]):
        assert run_diffscale(monkeypatch, *command, *flags, "--output", str(tmp_path / command[0])) == 2
        error = capsys.readouterr().err
        assert said in " ".join(error.split()) and "Traceback" not in error


def test_a_run_goes_on_with_other_memory_options(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = generate.run

    def interrupted(settings: Any, folder: Path, _: Any = None) -> Any:
        def stop(what: str, nfe: int, budget: int, **_: float) -> None:
            if nfe >= 4:
                raise KeyboardInterrupt

        return job(settings, folder, stop)

    folder = tmp_path / "run"
    arguments = ["generate", *SMALL, "--batch-size", "1", "--output", str(folder)]
    monkeypatch.setattr(generate, "run", interrupted)
    assert run_diffscale(monkeypatch, *arguments) == 130
    seen: list[int] = []
    monkeypatch.setattr(
        generate, "run", lambda settings, out, _=None: job(settings, out, lambda what, n, *_, **__: seen.append(n))
    )
    memory = ["--vae-slicing", "--vae-tiling", "--attention", "native"]
    assert run_diffscale(monkeypatch, *arguments, *memory) == 0
    assert seen == [6]  # what was paid for before is not run again
    saved = yaml.safe_load((folder / "config.yaml").read_text())
    assert saved["vae_slicing"] is True and saved["attention"] == "native"
    assert json.loads((folder / "result.json").read_text())["candidates"] == 3
    # A finished run is found whatever these are, and no other dtype is let in.
    assert run_diffscale(monkeypatch, *arguments) == 0 and seen == [6]
    assert run_diffscale(monkeypatch, *arguments, "--dtype", "bfloat16") == 2
    assert run_diffscale(monkeypatch, *arguments, "--scheduler", "FlowMatchHeunDiscreteScheduler") == 2


def test_a_configuration_repeats_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = tmp_path / "first", tmp_path / "again"
    scheduler = ["--scheduler", "FlowMatchEulerDiscreteScheduler shift=2"]
    true_cfg = ["--pipe-arg", "true_cfg_scale=2", "--negative-prompt", "no"]
    assert run_diffscale(monkeypatch, "generate", *SMALL, *scheduler, *true_cfg, "--output", str(first)) == 0
    assert yaml.safe_load((first / "config.yaml").read_text())["negative_prompt"] == "no"
    assert run_diffscale(monkeypatch, "generate", "--config", str(first / "config.yaml"), "--output", str(again)) == 0
    assert (first / "best.png").read_bytes() == (again / "best.png").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (first, again)]
    assert results[0]["network_forwards"] == 2 * results[0]["nfe"]
    # Each of them changed the picture.
    for name, fewer in (("shift", true_cfg), ("negative", scheduler)):
        other = tmp_path / name
        assert run_diffscale(monkeypatch, "generate", *SMALL, *fewer, "--output", str(other)) == 0
        assert (other / "baseline.png").read_bytes() != (first / "baseline.png").read_bytes()


def test_a_bench_goes_on_with_other_memory_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", *SMALL[1:], "--limit", "1", "--output", str(tmp_path / "out")]
    assert run_diffscale(monkeypatch, *arguments) == 0
    lines = (tmp_path / "out" / "samples.jsonl").read_text()
    assert run_diffscale(monkeypatch, *arguments, "--vae-slicing") == 0
    assert (tmp_path / "out" / "samples.jsonl").read_text() == lines
    capsys.readouterr()
    assert run_diffscale(monkeypatch, *arguments, "--scheduler", "FlowMatchEulerDiscreteScheduler shift=2") == 2
    assert "scheduler was None, now 'FlowMatchEuler" in capsys.readouterr().err
