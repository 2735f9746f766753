"""A training that was stopped, by whatever, gives what one gives that was not; and never loses what it had."""

from __future__ import annotations

import errno
import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from commands import forked
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from test_train_methods import GROUPS, METHODS, REWARDED, SHARPENED, given

from diffscale._util import signals
from diffscale.train import configs, run_directory
from diffscale.train.base import Base
from diffscale.train.run_directory import list_checkpoints, step_of

MIXED = [*SHARPENED, "--reward", "tiny:darkness", "--n", "2", "--m", "2", "--proportion_empty_prompts", "0.5"]
CASES: dict[str, list[Any]] = {
    "sft": ["--use_ema", "--gradient_accumulation_steps", 2, "--lr_scheduler", "cosine", "--random_flip"],
    "sharpen-rlhf in rounds": [
        *MIXED,
        "--own_samples",
        "each",
        "--samples_per_round",
        4,
        "--num_inner_epochs",
        2,
        "--sample_steps",
        2,
    ],
    "iterpo in turns": [
        "--reward",
        "clip model=shapes-clip",
        "--refine_by",
        "tiny:darkness",
        "--refine_every",
        2,
        "--refine_prompts",
        3,
        "--refine_learning_rate",
        1e-3,
        "--learning_rate",
        1e-2,
        "--sample_steps",
        3,
    ],
    "ddpo": [*REWARDED, "--samples_per_round", 6],  # three steps: killed within a round
    "group-dpo": [*GROUPS, "--num_inner_epochs", 3, "--lag_rate", 0.2, "--reference", "lagging"],
    "spin": ["--sample_steps", 3, "--samples_per_round", 4, "--num_inner_epochs", 2, "--learning_rate", 1e-2],
    "nft": [*GROUPS, "--reward", "tiny:darkness", "--num_inner_epochs", 2, "--lag_rate", 0.2],
}


class Killed(Exception):
    pass


def trained(out: Path) -> dict[str, torch.Tensor]:
    last = list_checkpoints(out)[-1]
    files = [out / "pytorch_lora_weights.safetensors", *last.glob("*.safetensors")]
    return {f"{file.name} {name}": tensor for file in files for name, tensor in load_file(file).items()}


def said(out: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere_and_resumed_the_weights_are_the_same_bit_by_bit(
    case: str, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    method, more = case.split()[0], [*CASES[case], "--max_train_steps", 5, "--checkpointing_steps", 2]
    assert tiny.cli(monkeypatch, *given(data, method, whole, *more)) == 0
    at = int(time.time_ns()) % 3 + 2  # after a checkpoint
    from diffscale.train.loop import _Training

    own = _Training._step

    def killed(self: Any, terminated: bool) -> None:
        if self.state.step == at:
            raise Killed
        own(self, terminated)

    with monkeypatch.context() as patched:
        patched.setattr(_Training, "_step", killed)
        with pytest.raises(Killed):
            tiny.cli(monkeypatch, *given(data, method, cut, *more))
    assert tiny.cli(monkeypatch, *given(data, method, cut, *more, "--resume", "latest")) == 0
    before, after = trained(whole), trained(cut)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before), f"killed at step {at}"
    assert said(whole) == said(cut)


def test_a_killed_process_loses_nothing_but_the_steps_since_its_checkpoint(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = ["--max_train_steps", 12, "--checkpointing_steps", 4, "--checkpoints_total_limit", 2]
    process = forked("train", *given(data, "sft", cut, *more))
    while not list_checkpoints(cut):
        assert os.waitpid(process, os.WNOHANG) == (0, 0)
        time.sleep(0.002)
    os.kill(process, signal.SIGKILL)
    assert os.WTERMSIG(os.waitpid(process, 0)[1]) == signal.SIGKILL
    assert not (cut / "result.json").exists()
    assert tiny.cli(monkeypatch, *given(data, "sft", cut, *more, "--resume_from_checkpoint", "latest")) == 0
    assert tiny.cli(monkeypatch, *given(data, "sft", whole, *more)) == 0
    before, after = trained(whole), trained(cut)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert [path.name for path in list_checkpoints(cut)] == ["checkpoint-8", "checkpoint-12"]


@pytest.mark.parametrize("number", signals.ENDING)
def test_a_signal_saves_the_step_and_ends_well(
    number: int,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, calls, before = tmp_path / "out", 0, signal.getsignal(number)

    def terminating(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), number)
        return images.mean((1, 2, 3))

    monkeypatch.setattr(tiny, "redness", terminating)
    more = [*METHODS["iterpo"], "--max_train_steps", 1000]
    assert tiny.cli(monkeypatch, *given(data, "iterpo", out, *more)) == 0
    (last,) = list_checkpoints(out)
    assert "stopped at step" in capsys.readouterr().out
    assert step_of(last) == len(said(out)) < 10
    assert not (out / "result.json").exists()
    assert signal.getsignal(number) == before


@pytest.mark.parametrize(("saved", "advice"), [(True, "--resume_from_checkpoint latest"), (False, "the same command")])
def test_a_second_signal_does_not_wait_for_the_step(
    saved: bool,
    advice: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, calls = tmp_path / "out", 0

    def impatient(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 8:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return images.mean((1, 2, 3))

    monkeypatch.setattr(tiny, "redness", impatient)
    more = [*METHODS["iterpo"], "--checkpointing_steps", 1 if saved else 500, "--max_train_steps", 1000]
    assert tiny.cli(monkeypatch, *given(data, "iterpo", out, *more)) == 128 + signal.SIGINT
    error = " ".join(capsys.readouterr().err.split())
    assert "stopped by SIGINT" in error and advice in error and "Traceback" not in error
    assert bool(list_checkpoints(out)) == saved


@pytest.mark.parametrize("what", ["reward", "loss"])
def test_a_nan_stops_with_the_last_good_checkpoint_named(
    what: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"

    def broken(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        late = (out / "checkpoint-2").exists()
        return images.mean((1, 2, 3)) * (torch.nan if late else 1)

    monkeypatch.setattr(tiny, "redness", broken)
    method, more = ("sharpen-sft", METHODS["sharpen-sft"]) if what == "reward" else ("sft", ["--adam_beta2", 0])
    if what == "loss":
        from diffscale.train.methods import sft

        own = sft.sft_loss

        def endless(*args: Any) -> Any:
            loss, logs = own(*args)
            late = (out / "checkpoint-2").exists()
            return (loss * torch.nan, {"loss": float("nan")}) if late else (loss, logs)

        monkeypatch.setattr(sft, "sft_loss", endless)
    assert (
        tiny.cli(monkeypatch, *given(data, method, out, *more, "--max_train_steps", 9, "--checkpointing_steps", 1)) == 2
    )
    error = " ".join(capsys.readouterr().err.split())
    assert "stopped at step 3" in error and f"the last good checkpoint is {out / 'checkpoint-2'}" in error
    assert "nan" in error and error.count("error:") == 1 and "Traceback" not in error
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-1", "checkpoint-2"]
    assert all(tensor.isfinite().all() for tensor in load_file(out / "checkpoint-2" / "trained.safetensors").values())


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("PytorchStreamWriter failed writing file")]
)
def test_a_full_disk_leaves_the_last_checkpoint(
    error: Exception,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, own = tmp_path / "out", run_directory.save_file
    more = ["--max_train_steps", 4, "--checkpointing_steps", 1, "--checkpoints_total_limit", 1]

    def full(tensors: Any, path: Path) -> None:
        if (out / "checkpoint-2").exists():
            path.write_bytes(b"half of")
            raise error
        own(tensors, path)

    with monkeypatch.context() as patched:
        patched.setattr(run_directory, "save_file", full)
        assert tiny.cli(monkeypatch, *given(data, "sft", out, *more)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert f"the last good checkpoint is {out / 'checkpoint-2'}" in said and str(error.args[-1]) in said
    assert [path.name for path in out.glob("*checkpoint*")] == ["checkpoint-2"]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, *more, "--resume", "latest")) == 0
    assert [path.name for path in list_checkpoints(out)] == ["checkpoint-4"]


@pytest.mark.parametrize(
    ("file", "held"),
    [("trained.safetensors", b"half of"), ("optimizer.bin", b""), ("scheduler.bin", b""), ("state.json", b"")],
)
def test_a_broken_checkpoint_is_told_of(
    file: str,
    held: bytes,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 0
    (out / "checkpoint-2" / file).write_bytes(held)
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest", "--max_train_steps", 3)) == 2
    assert "checkpoint-2 cannot be read" in " ".join(capsys.readouterr().err.split())


def test_weights_that_the_disk_does_not_take_at_the_end_are_told_of(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "out", Base.save_lora

    def full(base: Base, folder: Path) -> None:
        if folder.name.startswith(".weights-"):
            raise SafetensorError("I/O error: No space left on device (os error 28)")
        own(base, folder)

    with monkeypatch.context() as patched:
        patched.setattr(Base, "save_lora", full)
        assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "The training is done" in said and f"the last good checkpoint is {out / 'checkpoint-2'}" in said
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest")) == 0
    assert (out / "result.json").exists()


def test_a_log_that_cannot_be_written_is_told_of_and_kept(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, own = tmp_path / "out", run_directory.write_text
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 0
    before = (out / "log.jsonl").read_text()

    def full(path: Path, text: str) -> None:
        if path.name == "log.jsonl":
            raise OSError(errno.ENOSPC, "No space left on device")
        own(path, text)

    monkeypatch.setattr(run_directory, "write_text", full)
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest", "--max_train_steps", 3)) == 2
    assert "log.jsonl cannot be written (No space left on device)" in " ".join(capsys.readouterr().err.split())
    assert (out / "log.jsonl").read_text() == before


def test_the_checkpoint_that_was_just_written_is_kept_where_later_ones_are_there(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, every = tmp_path / "out", ["--checkpointing_steps", 1]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, *every, "--max_train_steps", 3)) == 0
    (out / ".checkpoint-2.old").mkdir()  # of a run that was killed there
    (out / ".checkpoint-2.old" / "state.json").write_text("{}")
    more = [*every, "--resume", "checkpoint-1", "--max_train_steps", 2, "--checkpoints_total_limit", 1]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, *more)) == 0
    assert [path.name for path in out.glob("*checkpoint*")] == ["checkpoint-2"]


def test_a_checkpoint_of_another_folder_is_of_the_same_run_too(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, then = tmp_path / "first", tmp_path / "then"
    assert tiny.cli(monkeypatch, *given(data, "sft", first)) == 0
    more = ["--resume", first / "checkpoint-2", "--max_train_steps", 3]
    for method, other in (("sft", ["--seed", 7]), ("ddpo", REWARDED)):
        assert tiny.cli(monkeypatch, *given(data, method, then, *more, *other)) == 2
        assert f"{first} holds a training with other settings" in " ".join(capsys.readouterr().err.split())
    assert tiny.cli(monkeypatch, *given(data, "sft", then, *more)) == 0


def test_another_run_is_not_overwritten_or_gone_on_with(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 0
    before = (out / "config.yaml").read_text()
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 2
    assert "--resume_from_checkpoint latest" in capsys.readouterr().err
    several = ["--learning_rate", 0.5, "--snr_gamma", 5]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest", *several)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "(learning_rate was 0.01, now 0.5, snr_gamma was None, now 5.0)" in error
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest", "--seed", 7)) == 2
    assert "other settings (seed was 0, now 7)" in " ".join(capsys.readouterr().err.split())
    assert (out / "config.yaml").read_text() == before
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest", "--max_train_steps", 3)) == 0
    assert json.loads((out / "result.json").read_text())["steps"] == 3


# Where a gradient is 0, as those of a new LoRA are, AdamW divides 0 by it.
ENDLESS = ["--adam_epsilon", 1e-300]
BROKEN_WEIGHTS = {
    "weights": ENDLESS,
    "weights and average": [*ENDLESS, "--use_ema"],
    "only before the end": [*ENDLESS, "--checkpointing_steps", 500, "--max_train_steps", 1],
    "only before pictures": [*ENDLESS, "--checkpointing_steps", 500, "--validation_steps", 1],
}


@pytest.mark.parametrize("how", BROKEN_WEIGHTS)
def test_weights_that_are_not_finite_are_never_kept(
    how: str, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, more = tmp_path / "out", ["--checkpointing_steps", 1, *BROKEN_WEIGHTS[how]]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, *more)) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert "Training stopped at step 1 since unet." in error and "is not finite" in error
    assert "there is no checkpoint yet: begin again with a lower learning rate" in error
    assert not list_checkpoints(out) and not (out / "result.json").exists() and not list(out.glob("*.safetensors"))


@pytest.mark.parametrize("kept", ["trainable", "average", "state_dict"])
def test_nothing_that_a_checkpoint_keeps_may_be_not_finite(
    kept: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from diffscale.train.methods.sft import Sft
    from diffscale.train.optimisation import Optimisation

    out, more = tmp_path / "out", ["--use_ema", "--checkpointing_steps", 1, "--max_train_steps", 3]
    broken = {"00000": torch.tensor([1.0, torch.nan])}
    late = lambda own: lambda self: broken if (out / "checkpoint-1").exists() else own(self)  # noqa: E731
    with monkeypatch.context() as patched:
        if kept == "trainable":
            patched.setattr(Base, "trainable", property(late(Base.trainable.fget)))  # type: ignore[attr-defined]
        else:
            owner = Optimisation if kept == "average" else Sft
            patched.setattr(owner, kept, late(getattr(owner, kept)))
        assert tiny.cli(monkeypatch, *given(data, "sft", out, *more)) == 2
        error = " ".join(capsys.readouterr().err.split())
        assert "stopped at step 2" in error and "00000 is not finite" in error
        assert f"the last good checkpoint is {out / 'checkpoint-1'}: go on from there" in error
        assert [path.name for path in list_checkpoints(out)] == ["checkpoint-1"]
    assert tiny.cli(monkeypatch, *given(data, "sft", out, *more, "--resume", "latest")) == 0


def test_a_checkpoint_with_weights_that_are_not_finite_is_not_gone_on_from(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert tiny.cli(monkeypatch, *given(data, "sft", out)) == 0
    file = out / "checkpoint-2" / "trained.safetensors"
    save_file({name: tensor * torch.nan for name, tensor in load_file(file).items()}, file)
    assert tiny.cli(monkeypatch, *given(data, "sft", out, "--resume", "latest")) == 2
    assert "checkpoint-2 cannot be read (unet." in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("value", ["inf", "nan", "-inf"])
def test_no_setting_is_endless(
    value: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for method, kind in configs.CONFIGS.items():
        for name, field in kind.model_fields.items():
            if "float" not in str(field.annotation):
                continue
            more = [*METHODS[method], f"--{name}={value}"]
            assert tiny.cli(monkeypatch, *given(data, method, tmp_path / "out", *more)) == 2, name
            assert f"The setting {name} is not right" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "out").exists()
