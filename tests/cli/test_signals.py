"""Signals that end a process: one sentence says how to go on, and the same command does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from commands import run_diffscale

from diffscale._util.signals import ENDING, Stopped, signals_noted, signals_raised

SMALL = ["--steps", "2", "--dtype", "float32", "--batch-size", "1", "--verifier", "test_signals:brightness"]
COMMANDS = {
    "generate": ["a red star", *SMALL, "--budget", "8"],
    "bench": ["shapes-mini", *SMALL, "--budget", "4", "--limit", "2"],
}
stop_at: list[int] = []
"""The signals that come while pictures are scored, from the third one on."""
scored: list[int] = []


def brightness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scored.append(len(prompts))
    if len(scored) == 3 and stop_at:
        os.kill(os.getpid(), stop_at.pop())
    return images.mean((1, 2, 3))


def run_counted(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    scored.clear()
    return run_diffscale(monkeypatch, *arguments)


def found(command: str, folder: Path) -> Any:
    """What a command gives, without times."""
    if command == "generate":
        result = json.loads((folder / "result.json").read_text())
        return {name: result[name] for name in ("best", "baseline", "nfe", "trace", "candidates")}
    lines = (json.loads(line) for line in (folder / "samples.jsonl").read_text().splitlines())
    return [{name: sample[name] for name in ("name", "score", "nfe", "trace", "key")} for sample in lines]


@pytest.mark.parametrize("number", ENDING)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_signal_is_told_and_the_same_command_goes_on(
    command: str, number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    whole, cut = ([command, *COMMANDS[command], "--output", str(tmp_path / name)] for name in ("whole", "cut"))
    stop_at.append(number)
    assert run_counted(monkeypatch, *cut) == 128 + number
    error = " ".join(capsys.readouterr().err.split())
    assert f"stopped by {signal.Signals(number).name}: give the same command to go on" in error
    assert "Traceback" not in error and signal.getsignal(number) == before
    assert run_counted(monkeypatch, *cut) == 0
    seen = len(scored)
    assert run_counted(monkeypatch, *whole) == 0
    assert found(command, tmp_path / "whole") == found(command, tmp_path / "cut")
    assert seen < len(scored)  # what was paid for is not paid again


@pytest.mark.slow
@pytest.mark.parametrize("number", ENDING)
def test_a_real_process_ends_with_the_sentence(number: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "diffscale", "generate", "a red star", "--budget", "100000", "--output"]
    with subprocess.Popen([*command, str(tmp_path / "run")], stderr=subprocess.PIPE, text=True) as process:
        while not (tmp_path / "run" / "journal.sqlite").exists():
            time.sleep(0.1)
        process.send_signal(number)
        error = process.communicate(timeout=60)[1]
    assert process.returncode == 128 + number
    assert "give the same command to go on" in " ".join(error.split()) and "Traceback" not in error


def test_signals_that_are_ignored_stay_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        for handled in (signals_raised(), signals_noted()):
            with handled:
                os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_threads_handle_none() -> None:
    seen = []

    def work() -> None:
        with signals_raised(), signals_noted() as event:
            seen.append(event.is_set())

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [False]


def test_the_first_signal_is_noted_and_the_second_raised() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals_raised():
        with signals_noted() as event:
            assert not event.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert event.is_set()
            with pytest.raises(Stopped, match="stopped by SIGTERM: give the same command"):
                os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) == before
