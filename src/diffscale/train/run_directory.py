"""The folder of a training: opened for a new run or for one that goes on, and the whole checkpoints in it."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale.train import configs
from diffscale.train.configs import TrainConfig

_NAME: Final = re.compile(r"checkpoint-(\d+)")
DISK_ERRORS: Final = (OSError, RuntimeError, SafetensorError)
"""What a disk that takes no more is reported as: by Python, by torch and by safetensors."""


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
