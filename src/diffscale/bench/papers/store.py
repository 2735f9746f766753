"""Pictures and scores on disk: what was sampled or scored once is read afterwards."""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS pictures (slot TEXT, number INTEGER, shape TEXT, final BLOB, recorded BLOB,
    PRIMARY KEY (slot, number));
CREATE TABLE IF NOT EXISTS found (name TEXT PRIMARY KEY, shape TEXT, picture BLOB, costs TEXT);
CREATE TABLE IF NOT EXISTS scores (verifier TEXT, picture TEXT, value REAL, PRIMARY KEY (verifier, picture));
"""


class Store:
    """One SQLite file; every write is whole or not there, so that a kill loses at most what was being made."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.db = sqlite3.connect(path)
        self.db.execute("PRAGMA journal_mode=WAL")
        self.db.execute("PRAGMA synchronous=NORMAL")
        self.db.executescript(_TABLES)

    def close(self) -> None:
        self.db.close()

    def held(self, recorded: bool) -> set[tuple[str, int]]:
        """Slots and numbers of all pictures, of those with a recorded prediction if that is wanted."""
        where = " WHERE recorded IS NOT NULL" if recorded else ""
        return {(slot, number) for slot, number in self.db.execute(f"SELECT slot, number FROM pictures{where}")}

    def keep(self, rows: Iterable[tuple[str, int, Tensor, Tensor | None]]) -> None:
        """Pictures uint8 [3, H, W] and recorded predictions alike by slot and number."""
        with self.db:
            self.db.executemany(
                "INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)",
                [
                    (slot, number, shape_of(final), packed(final), None if recorded is None else packed(recorded))
                    for slot, number, final, recorded in rows
                ],
            )

    def pictures(self, slot: str, numbers: Sequence[int], recorded: bool = False) -> Tensor:
        """Pictures uint8 [n, 3, H, W], or their recorded predictions; raises KeyError for one that is not there."""
        column = "recorded" if recorded else "final"
        low, high = min(numbers), max(numbers)
        rows = self.db.execute(
            f"SELECT number, shape, {column} FROM pictures WHERE slot = ? AND number BETWEEN ? AND ?", (slot, low, high)
        )
        wanted = set(numbers)
        found = {number: unpacked(shape, blob) for number, shape, blob in rows if number in wanted and blob is not None}
        return torch.stack([found[number] for number in numbers])

    def scores(self, verifier: str, pictures: Sequence[str]) -> NDArray[np.float64]:
        """Values [n] by the names of pictures, NaN where one was not scored yet."""
        found: dict[str, float] = {}
        for start in range(0, len(pictures), 500):
            part = pictures[start : start + 500]
            marks = ", ".join("?" * len(part))
            query = f"SELECT picture, value FROM scores WHERE verifier = ? AND picture IN ({marks})"
            found.update(self.db.execute(query, (verifier, *part)).fetchall())
        return np.array([found.get(name, np.nan) for name in pictures], np.float64)

    def score(self, verifier: str, pictures: Sequence[str], values: Sequence[float]) -> None:
        with self.db:
            rows = [(verifier, name, value) for name, value in zip(pictures, values, strict=True)]
            self.db.executemany("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", rows)


def packed(picture: Tensor) -> bytes:
    return zlib.compress(picture.contiguous().numpy().tobytes(), 1)


def shape_of(picture: Tensor) -> str:
    return " ".join(map(str, picture.shape))


def unpacked(shape: str, blob: bytes) -> Tensor:
    """The inverse of `packed`, uint8."""
    values = np.frombuffer(zlib.decompress(blob), np.uint8).reshape([int(side) for side in shape.split()])
    return torch.from_numpy(values.copy())


def name_of(picture: Tensor, *more: Any) -> str:
    """Names a uint8 picture by its pixels, and by what else its score depends on."""
    found = hashlib.blake2b(picture.contiguous().numpy().tobytes(), digest_size=12)
    for each in more:
        found.update(each.contiguous().numpy().tobytes() if isinstance(each, Tensor) else repr(each).encode())
    return found.hexdigest()
