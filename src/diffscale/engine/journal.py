"""Everything that a run has paid for, on disk, so that a run killed at any moment goes on where it was.

One SQLite file, only ever appended to: replies to requests (scores always; state tensors where the search asked for
states), the pictures that led or made the gallery, and what each cost. A search's generator cannot be saved, but its
replies can: a fresh generator is fed them, and stands where the killed one stood.
"""

from __future__ import annotations

import json
import sqlite3
import warnings
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from diffscale._util.errors import DiffscaleError

_VERSION: Final = 1
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS run (version INTEGER, settings TEXT);
CREATE TABLE IF NOT EXISTS searches (search TEXT PRIMARY KEY, chunk INTEGER);
CREATE TABLE IF NOT EXISTS replies (
    search TEXT, request INTEGER, kind TEXT, low INTEGER, high INTEGER, costs TEXT, tensors BLOB, crc INTEGER,
    PRIMARY KEY (search, request, low));
CREATE TABLE IF NOT EXISTS pictures (
    search TEXT, number INTEGER, tensors BLOB, crc INTEGER, PRIMARY KEY (search, number));
"""


class Reply:
    """Part of an answer: rows [low, high) of the request, the tensors it gave, and what it cost."""

    def __init__(self, low: int, high: int, tensors: dict[str, Tensor], costs: dict[str, float]) -> None:
        self.low, self.high, self.tensors, self.costs = low, high, tensors, costs


class Journal:
    """The journal in the file `path`, made if it is not there.

    `settings`: all that decides the results, as JSON holds it; raises DiffscaleError if the file is a journal of other
    settings, or none. Records that do not read back are left out with a warning, and so is what followed them in the
    same search; that is paid for again.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self.path = path
        wanted = json.dumps(settings, sort_keys=True)
        try:
            self._db = sqlite3.connect(path)
            self._db.execute("PRAGMA journal_mode=WAL")
            # A kill of the process loses nothing; a power cut at most the last replies, which are then paid again.
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(_TABLES)
            found = self._db.execute("SELECT version, settings FROM run").fetchone()
            if found is None:
                with self._db:
                    self._db.execute("INSERT INTO run VALUES (?, ?)", (_VERSION, wanted))
            self._replies = self._read()
        except sqlite3.DatabaseError as error:
            raise DiffscaleError(
                f"The journal {path} cannot be read ({error}): move it away to start anew, or restore it from a copy."
            ) from error
        if found is not None and (found[0] != _VERSION or found[1] != wanted):
            self._db.close()
            raise DiffscaleError(
                f"The journal {path} is of another run{_difference(found[1], settings)}: choose another --output, or "
                "remove the folder."
            )

    def _read(self) -> dict[tuple[str, int], list[Reply]]:
        replies: dict[tuple[str, int], list[Reply]] = {}
        torn: dict[str, int] = {}
        rows = self._db.execute("SELECT search, request, low, high, costs, tensors, crc FROM replies ORDER BY rowid")
        for search, request, low, high, costs, blob, crc in rows:
            if request >= torn.get(search, request + 1):
                continue
            try:
                if zlib.crc32(blob) != crc:
                    raise ValueError
                replies.setdefault((search, request), []).append(Reply(low, high, load(blob), json.loads(costs)))
            except (ValueError, SafetensorError):
                torn[search] = request
                replies.pop((search, request), None)
        for search, request in torn.items():
            warnings.warn(
                f"The journal {self.path} is damaged at request {request} of search {search}; what follows there is "
                "computed again.",
                stacklevel=3,
            )
            with self._db:
                self._db.execute("DELETE FROM replies WHERE search = ? AND request >= ?", (search, request))
        return replies

    def chunk(self, search: str, chunk: int) -> int:
        """The chunk that the search began with: the one recorded, or `chunk`, which is then recorded."""
        with self._writing() as db:
            db.execute("INSERT OR IGNORE INTO searches VALUES (?, ?)", (search, chunk))
        row = self._db.execute("SELECT chunk FROM searches WHERE search = ?", (search,)).fetchone()
        return int(row[0])

    def replies(self, search: str, request: int) -> list[Reply]:
        """What is known of a search's request, to be taken once, in order of the rows."""
        return sorted(self._replies.pop((search, request), []), key=lambda reply: reply.low)

    def write(self, search: str, request: int, kind: str, reply: Reply) -> None:
        """Append part of an answer; on disk when this returns."""
        blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in reply.tensors.items()})
        with self._writing() as db:
            db.execute(
                "INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (search, request, kind, reply.low, reply.high, json.dumps(reply.costs), blob, zlib.crc32(blob)),
            )

    def keep(self, search: str, number: int, tensors: dict[str, Tensor]) -> None:
        """Append what is kept of candidate `number` of a search."""
        blob = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        with self._writing() as db:
            db.execute("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", (search, number, blob, zlib.crc32(blob)))

    def kept(self, search: str, number: int) -> dict[str, Tensor] | None:
        """What was kept of candidate `number`; None if nothing that reads back."""
        found = self._db.execute(
            "SELECT tensors, crc FROM pictures WHERE search = ? AND number = ?", (search, number)
        ).fetchone()
        return None if found is None or zlib.crc32(found[0]) != found[1] else load(found[0])

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._db.close()

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        try:
            with self._db:
                yield self._db
        except sqlite3.OperationalError as error:
            raise DiffscaleError(
                f"The journal {self.path} cannot be written to ({error}): make room and run the same command again, "
                "it goes on from here."
            ) from error


def _difference(saved: str, wanted: Mapping[str, Any]) -> str:
    try:
        before = json.loads(saved)
    except ValueError:
        return ""
    now = json.loads(json.dumps(wanted))
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return " ({})".format(", ".join(f"{n} was {before.get(n)!r}, now {now.get(n)!r}" for n in names)) if names else ""
