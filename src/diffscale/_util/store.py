"""Tables in one SQLite file: journals, caches and stores of pictures are such files."""

import os
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import explained

_PATIENCE: Final = 30.0  # seconds that another process may hold the file
_UNWRITABLE: Final = (sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR)
_DAMAGED: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
"""Codes of errors that say by themselves whether room or another file is needed, in reading and in writing."""


def keep_private(path: Path) -> None:
    """Have nobody else read the SQLite file `path`, which is made if it is not there, nor those that SQLite has by it.

    Where that cannot be, whoever opens it will say so.
    """
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
        # SQLite gives the files that it makes beside it the same rights, but there may be older ones.
        for each in (path.with_name(path.name + end) for end in ("", "-wal", "-shm")):
            if each.exists():
                each.chmod(0o600)


class SqliteStore:
    """The tables in the file `path`, made if it is not there; for many threads and processes at once.

    `tables`: statements that make the tables where they are not there. `name`: what users call the file. `unreadable`,
    `unwritable`: what a user can do about a file that cannot be read or written. Every write is whole or not there: a
    kill of the process loses nothing that was written, and a power cut at most the last writes.

    All methods raise DiffscaleError for a file that cannot be used.
    """

    def __init__(self, path: Path, tables: str, *, name: str, unreadable: str, unwritable: str) -> None:
        self.path = path
        self._unreadable = f"{name} {path} cannot be read ({{why}}): {unreadable}."
        self._unwritable = f"{name} {path} cannot be written to ({{why}}): {unwritable}."
        self._lock, self._inside = threading.Lock(), False
        with explained(self._unwritable, OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
        with self._told(self._unreadable):
            self._db = sqlite3.connect(path, timeout=_PATIENCE, check_same_thread=False)
            self._use_write_ahead_log()
            # Text that is damaged reads as text that is not what was written, instead of not at all.
            self._db.text_factory = lambda data: data.decode(errors="replace")
            self._db.execute("PRAGMA synchronous=NORMAL")
            self._db.executescript(tables)

    def read(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows that `query` selects."""
        with self._told(self._unreadable), self._lock:
            return self._db.execute(query, values).fetchall()

    def write(self, statement: str, rows: Iterable[Sequence[Any]]) -> None:
        """Run `statement` for each of `rows` in one transaction; they are in the file when this returns."""
        with self._told(self._unwritable), self._lock, self._transaction():
            self._db.executemany(statement, rows)

    @contextmanager
    def together(self) -> Iterator[None]:
        """What this thread writes in the block is one transaction, in the file when it ends; it is for one thread."""
        with self._told(self._unwritable), self._db:
            self._inside = True
            try:
                yield
            finally:
                self._inside = False

    def _transaction(self) -> AbstractContextManager[Any]:
        return nullcontext() if self._inside else self._db

    def close(self) -> None:
        """Let go of the file; what was written stays."""
        self._db.close()

    @contextmanager
    def _told(self, usually: str) -> Iterator[None]:
        """Errors of SQLite in the block become the sentence that their code asks for, or that which is `usually` so."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the rest says more of the same
            sentence = self._unwritable if code in _UNWRITABLE else self._unreadable if code in _DAMAGED else usually
            with explained(sentence, sqlite3.Error):
                raise

    def _use_write_ahead_log(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                self._db.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                # Several processes that make the file at once: SQLite does not wait by itself for this switch.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
