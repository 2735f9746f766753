"""LoRA weights: read, weighed, added up, and refused with a sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from diffscale._util.errors import DiffscaleError
from diffscale.models import loras
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions


@given(st.sampled_from(["owner/name", "folder", "C:/loras/x", "a:b"]), st.floats(-4, 4))
def test_source_and_weight(source: str, weight: float) -> None:
    assert loras.split_weight(f"{source}:{weight!r}") == (source, weight)
    assert loras.split_weight(source) == (source, 1.0)


@pytest.mark.parametrize("text", ["owner/name:nan", "owner/name:inf", ":0.5"])
def test_weights_that_are_none(text: str) -> None:
    with pytest.raises(DiffscaleError, match=r"as owner/name:0\.8"):
        loras.split_weight(text)


@pytest.fixture(scope="module")
def two(sd_folder: str, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two LoRAs of rank 2 for the attention of the tiny UNet, in the layout that diffusers saves."""
    peft = pytest.importorskip("peft")
    folders = []
    for seed in range(2):
        unet = load_pipeline(sd_folder, LoadOptions(device="cpu")).unet
        torch.manual_seed(seed)
        config = peft.LoraConfig(r=2, lora_alpha=4, init_lora_weights=False, target_modules=["to_q", "to_v"])
        unet.add_adapter(config)
        weights = peft.utils.get_peft_model_state_dict(unet)
        folders.append(tmp_path_factory.mktemp("lora"))
        StableDiffusionPipeline.save_lora_weights(
            folders[-1],
            weights,
            unet_lora_adapter_metadata={"r": 2, "lora_alpha": 4, "target_modules": ["to_q", "to_v"]},
        )
    return folders


def _out(unet: Any) -> torch.Tensor:
    torch.manual_seed(3)
    with torch.no_grad():
        return unet(torch.randn(2, 4, 8, 8), 500, torch.randn(2, 7, 16)).sample


def _merged(unet: Any, folder: Path, weight: float) -> None:
    """By hand: W + weight alpha / r B A."""
    tensors = load_file(folder / "pytorch_lora_weights.safetensors")
    names = {name.split(".lora_")[0].removeprefix("unet.") for name in tensors}
    assert names
    for name in names:
        up, down = (tensors[f"unet.{name}.lora_{part}.weight"] for part in ("B", "A"))
        unet.get_submodule(name).weight.data += weight * 4 / 2 * up @ down


def test_loras_add_up_by_their_weights(sd_folder: str, two: list[Path]) -> None:
    plain = load_pipeline(sd_folder, LoadOptions(device="cpu")).unet
    before = _out(plain)
    loaded = load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[f"{two[0]}:0.5", str(two[1])])).unet
    _merged(plain, two[0], 0.5)
    _merged(plain, two[1], 1.0)
    torch.testing.assert_close(_out(loaded), _out(plain), atol=1e-5, rtol=1e-4)
    assert (_out(loaded) - before).abs().max() > 1e-3
    # A file instead of its folder, and weight 0.
    off = load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[f"{two[0]}/pytorch_lora_weights.safetensors:0"]))
    torch.testing.assert_close(_out(off.unet), before)


def test_text_encoders_that_a_lora_leaves_alone_are_no_warning(sd_folder: str, two: list[Path]) -> None:
    said: list[str] = []
    handler, logger = logging.Handler(), logging.getLogger("diffusers")
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.WARNING)
    try:
        StableDiffusionPipeline.from_pretrained(sd_folder).load_lora_weights(str(two[0]))
        assert any("CLIPTextModel" in one for one in said)
        said.clear()
        load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[str(two[0])]))
        assert not any("LoRA" in one for one in said)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_files_on_the_hub_can_be_named() -> None:
    assert loras._find("owner/name/some/file.safetensors") == ("owner/name", "some/file.safetensors")
    assert loras._find("owner/name") == ("owner/name", None)


def test_loras_that_do_not_fit_are_told(sd_folder: str, two: list[Path], tmp_path: Path) -> None:
    for lora, said in [
        ("nowhere", "^Unknown LoRA 'nowhere'"),
        ("./l2:abc", r"^Unknown LoRA '\./l2:abc', which is neither shipped, nor a folder, .* such as \./mine:0\.8"),
        (str(tmp_path), "could not be loaded"),
    ]:
        with pytest.raises(DiffscaleError, match=said):
            load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[lora]))
    tensors = load_file(two[0] / "pytorch_lora_weights.safetensors")
    other = {name.replace("unet.", "transformer."): tensor for name, tensor in tensors.items()}
    save_file(other, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(DiffscaleError, match=r"has no weights for any network of StableDiffusionPipeline|could not be"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[str(tmp_path)]))
    wide = {name: torch.cat([tensor, tensor], -1) for name, tensor in tensors.items()}
    save_file(wide, tmp_path / "pytorch_lora_weights.safetensors")
    with pytest.raises(DiffscaleError, match="could not be loaded; check its name, and that it is for this model"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[str(tmp_path)]))


def test_pickles_are_not_read(sd_folder: str, two: list[Path], tmp_path: Path) -> None:
    torch.save(load_file(two[0] / "pytorch_lora_weights.safetensors"), tmp_path / "pytorch_lora_weights.bin")
    with pytest.raises(DiffscaleError, match="could not be loaded"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[str(tmp_path)]))


def test_without_peft_it_is_told_before_anything_loads(sd_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loras, "installed", lambda _: False)
    monkeypatch.setattr("diffscale.models.load._weights", None)
    with pytest.raises(DiffscaleError, match=r'need the library peft, which is not installed: pip install "diffscale'):
        load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[sd_folder]))


def test_a_folder_that_states_its_base_is_a_model(sd_folder: str, two: list[Path]) -> None:
    stated = two[0] / "diffscale.json"
    stated.write_text(json.dumps({"description": "a LoRA", "base": sd_folder}))
    given = load_pipeline(sd_folder, LoadOptions(device="cpu", lora=[str(two[0]), f"{two[1]}:0.5"]))
    named = load_pipeline(str(two[0]), LoadOptions(device="cpu", lora=[f"{two[1]}:0.5"]))
    stated.unlink()
    assert torch.equal(_out(named.unet), _out(given.unet))
    assert not torch.equal(_out(named.unet), _out(load_pipeline(sd_folder, LoadOptions(device="cpu")).unet))
