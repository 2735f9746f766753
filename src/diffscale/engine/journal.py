"""Everything that a run has paid for, on disk, so that a run killed at any moment goes on where it was.

One SQLite file, only ever appended to: replies to requests (scores always; state tensors where the search asked for
states), the pictures that led or made the gallery, what comparisons of them said, and what each cost. A search's
generator cannot be saved, but its replies can: a fresh generator is fed them, and stands where the killed one stood.
"""

import json
import os
import warnings
import zlib
from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load, save
from torch import Tensor

from diffscale._util.config import difference
from diffscale._util.errors import AnotherRun, DiffscaleError
from diffscale._util.store import SqliteStore
from diffscale.engine.ties import Pair

_VERSION: Final = 3
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS run (version INTEGER, settings TEXT);
CREATE TABLE IF NOT EXISTS sources (name TEXT PRIMARY KEY, digest TEXT);
CREATE TABLE IF NOT EXISTS searches (search TEXT PRIMARY KEY, chunk INTEGER, crc INTEGER);
CREATE TABLE IF NOT EXISTS replies (
    search TEXT, request INTEGER, kind TEXT, start INTEGER, stop INTEGER, costs TEXT, tensors BLOB, crc INTEGER,
    PRIMARY KEY (search, request, start));
CREATE TABLE IF NOT EXISTS pictures (
    search TEXT, number INTEGER, tensors BLOB, crc INTEGER, PRIMARY KEY (search, number));
CREATE TABLE IF NOT EXISTS comparisons (
    search TEXT, first INTEGER, second INTEGER, probability REAL, costs TEXT, crc INTEGER,
    PRIMARY KEY (search, first, second));
"""

_FILE: Final = {
    "name": "The journal",
    "unreadable": "move it away to start anew, or restore it from a copy",
    "unwritable": "make room and run the same command again, it goes on from here",
}


@dataclass(frozen=True)
class Reply:
    """Part of an answer: rows [start, stop) of the request, the tensors it gave, and what it cost."""

    start: int
    stop: int
    tensors: dict[str, Tensor]
    costs: dict[str, float]

    def until(self, stop: int) -> "Reply":
        """Its rows before `stop`, with their share of the costs."""
        if stop >= self.stop:
            return self
        kept, rows = stop - self.start, self.stop - self.start
        tensors = {name: tensor[:kept] for name, tensor in self.tensors.items()}
        return Reply(self.start, stop, tensors, {name: cost * kept / rows for name, cost in self.costs.items()})


class Journal:
    """The journal in the file `path`, made if it is not there.

    `settings`: all that decides the results, as JSON holds it; `sources`: digests of code that users
    wrote and of files that they named, and wordings of prompts, by what they are called. Raises DiffscaleError if the
    file is a journal of other settings, or none, or if one of `sources` has changed since something was paid for.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], sources: Mapping[str, str] | None = None) -> None:
        self.path = path
        self._store = SqliteStore(path, _TABLES, **_FILE)
        wanted = json.dumps(settings, sort_keys=True)
        recorded = self._store.read("SELECT version, settings FROM run")
        if not recorded:
            self._store.write("INSERT INTO run VALUES (?, ?)", [(_VERSION, wanted)])
        elif recorded[0] != (_VERSION, wanted):
            self._store.close()
            raise AnotherRun(
                f"The journal {path} is of another run{_difference(recorded[0][1], settings)}: choose another "
                "--output, or remove the folder."
            )
        try:
            self.add_sources(sources or {})
        except DiffscaleError:
            self._store.close()
            raise

    def add_sources(self, sources: Mapping[str, str]) -> None:
        """Record `sources`; raises DiffscaleError if one of them has changed since something was paid for."""
        _check_sources(self._store, sources)
        self._store.write("INSERT OR REPLACE INTO sources VALUES (?, ?)", list(sources.items()))

    def chunk(self, search: str, chunk: int) -> int:
        """The chunk that the search began with: the one recorded, or `chunk`, which is then recorded.

        Where the record is damaged, the replies to the search are removed with a warning.
        """
        recorded = self._store.read("SELECT chunk, crc FROM searches WHERE search = ?", (search,))
        if recorded and recorded[0][1] == _checksum(search, recorded[0][0]):
            return int(recorded[0][0])
        if recorded or self._store.read("SELECT 1 FROM replies WHERE search = ? LIMIT 1", (search,)):
            self._damaged(f"search {search}", "it is computed again")
            self.forget(search)
        row = search, chunk, _checksum(search, chunk)
        self._store.write("INSERT OR REPLACE INTO searches VALUES (?, ?, ?)", [row])
        return chunk

    def replies(self, search: str, request: int) -> list[Reply]:
        """What is known of a search's request, in order of the rows.

        A record that does not read back is removed with a warning, and so is what followed it in the same search: its
        rows are paid for again.
        """
        rows = self._store.read(
            "SELECT kind, start, stop, costs, tensors, crc FROM replies WHERE search = ? AND request = ?",
            (search, request),
        )
        if any(_checksum(search, request, *row) != crc for *row, crc in rows):
            self._damaged(f"request {request} of search {search}", "what follows there is computed again")
            self._store.write("DELETE FROM replies WHERE search = ? AND request >= ?", [(search, request)])
            return []
        found = [Reply(start, stop, load(blob), json.loads(costs)) for _, start, stop, costs, blob, _ in rows]
        return sorted(found, key=lambda reply: reply.start)

    def write(self, search: str, request: int, kind: str, reply: Reply) -> None:
        """Append part of an answer; on disk when this returns."""
        blob = save({name: tensor.detach().cpu().contiguous() for name, tensor in reply.tensors.items()})
        row = search, request, kind, reply.start, reply.stop, json.dumps(reply.costs), blob
        self._store.write("INSERT OR REPLACE INTO replies VALUES (?, ?, ?, ?, ?, ?, ?, ?)", [(*row, _checksum(*row))])

    def together(self) -> AbstractContextManager[None]:
        """What is appended in the block is on disk, all of it, when that ends; and none of it before."""
        return self._store.together()

    def forget(self, search: str) -> None:
        """Delete the replies of a search, so that it is computed again the next time."""
        for table in ("replies", "comparisons"):
            self._store.write(f"DELETE FROM {table} WHERE search = ?", [(search,)])

    def compared(self, search: str) -> dict[Pair, tuple[float, dict[str, float]]]:
        """What is known of pairs of a search's candidates: the probability that the first is better, and its costs.

        What does not read back is not known.
        """
        rows = self._store.read(
            "SELECT first, second, probability, costs, crc FROM comparisons WHERE search = ?", (search,)
        )
        whole = [row for *row, crc in rows if _checksum(search, *row) == crc]
        return {(first, second): (probability, json.loads(costs)) for first, second, probability, costs in whole}

    def compare(self, search: str, pair: Pair, probability: float, costs: Mapping[str, float]) -> None:
        """Append what a comparison of two candidates of a search gave; on disk when this returns."""
        row = search, *pair, probability, json.dumps(costs)
        self._store.write("INSERT OR REPLACE INTO comparisons VALUES (?, ?, ?, ?, ?, ?)", [(*row, _checksum(*row))])

    def keep(self, search: str, number: int, tensors: dict[str, Tensor]) -> None:
        """Append what is kept of candidate `number` of a search."""
        blob = save({name: tensor.contiguous() for name, tensor in tensors.items()})
        row = search, number, blob
        self._store.write("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", [(*row, _checksum(*row))])

    def kept(self, search: str, number: int) -> dict[str, Tensor] | None:
        """What was kept of candidate `number`; None if nothing that reads back."""
        rows = self._store.read("SELECT tensors, crc FROM pictures WHERE search = ? AND number = ?", (search, number))
        return load(rows[0][0]) if rows and _checksum(search, number, rows[0][0]) == rows[0][1] else None

    def close(self) -> None:
        """Close the file; what was written stays."""
        self._store.close()

    def _damaged(self, where: str, so: str) -> None:
        warnings.warn(f"The journal {self.path} is damaged at {where}; {so}.", stacklevel=4)


def _checksum(*values: Any) -> int:
    """A CRC-32 over all values of a row, of whatever type damage made them."""
    each = [value if isinstance(value, bytes) else repr(value).encode() for value in values]
    return zlib.crc32(b"".join(len(data).to_bytes(8, "big") + data for data in each))


def check_sources(path: Path, sources: Mapping[str, str]) -> None:
    """Raise DiffscaleError if one of `sources` of the journal in the file `path`, if that is there, has changed."""
    if path.exists():
        with closing(SqliteStore(path, _TABLES, **_FILE)) as store:
            _check_sources(store, sources)


def _check_sources(store: SqliteStore, sources: Mapping[str, str]) -> None:
    recorded = dict(store.read("SELECT name, digest FROM sources"))
    changed = [name for name, digest in sources.items() if recorded.get(name, digest) != digest]
    if changed and store.read("SELECT 1 FROM replies LIMIT 1"):
        raise AnotherRun(
            f"The {' and the '.join(changed)} {'has' if len(changed) == 1 else 'have'} changed since this run began: "
            "choose another --output, or remove the folder."
        )


def recorded_sources(path: Path) -> dict[str, str]:
    """The sources that the journal in the file `path` has; empty where there is none.

    Raises DiffscaleError for a file that cannot be read.
    """
    if not os.path.exists(path):
        return {}
    with closing(SqliteStore(path, _TABLES, **_FILE)) as store:
        return dict(store.read("SELECT name, digest FROM sources"))


def recorded_settings(path: Path) -> dict[str, Any]:
    """The settings of the journal in the file `path`; empty where there is no journal, or none that tells them.

    Raises DiffscaleError for a file that cannot be read.
    """
    if not os.path.exists(path):  # no error for names that no file system takes
        return {}
    store = SqliteStore(path, _TABLES, **_FILE)
    recorded = store.read("SELECT settings FROM run")
    store.close()
    return _settings(recorded[0][0]) if recorded else {}


def _settings(text: Any) -> dict[str, Any]:
    """What a record of settings holds; empty if that is damaged."""
    with suppress(ValueError, TypeError):
        found = json.loads(text)
        return found if isinstance(found, dict) else {}
    return {}


def _difference(saved: Any, wanted: Mapping[str, Any]) -> str:
    found = difference(_settings(saved), json.loads(json.dumps(wanted)))
    return f" ({found})" if found else ""
