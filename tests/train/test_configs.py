"""Flags, files and defaults of `diffscale train`, and what bad ones get."""

from __future__ import annotations

import errno
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import yaml
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from test_train_methods import given

from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale.train import configs, loop, training_data
from diffscale.train.base import load_base

BIASED = ["--timestep_bias_strategy", "range", "--timestep_bias_multiplier", "2"]
LEAST = {"pretrained_model_name_or_path": "base", "train_data_dir": "data"}


def test_flags_override_the_file_and_that_the_methods_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "reward": ["clip"], "beta": 7.0, "seed": 3}))
    found = configs.resolve("sharpen-rlhf", file, {"seed": 4, "beta": None, "reward": []})
    assert (found.seed, found.beta, found.learning_rate, found.proportion_empty_prompts) == (4, 7.0, 1e-6, 0.2)
    config.save(found, file)
    assert configs.load(file) == configs.resolve("sharpen-rlhf", file, {}) == found


def test_defaults_are_those_of_the_papers() -> None:
    reward = {"reward": ["clip"]}
    rlhf, ddpo, d3po = (configs.resolve(name, None, LEAST | reward) for name in ("sharpen-rlhf", "ddpo", "d3po"))
    dpo = configs.resolve("dpo", None, LEAST)
    assert (rlhf.beta, rlhf.n, rlhf.m, rlhf.learning_rate, rlhf.train_batch_size) == (2500, 3, 3, 1e-6, 8)
    assert (ddpo.sample_steps, ddpo.learning_rate) == (50, 3e-4)
    assert (d3po.sample_steps, d3po.learning_rate, d3po.beta) == (20, 3e-5, 0.1)
    assert (dpo.beta, dpo.max_train_steps) == (5000, 10_000)


def test_both_spellings_of_every_flag_come_through(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[configs.TrainConfig] = []

    def train(settings: configs.TrainConfig, *_: Any) -> loop.Ended:
        seen.append(settings)
        return loop.Ended("stopped", 1, settings.output_dir)

    monkeypatch.setattr(loop, "train", train)
    flags = {
        "gradient_accumulation_steps": 3, "adam_beta2": 0.9, "lr_scheduler": "cosine", "validation_prompt": "a tree",
        "report_to": "wandb", "checkpoints_total_limit": 2, "max_train_seconds": 1.5, "data_files": "a.tar",
    }  # fmt: skip
    for spell in (str, lambda name: name.replace("_", "-")):
        text = [part for name, value in flags.items() for part in (f"--{spell(name)}", str(value))]
        text += [f"--{spell('use_ema')}", f"--{spell('center_crop')}", "--validation_prompts", "a hill"]
        assert tiny.cli(monkeypatch, *given(data, "sft", tmp_path, *text)) == 0
    assert seen[0] == seen[1]
    found = seen[0].model_dump()
    lists = {"validation_prompt": ["a tree", "a hill"], "report_to": ["wandb"], "data_files": ["a.tar"]}
    assert {name: found[name] for name in flags} == {**flags, **lists}
    assert seen[0].use_ema and seen[0].center_crop and not seen[0].full
    file = tmp_path / "run.yaml"
    config.save(seen[0], file)
    assert tiny.cli(monkeypatch, "sft", "--config", file, "--no_use_ema") == 0
    assert seen[2] == seen[0].model_copy(update={"use_ema": False})


def test_help_names_methods_and_flags(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert tiny.cli(monkeypatch, "--help") == 0
    said = capsys.readouterr().out
    assert all(name in said for name in configs.METHODS)
    assert all(
        f"--{name}" in said
        for name in {name for each in configs.CONFIGS.values() for name in each.model_fields}
        if name != "method"
    )
    assert "Optimisation" in said and said.count("[required]") == 1


@pytest.mark.parametrize(
    ("method", "more", "said"),
    [
        ("sharpen", [], "did you mean 'sharpen-sft'?"),
        ("sharpen-sft", [], "needs a reward"),
        ("sft", ["--reward", "clip"], "leave the reward out"),
        ("sharpen-sft", ["--reward", "clop"], "did you mean 'clip'?"),
        ("ddpo", ["--reward", "clip weight=much"], "weight is a number over 0"),
        ("sharpen-sft", ["--reward", "clip", "--search", "randon"], "did you mean 'random'?"),
        ("sft", ["--train_prompts", "a.txt"], "one source of data"),
        ("sft", ["--train_data_dir", "nowhere"], "There is no folder nowhere"),
        ("dpo", ["--train_data_dir", "PICTURES"], "has no preference pairs"),
        ("sft", ["--pretrained_model_name_or_path", "shapes-flx"], "did you mean 'shapes-flux'?"),
        ("sft", ["--report_to", "wandb"], "pip install wandb"),
        ("sft", ["--report_to", "paper"], "report_to"),
        ("sft", ["--lr_scheduler", "steep"], "lr_scheduler"),
        ("sft", ["--train_batch_size", "0"], "train_batch_size"),
        ("sft", ["--use_8bit_adam"], "pip install bitsandbytes"),
        ("sft", ["--resume", "checkpoint-9"], "There is no checkpoint 'checkpoint-9'"),
        ("sft", ["--config", "nowhere.yaml"], "There is no configuration nowhere.yaml"),
        ("ddpo", ["--reward", "tiny:redness", "--samples_per_round", "3"], "whole number of steps"),
        ("sft", ["--sample_steps", "3"], "leave sample_steps out"),
        ("ddpo", ["--reward", "clip", "--timestep_bias_strategy", "later"], "leave timestep_bias_strategy out"),
        ("sft", ["--num_inner_epochs", "2"], "leave num_inner_epochs out"),
        ("ddpo", ["--reward", "clip", "--snr_gamma", "5"], "leave snr_gamma out"),
        ("sft", ["--beta", "3"], "leave beta out"),
        ("ddpo", ["--reward", "clip", "--n", "4"], "leave n out"),
        ("iterpo", ["--reward", "clip", "--samples_per_round", "8"], "leave samples_per_round out"),
        ("d3po", ["--reward", "clip", "--random_flip"], "leave random_flip out"),
        ("sharpen-rlhf", ["--reward", "clip", "--samples_per_round", "8"], "give num_inner_epochs"),
        (
            "sharpen-rlhf",
            ["--reward", "clip", "--own_samples", "published", "--num_inner_epochs", "2"],
            "leave num_inner_epochs out",
        ),
        ("sft", ["--timestep_bias_strategy", "later"], "takes both"),
        ("sft", ["--timestep_bias_multiplier", "2"], "takes both"),
        ("sft", [*BIASED, "--timestep_bias_begin", "1000"], "range of times is empty"),
        ("sft", [*BIASED, "--timestep_bias_begin", "1000", "--timestep_bias_end", "2000"], "model's 1000 times"),
        ("sft", ["--lr_warmup_steps", "2"], "constant_with_warmup"),
        ("sft", ["--lr_scheduler", "polynomial", "--learning_rate", "1e-9"], "no such schedule"),
        ("sft", ["--resolution", "13"], "give another --resolution"),
        ("ddpo", ["--reward", "ensemble of=tiny:redness,tiny:darkness"], "give its members one by one"),
        ("d3po", ["--reward", "ensemble of=tiny:redness,tiny:darkness"], "give its members one by one"),
        ("iterpo", ["--reward", "tiny:redness weight=2"], "leave their weights out"),
        ("iterpo", ["--reward", "tiny:numb", "--sample_steps", "3"], "no gradient"),
    ],
)
def test_bad_input_gets_one_sentence(
    method: str,
    more: list[str],
    said: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    more = [str(data.pictures) if word == "PICTURES" else word for word in more]
    assert tiny.cli(monkeypatch, *given(data, method, tmp_path / "out", *more)) == 2
    error = capsys.readouterr().err
    assert said in " ".join(error.split()) and "Traceback" not in error


def test_a_network_that_cannot_recompute_is_told_of(data: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UNet2DConditionModel, "_supports_gradient_checkpointing", False)
    flags = {**LEAST, "pretrained_model_name_or_path": str(data.base), "gradient_checkpointing": True}
    with pytest.raises(DiffscaleError, match="leave --gradient_checkpointing out"):
        load_base(configs.resolve("sft", None, flags), "no", "cpu")


def test_a_file_of_prompts_that_is_not_there_is_no_id_of_the_hub(tmp_path: Path) -> None:
    given = {"pretrained_model_name_or_path": "base", "train_prompts": "data/prompts", "reward": ["clip"]}
    with pytest.raises(DiffscaleError, match="There is no file data/prompts"):
        training_data.load_data(configs.resolve("ddpo", None, given))


def test_a_disk_that_is_full_leaves_the_settings_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, own = tmp_path / "config.yaml", Path.write_text
    config.save(configs.resolve("sft", None, LEAST), file)
    before = file.read_text()

    def full(path: Path, text: str, encoding: str) -> None:
        own(path, text[:10])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        config.save(configs.resolve("sft", None, {**LEAST, "seed": 1}), file)
    assert file.read_text() == before


@pytest.mark.parametrize("kind", [DistributedType.FSDP, DistributedType.DEEPSPEED])
def test_accelerate_is_told_to_wait_and_may_not_shard(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    def accelerator(**given: Any) -> SimpleNamespace:
        seen.update(given)
        return SimpleNamespace(distributed_type=kind)

    monkeypatch.setattr(loop, "Accelerator", accelerator)
    with pytest.raises(DiffscaleError, match="keep whole weights"):
        loop.make_accelerator(configs.resolve("sft", None, LEAST))
    # The first process encodes for hours, and NCCL's ten minutes would end the others.
    assert seen["kwargs_handlers"][0].timeout >= timedelta(days=1)


def test_a_file_with_what_is_no_setting_is_told_of(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**LEAST, "learningrate": 1}))
    with pytest.raises(DiffscaleError, match="learningrate"):
        configs.resolve("sft", file, {})
