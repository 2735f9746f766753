"""Tensors by key on disk, in shards of safetensors: what is written is whole, and stays when a run dies."""

import errno
import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import replacing
from diffscale._util.fingerprints import array_digest
from diffscale._util.progress import Counter, silent
from diffscale.engine.batching import MicroBatch

SHARD_ROWS: Final = 1024
SHARD_BYTES: Final = 2**26
"""A shard is written as soon as it has this many entries or bytes."""

Made = tuple[list[int], dict[str, Tensor]]
"""The numbers of the entries that were made, and their tensors, one row each."""


class Store:
    """Entries by key in the shards of `folder`; every entry has the same named tensors, of the same shapes.

    A reader sees a shard whole or not at all; several processes, on several machines, may write to one folder. A shard
    that cannot be read counts as not there. Reading maps files into memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, int]] = {}
        self._known: set[Path] = set()
        self._open = lru_cache(maxsize=256)(lambda path: safe_open(path, "pt"))
        with suppress(OSError):
            # What killed runs began; a shard takes no hour to write.
            for path in folder.glob(".*.new*"):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that others have written since."""
        for path in sorted(set(self.folder.glob("[!.]*.safetensors")) - self._known):
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
        progress: Counter = silent,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        """Make and write the entries of `keys` that are missing, shard by shard.

        `make(numbers)` gets places in `keys` and gives those that it could make, in order, with their tensors [b, ...].
        `batch_size`: most at once; found by itself if None. `progress(done, total)` counts the missing ones. Raises
        DiffscaleError if a shard cannot be written, and then all that was written before stays.
        """
        missing = sorted({key: i for i, key in reversed(list(enumerate(keys))) if key not in self._where}.values())
        waiting: list[Made] = []
        for part, made in MicroBatch(batch_size).map(lambda part: make(missing[part]), len(missing)):
            waiting.append(made)
            size = sum(t.numel() * t.element_size() for _, tensors in waiting for t in tensors.values())
            if size >= SHARD_BYTES or sum(len(numbers) for numbers, _ in waiting) >= shard_rows:
                self._write_shard(keys, waiting)
                waiting = []
            progress(part.stop, len(missing))
        self._write_shard(keys, waiting)

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of `keys`, by name, a row each, on the CPU; raises KeyError for a key that is not there."""
        rows: list[dict[str, Tensor]] = []
        for key in keys:
            path, row = self._where[key]
            unreadable = f"{path} cannot be read any more: give the same command again ({{why}})."
            with explained(unreadable, OSError, SafetensorError):
                shard = self._open(path)
                rows.append({name: shard.get_slice(name)[row : row + 1] for name in shard.keys()})  # noqa: SIM118
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def _write_shard(self, keys: Sequence[str], waiting: list[Made]) -> None:
        names = [keys[number] for numbers, _ in waiting for number in numbers]
        if not names:
            return
        parts = [tensors for numbers, tensors in waiting if numbers]
        with explained("What is cached must have one shape: {why}.", RuntimeError):
            tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        self._check_shapes(tensors)
        # Of the same entries the same name: what two processes write at once is one shard.
        path = self.folder / f"{array_digest(*names)}.safetensors"
        try:
            with replacing(path) as fresh:
                fresh.write_bytes(save(tensors, {"keys": json.dumps(names)}))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise DiffscaleError(
                f"{'The disk is full' if full else 'The cache cannot be written'}: {self.folder} keeps the {len(self)} "
                f"entries made so far, and the same command goes on from there once "
                f"{'there is room' if full else 'that is mended'} ({error})."
            ) from error
        self._add(path, names)

    def _check_shapes(self, tensors: dict[str, Tensor]) -> None:
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
