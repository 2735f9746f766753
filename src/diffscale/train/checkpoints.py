"""Checkpoints: written beside their place, synced and renamed, so that there is always a whole one."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

from safetensors import SafetensorError

from diffscale._util.errors import DiffscaleError, first_line

_NAME: Final = re.compile(r"checkpoint-(\d+)")
UNWRITTEN: Final = (OSError, RuntimeError, SafetensorError)
"""What a disk that takes no more is reported as: by Python, by torch and by safetensors."""


def found(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a run, oldest first."""
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DiffscaleError(f"{path} is no checkpoint: give a folder checkpoint-N of a run, or latest.")
    return int(match[1])


def chosen(folder: Path, asked: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names: latest, a name in `folder`, or a path; None if there is no
    latest. Raises DiffscaleError if there is none of that name."""
    if asked == "latest":
        there = found(folder)
        return there[-1] if there else None
    path = next((path for path in (folder / asked, Path(asked)) if path.is_dir()), None)
    if path is None:
        names = ", ".join(path.name for path in found(folder)) or "none"
        raise DiffscaleError(f"There is no checkpoint {asked!r}: give latest or one of {folder} (it has {names}).")
    step_of(path)
    return path


def last_good(folder: Path) -> str:
    """A sentence that names the last whole checkpoint."""
    there = found(folder)
    return f"the last good checkpoint is {there[-1]}" if there else "there is no checkpoint yet"


class Writing:
    """A checkpoint that is being written; all processes of a training share it.

    `fresh`: where to write. `done` makes it the checkpoint of `step`, and only then removes the oldest others above
    `limit`; where a run went on from an earlier checkpoint, later ones may be among these.
    """

    def __init__(self, folder: Path, step: int, limit: int | None) -> None:
        self.fresh, self._place = folder / f".checkpoint-{step}.new", folder / f"checkpoint-{step}"
        self._folder, self._limit = folder, limit

    def begin(self) -> None:
        """Make room for it; for the first process alone."""
        shutil.rmtree(self.fresh, ignore_errors=True)
        self.fresh.mkdir(parents=True)

    def done(self) -> Path:
        """Make it last; for the first process alone, when all have written."""
        for path in sorted(self.fresh.rglob("*")):
            sync(path)
        sync(self.fresh)
        old = self.fresh.with_suffix(".old")
        shutil.rmtree(old, ignore_errors=True)  # of a run that was killed right here
        if self._place.exists():  # a run that went on from an earlier one
            self._place.replace(old)
        self.fresh.replace(self._place)
        sync(self._folder)
        shutil.rmtree(old, ignore_errors=True)
        if self._limit is not None:
            others = [path for path in found(self._folder) if path != self._place]
            for path in others[: max(0, len(others) + 1 - self._limit)]:
                shutil.rmtree(path, ignore_errors=True)
        return self._place


def written(write: Callable[[], None], writing: Writing, folder: Path) -> None:
    """Call `write`; raises DiffscaleError if the disk does not take it, and leaves what was there before."""
    try:
        write()
    except UNWRITTEN as error:
        shutil.rmtree(writing.fresh, ignore_errors=True)
        with suppress(OSError):
            free = f", {shutil.disk_usage(folder).free / 2**20:.0f} MiB free"
        raise DiffscaleError(
            f"A checkpoint could not be written to {folder} ({first_line(error)}{free}): {last_good(folder)}; make "
            "room and go on with --resume_from_checkpoint latest."
        ) from error


def whole(path: Path, text: str) -> None:
    """Write a file beside its place, synced and renamed: what was there stays until the new one is whole."""
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(text)
    sync(fresh)
    fresh.replace(path)


def sync(path: Path) -> None:
    """Have a file, or a folder's names, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
