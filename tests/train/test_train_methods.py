"""`diffscale train` end to end on a tiny SDXL: every method, and what its folder is good for."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
import yaml
from diffusers import StableDiffusionXLPipeline
from PIL import Image
from safetensors.torch import load_file

from diffscale import api, verifiers
from diffscale.models.load import base_model, load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.train import configs, validation
from diffscale.verifiers.defaults import counterpart

SHARPENED = ["--reward", "tiny:redness"]
REWARDED = [*SHARPENED, "--sample_steps", "3"]
GROUPS = [*REWARDED, "--group_size", "4", "--group_kept", "2"]
METHODS = {
    "sft": [],
    "sharpen-sft": [*SHARPENED, "--reward", "tiny:darkness weight=0.5", "--n", "2", "--m", "2"],
    "sharpen-rlhf": [*SHARPENED, "--search", "zero_order n=2"],
    "dpo": [],
    "ddpo": REWARDED,
    "d3po": REWARDED,
    "iterpo": REWARDED,
    "group-dpo": [*GROUPS, "--reward", "tiny:darkness", "--clip_range", "0.1", "--num_inner_epochs", "2"],
    "nft": GROUPS,
    "awm": [*GROUPS, "--kl_beta", "0.1"],
    "raft": [*REWARDED, "--group_size", "4"],
    "spin": ["--sample_steps", "3", "--samples_per_round", "4"],
}


def given(data: SimpleNamespace, method: str, output: Path, *more: object) -> list[object]:
    source = {"sft": data.pictures, "sharpen-sft": data.pictures, "spin": data.pictures, "dpo": data.pairs}.get(method)
    where = ["--train_data_dir", source] if source else ["--train_prompts", data.prompts]
    small = ["--train_batch_size", 2, "--max_train_steps", 2, "--rank", 2, "--learning_rate", 1e-2]
    return [
        method, "--pretrained_model_name_or_path", data.base, *where, "--output_dir", output, "--cache_dir", data.cache,
        *small, *more,
    ]  # fmt: skip


def plain(folder: Path) -> StableDiffusionXLPipeline:
    pipe = StableDiffusionXLPipeline.from_pretrained(folder, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(pipe: StableDiffusionXLPipeline) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.from_numpy(
        pipe("a red tree", height=8, width=8, num_inference_steps=2, generator=generator, output_type="np").images
    )


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_a_lora_that_plain_diffusers_loads(
    method: str, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, method, out, *METHODS[method])) == 0
    result = json.loads((out / "result.json").read_text())
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert result["steps"] == len(log) == 2
    # Two rounds, or one that is gone over twice, of two prompts x 4 samples of 3 steps.
    rounds = {"group-dpo": 1, "nft": 2, "awm": 2, "raft": 2}.get(method, 0)
    samples = 4 if method == "spin" else rounds * 2 * 4
    assert result["nfe"] == samples * 3
    assert result["peak_memory_bytes"] > 1e6 and result["seconds_per_step"] > 0
    rewarded = "reward" in configs.CONFIGS[method].model_fields
    assert (result["reward"]["pictures"] > 0) == rewarded == (out / "rewards.png").exists()
    assert set(result["gains"]) == {text.split()[0] for text in METHODS[method] if text.startswith("tiny:")}
    assert Image.open(out / "validation.png").size[0] > Image.open(out / "validation.png").size[1]
    assert configs.load(out / "config.yaml").method == method
    card = (out / "README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["base_model"] == str(data.base)
    assert re.search("None of them has a prompt of .*shapes-mini", card)
    assert ("for prompts of the training data" in card) == rewarded
    before, pipe = drawn(plain(data.base)), plain(data.base)
    pipe.load_lora_weights(out)
    assert (drawn(pipe) - before).abs().max() > 0


@pytest.mark.parametrize("method", ["sharpen-sft", "sharpen-rlhf"])
def test_sharpening_as_the_authors_code_has_it(
    method: str, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, more = tmp_path / "out", [*SHARPENED, "--n", 2, "--m", 2, "--form", "published"]
    more += ["--own_samples", "published", "--sample_steps", 2] if method == "sharpen-rlhf" else []
    assert tiny.cli(monkeypatch, *given(data, method, out, *more, "--gradient_checkpointing")) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(out / "pytorch_lora_weights.safetensors").values())


def test_the_folder_is_a_model_of_diffscale(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 0
    assert json.loads((out / "diffscale.json").read_text())["base"] == str(data.base)
    found = [
        api.search(str(model), "a red tree", verifier=tiny.redness, nfe=3, device="cpu").best.latents
        for model in (data.base, out)
    ]
    assert found[0].shape == found[1].shape == (4, 8, 8) and (found[0] - found[1]).abs().max() > 0


def test_what_was_trained_without_guidance_is_called_without_it(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    price = {}
    for name, more in (("guided", []), ("unguided", ["--unguided"])):
        out = tmp_path / name
        assert tiny.cli(monkeypatch, *given(data, "raft", out, *METHODS["raft"], *more, "--max_train_steps", 1)) == 0
        sampler = api.make_sampler(
            str(out), ["a red tree"], steps=None, pipe_args={}, loading=LoadOptions(device="cpu")
        )
        price[name] = sampler.forwards_per_nfe
        assert sampler.steps == 3
    assert price == {"guided": 2, "unguided": 1}


def test_what_was_trained_can_be_trained_further(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, then = tmp_path / "first", tmp_path / "then"
    assert tiny.cli(monkeypatch, *given(data, "sft", first)) == 0
    more = ["--pretrained_model_name_or_path", first, "--max_train_steps", 1]
    assert tiny.cli(monkeypatch, *given(data, "sft", then, *more)) == 0
    assert json.loads((then / "diffscale.json").read_text())["base"] == str(first)
    assert base_model(str(then)) == str(data.base)
    # The second began where the first ended, and gives both.
    after, before = (validation.load(out, name) for out, name in ((first, "after"), (then, "before")))
    assert after is not None and before is not None
    assert all((a - b).abs().max() < 0.01 for a, b in zip(after.images, before.images, strict=True))
    pipe = load_pipeline(str(then), LoadOptions(device="cpu"))
    assert set(pipe.get_list_adapters()["unet"]) == {"lora_0", "lora_1"}


def test_full_weights_give_a_whole_pipeline(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    more = ["--full", "--use_ema", "--gradient-checkpointing", "--learning_rate", "1e-3"]
    assert tiny.cli(monkeypatch, *given(data, "dpo", out, *more)) == 0
    assert (drawn(plain(out)) - drawn(plain(data.base))).abs().max() > 0
    # What the reference was deepcopied from is what was trained, and the average is what is given.
    average = load_file(out / "checkpoint-2" / "average.safetensors")
    trained = load_file(out / "checkpoint-2" / "trained.safetensors")
    given_away = plain(out).unet.state_dict()
    names = [name.removeprefix("unet.") for name in trained]
    assert all(
        torch.equal(given_away[name], shadow)
        for name, (_, shadow) in zip(dict(plain(out).unet.named_parameters()), sorted(average.items()), strict=True)
    )
    assert any(not torch.equal(given_away[name], trained[f"unet.{name}"]) for name in names)


def test_a_whole_pipeline_has_the_verifiers_of_its_base(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, lora, whole = tmp_path / "base", tmp_path / "lora", tmp_path / "whole"
    shutil.copytree(data.base, base)
    stated = json.loads((base / "diffscale.json").read_text())
    (base / "diffscale.json").write_text(json.dumps(stated | {"counterparts": {"clip": "shapes-clip"}}))
    once = ["--max_train_steps", 1, "--pretrained_model_name_or_path"]
    assert tiny.cli(monkeypatch, *given(data, "sft", lora, *once, base)) == 0
    assert tiny.cli(monkeypatch, *given(data, "sft", whole, *once, lora, "--full")) == 0
    assert [counterpart(str(model), "clip") for model in (base, lora, whole)] == ["shapes-clip"] * 3
    assert counterpart(str(data.base), "clip") is None


def test_half_precision_keeps_what_is_trained_in_float32(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    more = [*METHODS["sharpen-rlhf"], "--mixed_precision", "bf16", "--max_train_steps", 1]
    assert tiny.cli(monkeypatch, *given(data, "sharpen-rlhf", out, *more)) == 0
    trained = load_file(out / "checkpoint-1" / "trained.safetensors")
    assert {tensor.dtype for tensor in trained.values()} == {torch.float32}
    assert all(tensor.isfinite().all() for tensor in trained.values())


def test_evaluation_prompts_are_dropped_and_told_of(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = tmp_path / "held.txt"
    held.write_text("A GREEN hill!\n")
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--held_out_prompts", held)) == 0
    assert json.loads((out / "result.json").read_text())["dropped_evaluation_prompts"]["rows"] == 1
    assert "1 rows with evaluation prompts were dropped" in (out / "README.md").read_text()


def test_rewards_that_were_refined_do_not_measure_the_gains(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turns = ["--refine_by", "tiny:darkness", "--refine_every", 1, "--refine_learning_rate", 0.1]
    more = ["--reward", "clip model=shapes-clip", "--sample_steps", 3, *turns]
    assert tiny.cli(monkeypatch, *given(data, "iterpo", tmp_path, *more)) == 0
    clip = verifiers.load("clip model=shapes-clip")
    kept = load_file(tmp_path / "checkpoint-2" / "method-0.safetensors")
    assert not torch.allclose(kept["reward.0.0"], next(iter(clip.weights())), atol=1e-3)
    # The model as it was, and as it was before the one turn of refining.
    assert kept["gallery.pictures"].shape == (2, 4, 3, 8, 8) and kept["gallery.ranks"].shape == (2, 4)
    assert not torch.equal(*kept["gallery.pictures"])
    for name in ("before", "after"):
        kept_now = validation.load(tmp_path, name)
        again = clip(torch.stack(kept_now.images), data.prompts.read_text().split("\n")[: len(kept_now.images)])
        assert kept_now.scores["clip"] == pytest.approx(again.tolist(), abs=0.02)
