"""The recipes of `diffscale train`: each resolves, and trains a tiny network of the class that it is for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
import yaml
from safetensors.torch import load_file

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.cli.train import train
from diffscale.engine import noise
from diffscale.train import configs, loop
from diffscale.train.base import _biased, load_base
from diffscale.train.configs import METHODS, recipes, resolve
from diffscale.train.times import Times

ALL = [(method, name) for method in METHODS for name in recipes(method)]
MODELS = {
    "sdxl": ("stabilityai/stable-diffusion-xl-base-1.0", tiny.save, 8),
    "sd3.5-medium": ("stabilityai/stable-diffusion-3.5-medium", tiny.save_sd3, 8),
    "flux.1-dev": ("black-forest-labs/FLUX.1-dev", tiny.save_flux, 16),
}
GIVEN = {"train_prompts": "prompts.txt", "reward": ["pick_score"]}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("bases")

    def base(name: str) -> Path:
        folder = root / name
        return folder if folder.exists() else MODELS[name][1](folder)

    return base


def test_three_models_have_recipes_of_three_methods() -> None:
    assert set(ALL) == {(method, name) for method in ("group-dpo", "nft", "awm") for name in MODELS}


@pytest.mark.parametrize(("method", "name"), ALL)
def test_a_recipe_is_all_but_prompts_and_a_reward(method: str, name: str) -> None:
    found = resolve(method, Path(name), GIVEN)
    assert (found.method, found.pretrained_model_name_or_path) == (method, MODELS[name][0])
    text = recipes(method)[name].read_text()
    assert text.startswith("# ") and re.search(r"arXiv\s(# )?2", text)
    # What the recipe says is what it sets: nothing is left out, and nothing is said twice.
    said = yaml.safe_load(text)
    assert said == {key: found.model_dump(mode="json")[key] for key in said}
    assert len(said) == sum(not line.startswith("#") for line in text.splitlines())
    # With several processes the round is shared among them, as its comment says.
    eighth = f"--gradient_accumulation_steps {found.gradient_accumulation_steps // 8}."
    assert f"A round samples {found.gradient_accumulation_steps} prompts" in text and eighth in text


@pytest.mark.parametrize(("method", "name"), ALL)
def test_a_recipe_takes_a_step_on_a_tiny_network(
    method: str, name: str, bases: Callable[[str], Path], tmp_path: Path
) -> None:
    recipe = resolve(method, Path(name), GIVEN)
    sizes = {
        "pretrained_model_name_or_path": str(bases(name)), "train_prompts": str(tiny.prompts(tmp_path / "prompts.txt")),
        "validation_prompt": ["a red tree"], "reward": ["tiny:redness"], "cache_dir": str(tmp_path), "rank": 2,
        "output_dir": tmp_path / "out", "resolution": MODELS[name][2], "gradient_accumulation_steps": 1,
        "max_train_steps": 1, "group_size": 4,
    }  # fmt: skip
    kept = getattr(recipe, "group_kept", None)
    settings = resolve(method, Path(name), sizes | ({"group_kept": 2} if kept else {}))
    assert loop.train(settings).step == 1
    out = tmp_path / "out"
    [line] = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert line["nfe"] == 4 * settings.model_dump()["sample_steps"] and line["grad_norm"] > 0
    lora = load_file(out / "pytorch_lora_weights.safetensors")
    assert all(tensor.isfinite().all() for tensor in lora.values())
    assert any(tensor.abs().max() > 0 for key, tensor in lora.items() if "lora_B" in key)
    # What was trained is called as the recipe samples.
    call = json.loads((out / "diffscale.json").read_text())["call"]
    scale = settings.model_dump()["guidance_scale"]
    assert call.get("guidance_scale") == (1.0 if settings.model_dump()["unguided"] else scale)
    assert configs.load(out / "config.yaml").model_dump(exclude={"mixed_precision"}) == settings.model_dump(
        exclude={"mixed_precision"}
    )


@pytest.mark.parametrize(
    ("method", "name"), [each for each in ALL if "timestep_bias_portion" in recipes(each[0])[each[1]].read_text()]
)
def test_a_recipe_of_noisy_times_draws_no_others(method: str, name: str) -> None:
    settings = resolve(method, Path(name), GIVEN)
    portion = settings.model_dump()["timestep_bias_portion"]
    times = _biased(Times(None, 1000, "flow_prediction"), settings).draw(noise.fold_rows(torch.arange(2000), "time"))
    assert 1000 * (1 - portion) < times.min() < 1000 * (1 - portion) + 10 and times.max() > 990


def test_flags_override_a_recipe_and_a_file_may_be_a_copy(tmp_path: Path) -> None:
    copy = tmp_path / "mine.yaml"
    copy.write_text(recipes("nft")["sdxl"].read_text())
    assert resolve("nft", copy, GIVEN) == resolve("nft", Path("sdxl"), GIVEN)
    assert resolve("nft", Path("sdxl"), GIVEN | {"beta": 0.1}).model_dump()["beta"] == 0.1


def test_a_word_that_is_no_recipe_is_told_which_there_are() -> None:
    with pytest.raises(
        UnknownName, match=r"recipe of nft.*did you mean 'sd3.5-medium'.*flux.1-dev, sd3.5-medium, sdxl"
    ):
        resolve("nft", Path("sd3.5-medum"), GIVEN)
    with pytest.raises(UnknownName, match=r"recipe of sft.*There are none"):
        resolve("sft", Path("sdxl"), GIVEN)


def test_help_and_the_page_on_training_name_all_recipes() -> None:
    # Help is read from the source, where it has no line breaks of a terminal.
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    for text in (" ".join((train.__doc__ or "").split()), page):
        assert all(name in text for name in (*MODELS, "--config sdxl"))


def test_samples_cannot_be_guided_and_unguided(bases: Callable[[str], Path]) -> None:
    given = GIVEN | {"pretrained_model_name_or_path": str(bases("sd3.5-medium")), "resolution": 8, "rank": 2}
    with pytest.raises(DiffscaleError, match="leave unguided or guidance_scale out"):
        load_base(resolve("nft", None, given | {"unguided": True, "guidance_scale": 2.0}), "no", "cpu")
    guided = load_base(resolve("nft", None, given | {"guidance_scale": 2.0}), "no", "cpu")
    assert guided.own.forwards_per_nfe == 2 and guided.call.args["guidance_scale"] == 2.0
