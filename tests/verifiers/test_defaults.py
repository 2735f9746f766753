"""Which network a verifier takes if none is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.cli import list as listed
from diffscale.models.load import base_model, world_of
from diffscale.models.shipped import shipped_folders, verifier_networks
from diffscale.verifiers import VERIFIERS, check, load
from diffscale.verifiers.defaults import build, counterpart


def model(folder: Path, **manifest: object) -> str:
    folder.mkdir()
    (folder / "diffscale.json").write_text(json.dumps(manifest))
    return str(folder)


@pytest.mark.parametrize("image_model", ["", "black-forest-labs/FLUX.1-dev"])
def test_a_model_without_a_folder_has_the_published_network(image_model: str) -> None:
    assert counterpart(image_model, "clip") is counterpart(image_model, "inception") is None

    def factory(model: str = "openai/clip", *, device: str) -> tuple[str, str]:
        return model, device

    assert build(factory, {}, "clip", device="cpu", image_model=image_model) == ("openai/clip", "cpu")
    assert build(factory, {}, "clip", device="cpu", image_model="shapes-flux") == ("shapes-clip", "cpu")
    assert build(factory, {"model": "x"}, "clip", device="cpu", image_model="shapes-flux") == ("x", "cpu")
    assert build(factory, {}, None, device="cpu", image_model="shapes-flux") == ("openai/clip", "cpu")


def test_a_folder_names_its_networks_and_one_with_a_base_has_those_of_its_base(tmp_path: Path) -> None:
    base = model(tmp_path / "base", counterparts={"clip": "own-clip", "dino": "own-dino"})
    lora = model(tmp_path / "lora", base=base, counterparts={"dino": "lora-dino"})
    chain = model(tmp_path / "chain", base=lora)
    for image_model, dino in ((base, "own-dino"), (lora, "lora-dino"), (chain, "lora-dino")):
        found = [counterpart(image_model, kind) for kind in ("clip", "dino", "siglip")]
        assert found == ["own-clip", dino, None]


@pytest.mark.parametrize("name", shipped_folders())
def test_every_shipped_pipeline_names_shipped_networks_for_all_kinds(name: str) -> None:
    kinds = ("aesthetic", "clip", "dino", "image_reward", "inception", "pick_score", "siglip")
    manifest = json.loads((shipped_folders()[name] / "diffscale.json").read_text())
    is_pipeline = "base" in manifest or "num_inference_steps" in manifest["call"]
    for kind in kinds:
        network = counterpart(name, kind)
        assert network in shipped_folders() if is_pipeline else network is None


def test_a_base_that_comes_back_to_itself_is_told(tmp_path: Path) -> None:
    one, other = str(tmp_path / "one"), str(tmp_path / "other")
    model(Path(one), base=other)
    model(Path(other), base=one)
    own = model(tmp_path / "own", base=str(tmp_path / "own"))
    for given in (one, other, own):
        for ask in (lambda given: counterpart(given, "clip"), base_model, world_of):
            with pytest.raises(DiffscaleError, match=r"comes back to it: mend its diffscale\.json"):
                ask(given)


def test_a_wrong_manifest_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match="Mend counterparts"):
        counterpart(model(tmp_path / "x", counterparts=["clip"]), "clip")


def test_a_shipped_network_is_a_verifier_by_its_own_name() -> None:
    found = verifier_networks()
    assert found["shapes-clip"] == "clip" and found["shapes-dino"] == "dino_linear"
    assert "shapes-flux" not in found and set(found.values()) <= VERIFIERS.keys()
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    by_name, by_factory = (load(text)(images, ["a red star"] * 2) for text in ("shapes-clip", "clip model=shapes-clip"))
    assert torch.equal(by_name, by_factory)
    assert dict(row[:2] for row in listed.verifiers())["shapes-clip"].startswith("CLIPModel trained on Shapes")
    check("shapes-siglip level=0.5")
