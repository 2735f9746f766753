"""Grades on disk, so that no picture is paid for twice; one SQLite file for all runs of a user."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from diffscale._util.store import SqliteStore
from diffscale.verifiers.grader.grade import Grade

_TABLES: Final = """
CREATE TABLE IF NOT EXISTS grades (
    picture TEXT, prompt TEXT, model TEXT, grading TEXT, grade TEXT NOT NULL,
    PRIMARY KEY (picture, prompt, model, grading));
"""
_ADVICE: Final = "make room, move it away, or set DIFFSCALE_CACHE to a folder on a local disk that you can write to"


def default_path() -> Path:
    """`grader.sqlite` in the folder DIFFSCALE_CACHE, or in ~/.cache/diffscale."""
    folder = os.environ.get("DIFFSCALE_CACHE")
    return (Path(folder).expanduser() if folder else Path.home() / ".cache" / "diffscale") / "grader.sqlite"


class GradeCache:
    """The grades in the file `path`, made if it is not there; for many threads and processes at once.

    Methods raise DiffscaleError for a file that cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._store = SqliteStore(path, _TABLES, name="The grader's cache", unreadable=_ADVICE, unwritable=_ADVICE)

    def get(self, picture: str, prompt: str, model: str, grading: str) -> Grade | None:
        """The grade of the picture with that SHA-256 for `prompt` by `model`, asked as `grading` digests.

        None if it is not known, or does not read back.
        """
        rows = self._store.read(
            "SELECT grade FROM grades WHERE picture = ? AND prompt = ? AND model = ? AND grading = ?",
            (picture, prompt, model, grading),
        )
        try:
            return Grade.model_validate_json(rows[0][0]) if rows else None
        except ValidationError:
            return None

    def put(self, picture: str, prompt: str, model: str, grading: str, grade: Grade) -> None:
        """Write a grade; it is in the file when this returns."""
        row = (picture, prompt, model, grading, grade.model_dump_json())
        self._store.write("INSERT OR REPLACE INTO grades VALUES (?, ?, ?, ?, ?)", [row])

    def close(self) -> None:
        """Let go of the file."""
        self._store.close()
