"""What `auto` stands for on this hardware and that, what is told of it, and that a run keeps it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_diffscale
from pipelines import PROMPTS
from safetensors.torch import save_file

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.bench import generate
from diffscale.models import dtypes, load
from diffscale.models.load import dtype_of_pipeline, load_pipeline, settle_dtype
from diffscale.models.options import LoadOptions

SMALL = ["--steps", "2", "--budget", "6", "--device", "cpu", "--batch-size", "1"]
PUBLISHED = dtypes.published_dtype  # before the suite's own fixture takes its place


def _fast(monkeypatch: pytest.MonkeyPatch, fast: bool) -> None:
    monkeypatch.setattr(dtypes, "fast_bfloat16", lambda: fast)


@pytest.mark.parametrize(("fast", "dtype"), [(True, "bfloat16"), (False, "float32")])
def test_on_a_cpu_it_is_bfloat16_only_where_that_is_fast(
    fast: bool, dtype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _fast(monkeypatch, fast)
    said: list[dtypes.DtypeChoice] = []
    # The model is not looked at.
    settled = settle_dtype("owner/name", LoadOptions(device="cpu"), None, said.append)
    assert settled == LoadOptions(device="cpu", dtype=dtype)
    assert said[0].why.startswith(f"The dtype is {dtype}, ") and not said[0].slow
    assert dtype_of_pipeline(load_pipeline("shapes-flux", LoadOptions(device="cpu"))) == dtype
    assert dtype_of_pipeline(load_pipeline("shapes-sit-s", LoadOptions(device="cpu"))) == dtype


@pytest.mark.parametrize("published", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_it_is_what_the_weights_are_published_in(published: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "best_device", lambda _: "cuda")
    monkeypatch.setattr(dtypes, "published_dtype", lambda *_: published)
    said: list[dtypes.DtypeChoice] = []
    assert settle_dtype("shapes-flux", LoadOptions(), None, said.append).dtype == published
    assert f"{published}, which the weights are published in" in said[0].why
    assert ("half of the memory" in said[0].why) == (published == "float32")
    # A dtype that is named, or was, is what it is there too.
    assert settle_dtype("shapes-flux", LoadOptions(dtype="float16"), "float32", said.append).dtype == "float16"
    assert settle_dtype("shapes-flux", LoadOptions(), "bfloat16", said.append).dtype == "bfloat16"
    assert not said[-1].slow


def test_what_weights_are_published_in_is_read_from_the_denoiser_s_headers(
    sd_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert PUBLISHED(sd_folder, LoadOptions()) == "float32"
    # Of Shapes the denoisers are in float16, and the text encoders in float32.
    assert PUBLISHED(load.locate("shapes-flux"), LoadOptions()) == "float16"
    assert PUBLISHED(load.locate("shapes-sit-s"), LoadOptions()) == "float16"
    (tmp_path / "unet").mkdir()
    (tmp_path / "vae").mkdir()
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "X", "unet": ["a", "b"], "vae": ["a", "b"]}))
    assert PUBLISHED(str(tmp_path), LoadOptions()) is None
    half, whole = torch.zeros(9, dtype=torch.float16), torch.zeros(9)
    few = torch.zeros(2)  # as norms in float32 are
    name = str(tmp_path / "unet" / "diffusion_pytorch_model")
    for shard in ("-00001-of-00002", "-00002-of-00002"):
        save_file(
            {"x": half.bfloat16(), "norm": few, "many": torch.zeros(99, dtype=torch.int8)}, f"{name}{shard}.safetensors"
        )
        save_file({"x": half, "norm": few}, f"{name}.fp16{shard}.safetensors")
    save_file({"x": whole.repeat(9)}, tmp_path / "vae" / "diffusion_pytorch_model.safetensors")
    assert PUBLISHED(str(tmp_path), LoadOptions()) == "bfloat16"
    assert PUBLISHED(str(tmp_path), LoadOptions(variant="fp16")) == "float16"
    # Of the Hub it is the files that loading fetches.
    asked: list[Any] = []
    monkeypatch.setattr(
        dtypes.DiffusionPipeline, "download", lambda *given, **more: asked.append((given, more)) or str(tmp_path)
    )
    assert PUBLISHED("owner/name", LoadOptions(variant="fp16", revision="main")) == "float16"
    assert asked == [(("owner/name",), {"variant": "fp16", "revision": "main", "use_safetensors": True})]


def test_a_model_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(DiffscaleError, match="could not be loaded"):
        PUBLISHED(str(tmp_path), LoadOptions())

    def nothing(*_: Any, **__: Any) -> str:
        raise OSError("no such model")

    monkeypatch.setattr(dtypes.DiffusionPipeline, "download", nothing)
    with pytest.raises(DiffscaleError, match=r"'owner/name' could not be loaded.*no such model"):
        PUBLISHED("owner/name", LoadOptions())


def test_the_dtype_of_a_pipeline_is_its_denoiser_s() -> None:
    pipe = load_pipeline("shapes-flux", LoadOptions(device="cpu"))
    pipe.transformer.to(torch.bfloat16)
    assert dtype_of_pipeline(pipe) == "bfloat16"


def test_auto_is_no_dtype_where_things_are_known_by_it() -> None:
    with pytest.raises(ValueError, match="settle_dtype"):
        LoadOptions().decisive()
    assert "auto" not in str(LoadOptions(dtype="float16").decisive())


def test_a_search_says_what_it_used_and_goes_on_in_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    def search(**more: Any) -> diffscale.Result:
        return diffscale.search("shapes-flux", PROMPTS[0], verifier=_red, nfe=4, steps=2, device="cpu", **more)

    _fast(monkeypatch, True)
    journal = tmp_path / "journal.sqlite"
    begun = search(journal=journal)
    assert begun.dtype == "bfloat16"
    assert torch.equal(begun.best.image, search(dtype="bfloat16").best.image)
    _fast(monkeypatch, False)
    assert search().dtype == "float32"
    # Files in temporary folders may be told of; the dtype is not, yet.
    assert not [each for each in recwarn if "dtype" in str(each.message)]
    with pytest.warns(UserWarning, match="bfloat16, in which this run was begun and which is slow on this processor"):
        again = search(journal=journal)
    assert again.dtype == "bfloat16" and again.best.score == begun.best.score
    with pytest.raises(DiffscaleError, match="dtype was 'bfloat16', now 'float32'"):
        search(journal=journal, dtype="float32")
    pipe = load_pipeline("shapes-flux", LoadOptions(device="cpu", dtype="bfloat16"))
    assert diffscale.search(pipe, PROMPTS[0], verifier=_red, nfe=4, steps=2).dtype == "bfloat16"


def _red(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2))


def test_generate_keeps_the_dtype_of_a_run_and_says_once_where_that_is_slow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    job, folder = generate.run, tmp_path / "run"
    arguments = ["generate", "a red star", *SMALL, "--output", str(folder)]

    def interrupted(settings: Any, out: Path, _: Any = None) -> Any:
        def stop(what: str, nfe: int, *_: int, **__: float) -> None:
            if nfe >= 4:
                raise KeyboardInterrupt

        return job(settings, out, stop)

    _fast(monkeypatch, True)
    monkeypatch.setattr(generate, "run", interrupted)
    assert run_diffscale(monkeypatch, *arguments) == 130
    assert "The dtype is bfloat16, which this processor multiplies" in capsys.readouterr().out
    assert "dtype: bfloat16\n" in (folder / "config.yaml").read_text()
    monkeypatch.setattr(generate, "run", job)
    _fast(monkeypatch, False)
    assert run_diffscale(monkeypatch, *arguments, "--dtype", "float32") == 2
    capsys.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        assert run_diffscale(monkeypatch, *arguments) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert out.count("slow on this processor") == 1 and "another run with dtype float32" in out
    assert not [each for each in warned if "dtype" in str(each.message)]
    assert json.loads((folder / "result.json").read_text())["dtype"] == "bfloat16"
    # What is done is found, and nothing more is said of it.
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert "slow" not in (said := capsys.readouterr().out) and "already holds this run" in said
    assert run_diffscale(monkeypatch, *arguments, "--dtype", "float32") == 2


def test_bench_keeps_the_dtype_of_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "bench"
    arguments = ["bench", "shapes-mini", "--limit", "1", *SMALL, "--verifier", "aesthetic", "--output", str(folder)]
    _fast(monkeypatch, False)
    assert run_diffscale(monkeypatch, *arguments) == 0
    assert "The dtype is float32, since" in capsys.readouterr().out
    assert json.loads((folder / "results.json").read_text())["settings"]["dtype"] == "float32"
    _fast(monkeypatch, True)
    assert run_diffscale(monkeypatch, *arguments, "--budget", "2") == 0
    out = capsys.readouterr().out
    assert "The dtype is float32, in which this run was begun." in out and "slow" not in out
    assert run_diffscale(monkeypatch, *arguments, "--dtype", "bfloat16") == 2
