"""Tensors by key on disk, in shards of safetensors: what is written is whole, and stays when a run dies."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.engine.batching import MicroBatch

SHARD_ROWS: Final = 1024
SHARD_BYTES: Final = 2**26
"""A shard is written as soon as it has this many entries or bytes."""

Made = tuple[list[int], dict[str, Tensor]]
"""Which entries were made, and their tensors, one row each."""


class Store:
    """Entries by key in the shards of `folder`; every entry has the same named tensors, of the same shapes.

    A shard is written beside its place, synced and renamed, so that a reader sees it whole or not at all; several
    processes may write to one folder. A shard that cannot be read counts as not there. Reading maps files into memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, int]] = {}
        self._known: set[Path] = set()
        self._open = lru_cache(maxsize=256)(lambda path: safe_open(path, "pt"))
        with suppress(OSError):
            # What killed runs began; a shard takes no hour to write.
            for path in folder.glob(".*.new"):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that others have written since."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path not in self._known:
                with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
                    with safe_open(path, "pt") as shard:
                        keys = json.loads(shard.metadata()["keys"])
                    self._add(path, keys)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def fill(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Made],
        batch_size: int | None = None,
        told: Callable[[int, int], None] | None = None,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        """Make and write the entries of `keys` that are missing, shard by shard.

        `make(numbers)` gets places in `keys` and gives those that it could make, in order, with their tensors [b, ...].
        `batch_size`: most at once; found by itself if None. `told(done, of)` counts the missing ones. Raises
        DiffscaleError if a shard cannot be written, and then all that was written before stays.
        """
        places = {key: i for i, key in reversed(list(enumerate(keys))) if key not in self._where}
        missing = sorted(places.values())
        held: list[Made] = []
        for part, made in MicroBatch(batch_size).map(lambda part: make(missing[part]), len(missing)):
            held.append(made)
            size = sum(t.numel() * t.element_size() for _, tensors in held for t in tensors.values())
            if size >= SHARD_BYTES or sum(len(numbers) for numbers, _ in held) >= shard_rows:
                self._flush(keys, held)
                held = []
            if told is not None:
                told(part.stop, len(missing))
        self._flush(keys, held)

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of `keys`, by name, a row each, on the CPU; raises KeyError for a key that is not there."""
        rows: list[dict[str, Tensor]] = []
        for key in keys:
            path, row = self._where[key]
            try:
                shard = self._open(path)
                rows.append({name: shard.get_slice(name)[row : row + 1] for name in shard.keys()})  # noqa: SIM118
            except (OSError, SafetensorError) as error:
                raise DiffscaleError(
                    f"{path} cannot be read any more: give the same command again ({first_line(error)})."
                ) from error
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def _flush(self, keys: Sequence[str], held: list[Made]) -> None:
        numbers = [number for some, _ in held for number in some]
        if not numbers:
            return
        parts = [tensors for some, tensors in held if some]
        names = [keys[number] for number in numbers]
        try:
            tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        except RuntimeError as error:
            raise DiffscaleError(f"What is cached must have one shape: {first_line(error)}.") from error
        self._checked(tensors)
        # Of the same entries the same name: what two processes write at once is one shard.
        path = self.folder / f"{hashlib.sha256(''.join(names).encode()).hexdigest()[:24]}.safetensors"
        self._write(path, save(tensors, {"keys": json.dumps(names)}))
        self._add(path, names)

    def _checked(self, tensors: dict[str, Tensor]) -> None:
        if not self._where:
            return
        there = self.read([next(iter(self._where))])
        shapes = [{name: tuple(t.shape[1:]) for name, t in some.items()} for some in (there, tensors)]
        if shapes[0] != shapes[1]:
            raise DiffscaleError(
                f"What is cached must have one shape, but {shapes[1]} came after {shapes[0]}: pad all prompts to one "
                "length, and encode all pictures at one resolution."
            )

    def _add(self, path: Path, keys: list[str]) -> None:
        self._known.add(path)
        self._where |= {key: (path, row) for row, key in enumerate(keys)}

    def _write(self, path: Path, data: bytes) -> None:
        fresh = path.with_name(f".{path.stem}.{os.getpid()}.new")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with fresh.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(path)
            _sync(self.folder)
        except OSError as error:
            with suppress(OSError):
                fresh.unlink()
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise DiffscaleError(
                f"{'The disk is full' if full else 'The cache cannot be written'}: {self.folder} keeps the {len(self)} "
                f"entries made so far, and the same command goes on from there once "
                f"{'there is room' if full else 'that is mended'} ({error})."
            ) from error


def _sync(folder: Path) -> None:
    """Make a rename last: without this a crash of the machine may undo it."""
    handle: Any = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
