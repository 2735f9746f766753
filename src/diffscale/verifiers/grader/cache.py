"""Grades on disk, so that no picture is paid for twice; one SQLite file for all runs of a user."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

from pydantic import ValidationError

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.grade import Grade

T = TypeVar("T")

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS grades (
    picture TEXT, prompt TEXT, model TEXT, grading TEXT, grade TEXT NOT NULL,
    PRIMARY KEY (picture, prompt, model, grading));
"""
_PATIENCE: Final = 30.0  # seconds that another process may hold the file


def default_path() -> Path:
    """`grader.sqlite` in the folder DIFFSCALE_CACHE, or in ~/.cache/diffscale."""
    folder = os.environ.get("DIFFSCALE_CACHE")
    return (Path(folder).expanduser() if folder else Path.home() / ".cache" / "diffscale") / "grader.sqlite"


class GradeCache:
    """The grades in the file `path`, made if it is not there; for many threads and processes at once.

    Methods raise DiffscaleError for a file that cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._unusable(error) from error
        self._db = self._try(self._open)

    def get(self, picture: str, prompt: str, model: str, grading: str) -> Grade | None:
        """The grade of the picture with that SHA-256 for `prompt` by `model`, asked as `grading` digests.

        None if it is not known, or does not read back.
        """
        key = (picture, prompt, model, grading)
        row = self._try(
            lambda: self._db.execute(
                "SELECT grade FROM grades WHERE picture = ? AND prompt = ? AND model = ? AND grading = ?", key
            ).fetchone()
        )
        try:
            return Grade.model_validate_json(row[0]) if row else None
        except ValidationError:
            return None

    def put(self, picture: str, prompt: str, model: str, grading: str, grade: Grade) -> None:
        """Keep a grade; on disk when this returns."""
        row = (picture, prompt, model, grading, grade.model_dump_json())
        self._try(lambda: self._db.execute("INSERT OR REPLACE INTO grades VALUES (?, ?, ?, ?, ?)", row))

    def close(self) -> None:
        """Let go of the file."""
        self._try(self._db.close)

    def _open(self) -> sqlite3.Connection:
        # Without transactions of Python's own: every statement is one.
        db = sqlite3.connect(self.path, timeout=_PATIENCE, check_same_thread=False, isolation_level=None)
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                db.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                # Several processes that make the file at once: for this switch SQLite does not wait by itself.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        db.execute("PRAGMA synchronous=NORMAL")
        db.executescript(_TABLES)
        return db

    def _try(self, work: Callable[[], T]) -> T:
        try:
            with self._lock:
                return work()
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: Exception) -> DiffscaleError:
        return DiffscaleError(
            f"The grader's cache {self.path} cannot be used ({error}): make room, move it away, or set DIFFSCALE_CACHE "
            "to a folder on a local disk that you can write to."
        )
