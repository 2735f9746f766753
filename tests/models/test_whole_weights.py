"""Networks have all their weights, and these are no code: in every loader."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, first_line
from diffscale.cli.main import run
from diffscale.models.files import load_state
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.models.shipped import locate, verifier_networks

CPU = LoadOptions(device="cpu", dtype="float32")
NETWORKS = {
    f"{model}/{part.name}": (model, part.name)
    for model in ("shapes-flux", "shapes-sdxl", "shapes-pixart", "shapes-sit-s")
    for part in sorted(Path(locate(model)).iterdir())
    if part.is_dir() and list(part.glob("*.safetensors"))
}
JUDGES = sorted(verifier_networks())


class Code:
    """What runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return Path.touch, (Path("executed"),)


def copied(model: str, tmp_path: Path) -> Path:
    return Path(shutil.copytree(locate(model), tmp_path / "copy"))


def one_less(file: Path) -> None:
    """Take a weight out of a file of them."""
    tensors = load_file(file)
    del tensors[max(tensors)]
    save_file(tensors, file, {"format": "pt"})


@pytest.mark.parametrize("network", NETWORKS)
def test_a_pipeline_s_network_lacks_no_weight(network: str, tmp_path: Path) -> None:
    model, part = NETWORKS[network]
    folder = copied(model, tmp_path)
    one_less(next((folder / part).glob("*.safetensors")))
    with pytest.raises(DiffscaleError, match="lack") as error:
        load_pipeline(str(folder), CPU)
    assert str(folder) in str(error.value) or "autoencoder" in str(error.value)


@pytest.mark.parametrize("network", JUDGES)
def test_a_verifier_s_network_lacks_no_weight(network: str, tmp_path: Path) -> None:
    folder = copied(network, tmp_path)
    one_less(folder / "model.safetensors")
    with pytest.raises(DiffscaleError, match=r"lack|are not those of|missing"):
        verifiers.load(f"{json.loads((folder / 'diffscale.json').read_text())['verifier']} model={folder}")


def test_afterwards_libraries_load_as_before(tmp_path: Path) -> None:
    from diffusers import AutoencoderKL, ModelMixin
    from transformers import PreTrainedModel

    before = [vars(family)["from_pretrained"] for family in (ModelMixin, PreTrainedModel)]
    load_pipeline("shapes-flux", CPU)
    with pytest.raises(DiffscaleError):
        load_pipeline(str(tmp_path), CPU)
    assert before == [vars(family)["from_pretrained"] for family in (ModelMixin, PreTrainedModel)]
    assert isinstance(AutoencoderKL.from_pretrained(Path(locate("shapes-flux")) / "vae"), AutoencoderKL)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_pickles_are_refused_unless_they_are_allowed(part: str, tmp_path: Path) -> None:
    folder = copied("shapes-flux", tmp_path)
    file = next((folder / part).glob("*.safetensors"))
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    tensors = load_file(file)
    file.unlink()
    torch.save(tensors, folder / part / name)
    with pytest.raises(DiffscaleError, match=rf"are pickles \(.*{name}\).*--allow-pickles"):
        load_pipeline(str(folder), CPU)
    allowed = LoadOptions(device="cpu", dtype="float32", allow_pickles=True)
    own, whole = (
        dict(getattr(load_pipeline(m, allowed), part).named_parameters()) for m in (str(folder), "shapes-flux")
    )
    assert all(torch.equal(own[key], whole[key]) for key in whole)


@pytest.mark.parametrize("part", ["transformer", "text_encoder", "vae"])
def test_code_in_a_pickle_never_runs_and_nobody_is_told_to_run_it(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied("shapes-flux", tmp_path)
    next((folder / part).glob("*.safetensors")).unlink()
    name = "pytorch_model.bin" if part == "text_encoder" else "diffusion_pytorch_model.bin"
    torch.save({"x": Code()}, folder / part / name)
    for more in ([], ["--allow-pickles"]):
        command = ["diffscale", "generate", "a red star", "--model", str(folder), "--budget", "4", "--steps", "2"]
        monkeypatch.setattr(sys, "argv", [*command, "--dtype", "float32", "--output", str(tmp_path / "out"), *more])
        with pytest.raises(SystemExit) as stopped:
            run()
        said = "".join(capsys.readouterr())
        assert stopped.value.code == 2 and "Traceback" not in said and "weights_only" not in said
    assert not Path("executed").exists()


def test_no_refusal_says_how_to_open_a_pickle_all_the_same(tmp_path: Path) -> None:
    torch.save({"x": Code()}, tmp_path / "x.pt")
    with pytest.raises(pickle.UnpicklingError) as error:
        torch.load(tmp_path / "x.pt", weights_only=True)
    assert "weights_only" in str(error.value) and "not opened" in first_line(error.value)
    with pytest.raises(DiffscaleError, match="not opened") as refused:
        load_state(tmp_path / "x.pt", hashlib.sha256((tmp_path / "x.pt").read_bytes()).hexdigest())
    assert "weights_only" not in str(refused.value)


def test_a_repository_without_safetensors_is_told_how_to_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(*_: Any, use_safetensors: bool | None = None, **__: Any) -> Any:
        assert use_safetensors
        raise OSError("Could not find the necessary `safetensors` weights in {'unet.bin'} (variant=None)")

    monkeypatch.setattr("diffscale.models.load.DiffusionPipeline.from_pretrained", without)
    with pytest.raises(DiffscaleError, match=r"'owner/name' has weights that are pickles, .*--allow-pickles"):
        load_pipeline("owner/name", CPU)
