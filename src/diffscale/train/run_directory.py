"""The folder of a training: opened for a new run or for one that goes on, the checkpoints there, and its log."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from accelerate import Accelerator
from safetensors import SafetensorError

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import write_text
from diffscale.train import configs
from diffscale.train.configs import TrainConfig
from diffscale.train.rewards import Cost

_NAME: Final = re.compile(r"checkpoint-(\d+)")
DISK_ERRORS: Final = (OSError, RuntimeError, SafetensorError)
"""The errors by which Python, torch and safetensors report a disk that takes no more."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a run, oldest first."""
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DiffscaleError(f"{path} is no checkpoint: give a folder checkpoint-N of a run, or latest.")
    return int(match[1])


def choose_checkpoint(folder: Path, asked: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names: latest, a name in `folder`, or a path; None if there is no
    latest. Raises DiffscaleError if there is none of that name."""
    there = list_checkpoints(folder)
    if asked == "latest":
        return there[-1] if there else None
    path = next((path for path in (folder / asked, Path(asked)) if path.is_dir()), None)
    if path is None:
        names = ", ".join(path.name for path in there) or "none"
        raise DiffscaleError(f"There is no checkpoint {asked!r}: give latest or one of {folder} (it has {names}).")
    step_of(path)
    return path


def name_last_checkpoint(folder: Path) -> str:
    """A sentence that names the last whole checkpoint."""
    there = list_checkpoints(folder)
    return f"the last good checkpoint is {there[-1]}" if there else "there is no checkpoint yet"


def open_run_directory(settings: TrainConfig, first: bool) -> Path | None:
    """The checkpoint to go on from, None if there is none; the folder is made, and the settings written there.

    `first`: whether this is the process that writes. Raises DiffscaleError for a folder that holds another run, and for
    one that cannot be written to.
    """
    folder, asked = settings.output_dir, settings.resume_from_checkpoint
    file = folder / "config.yaml"
    try:
        resumed = None if asked is None else choose_checkpoint(folder, asked)
        if not first:
            return resumed
        if resumed is None and (list_checkpoints(folder) or (folder / "result.json").exists()):
            raise DiffscaleError(
                f"{folder} holds a training: go on with --resume_from_checkpoint latest, or choose another "
                "--output_dir."
            )
        # A checkpoint may be of another folder.
        for run in () if resumed is None else dict.fromkeys((folder, resumed.parent)):
            before = run / file.name
            if before.exists() and not configs.load(before).same_run(settings):
                raise DiffscaleError(
                    f"{run} holds a training with other settings (see its config.yaml): go on with those, or "
                    "choose another --output_dir."
                )
        for unfinished in (*folder.glob(".checkpoint-*"), *folder.glob(".weights-*")):  # of runs that were killed
            shutil.rmtree(unfinished, ignore_errors=True)
        config.save(settings, file)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    return resumed


@dataclass
class TrainState:
    """How far a training is: optimiser steps, seconds of steps, and what rewards and decoding for them cost."""

    step: int = 0
    seconds: float = 0.0
    rewards: Cost = field(default_factory=Cost)
    decoding: Cost = field(default_factory=Cost)


LOG_FILE = "log.jsonl"


class Log:
    """`log.jsonl` in the folder of a run, of the first process alone, and the trackers.

    Raises DiffscaleError if it cannot be written, or a tracker does not begin.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainConfig, after: int) -> None:
        """Lines of steps above `after`, from which the run goes on, are taken back."""
        self._accelerator, self._path = accelerator, settings.output_dir / LOG_FILE
        self.lines = [line for line in read_log(self._path) if line["step"] <= after] if after else []
        self._write("w", "".join(json.dumps(line) + "\n" for line in self.lines))
        if settings.report_to:
            flat = {
                name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for name, value in settings.model_dump(mode="json").items()
            }
            mend = "mend that, such as by logging in, or leave --report_to out"
            # Each has errors of its own.
            with explained(f"Reporting to {', '.join(settings.report_to)} cannot begin ({{why}}): {mend}.", Exception):
                accelerator.init_trackers("diffscale-train", flat)

    def add(self, step: int, values: dict[str, float]) -> None:
        """Log one step."""
        line: dict[str, Any] = {"step": step, **values}
        self.lines.append(line)
        self._accelerator.log(values, step=step)
        self._write("a", json.dumps(line) + "\n")

    def _write(self, mode: str, text: str) -> None:
        if not self._accelerator.is_main_process:
            return
        try:
            if mode == "w":
                write_text(self._path, text)
            else:
                with self._path.open(mode) as file:
                    file.write(text)
        except OSError as error:
            last = name_last_checkpoint(self._path.parent)
            raise DiffscaleError(f"{self._path} cannot be written ({error.strerror}): make room; {last}.") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, none if it is not there."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(dict(json.loads(line)))
        except ValueError:
            break  # the last one, of a run that was killed
    return lines


def averaged(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what the passes of one step logged; each name over the passes that have it."""
    names = dict.fromkeys(name for one in passes for name in one)
    values = {name: [one[name] for one in passes if name in one] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}
