"""Several processes train as one does."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from commands import forked
from safetensors.torch import load_file
from test_train_methods import GROUPS, REWARDED, given


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def together(*arguments: Any) -> None:
    """Two processes of one training, on the CPU."""
    shared = {
        "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "ACCELERATE_USE_CPU": "true",
    }  # fmt: skip
    started = [forked("train", *arguments, RANK=str(i), LOCAL_RANK=str(i), **shared) for i in range(2)]
    assert [os.waitpid(process, 0)[1] for process in started] == [0, 0]


def test_two_processes_take_the_steps_of_one_with_twice_the_batches(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    more = ["--proportion_empty_prompts", 0, "--lr_scheduler", "linear", "--learning_rate", 1e-3]
    assert tiny.cli(monkeypatch, *given(data, "sft", one, *more, "--gradient_accumulation_steps", 2)) == 0
    together(*given(data, "sft", two, *more))
    weights = [load_file(out / "checkpoint-2" / "trained.safetensors") for out in (one, two)]
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-4, atol=1e-6)
    logs = [[json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()] for out in (one, two)]
    for alone, shared in zip(*logs, strict=True):
        assert shared["loss"] == pytest.approx(alone["loss"], rel=1e-5)
        assert shared["lr"] == pytest.approx(alone["lr"])


@pytest.mark.parametrize("method", ["ddpo", pytest.param("nft", marks=pytest.mark.slow)])
def test_rounds_in_two_processes_go_on_bit_by_bit(method: str, data: SimpleNamespace, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = [*(GROUPS if method == "nft" else REWARDED), "--reward", "tiny:darkness", "--lr_scheduler", "constant"]
    together(*given(data, method, whole, *more, "--max_train_steps", 3))
    together(*given(data, method, cut, *more, "--max_train_steps", 1))
    together(*given(data, method, cut, *more, "--max_train_steps", 3, "--resume", "latest"))
    before, after = (load_file(out / "checkpoint-3" / "trained.safetensors") for out in (whole, cut))
    assert all(torch.equal(before[name], after[name]) for name in before)
