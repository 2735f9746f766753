"""The prompts of pictures in a folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError

METADATA: Final = "metadata.jsonl"
SAMPLES: Final = "samples.jsonl"
_TEXT: Final = ("text", "prompt", "caption")


def of_bench(folder: Path) -> dict[Path, str] | None:
    """Pictures in `folder` and their prompts, as the `samples.jsonl` of `diffscale bench` has them.

    `folder` is that of the bench or one below it, such as that of one cell. None if it is no such folder; raises
    DiffscaleError for a file that cannot be read.
    """
    # A bench keeps the pictures of a cell in pictures/<cell>.
    for home in (folder, folder.parent, folder.parent.parent):
        if (home / SAMPLES).is_file():
            listed = {
                home / str(row["image"]): str(row["prompt"])
                for row in rows(home / SAMPLES)
                if "image" in row and "prompt" in row
            }
            return {path: prompt for path, prompt in listed.items() if path.is_relative_to(folder)} or None
    return None


def of_metadata(folder: Path, file: Path, paths: Sequence[Path] = ()) -> dict[Path, str]:
    """Prompts by picture from lines of `file_name` (relative to `folder`) and `text`, the imagefolder layout of Hugging
    Face; `prompt` or `caption` may stand for `text`, and lines without one say nothing.

    Where no line has `file_name`, they are of the pictures `paths` in their order, if these are given. Raises
    DiffscaleError for a file that cannot be read, and for a wrong number of such lines.
    """
    found = rows(file)
    if paths and not any("file_name" in row for row in found):
        _count(file, len(found), paths)
        found = [row | {"file_name": path} for row, path in zip(found, paths, strict=True)]
    said = ((row, next((row[key] for key in _TEXT if row.get(key)), None)) for row in found if "file_name" in row)
    return {folder / str(row["file_name"]): str(text) for row, text in said if text is not None}


def of_lines(file: Path, paths: Sequence[Path]) -> dict[Path, str]:
    """A prompt a line for the pictures in their order; raises DiffscaleError for a wrong number of them."""
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise DiffscaleError(f"The prompts in {file} cannot be read ({error}).") from error
    _count(file, len(lines), paths)
    return dict(zip(paths, lines, strict=True))


def rows(file: Path) -> list[dict[str, Any]]:
    """The objects in a JSONL file; raises DiffscaleError naming the line that is none."""
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DiffscaleError(f"The prompts in {file} cannot be read ({error}).") from error
    found = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            found.append(dict(json.loads(line)))
        except (ValueError, TypeError) as error:
            raise DiffscaleError(f"Line {number} of {file} cannot be read: mend or remove it.") from error
    return found


def _count(file: Path, lines: int, paths: Sequence[Path]) -> None:
    if lines != len(paths):
        raise DiffscaleError(
            f"{file} has {lines} prompts for {len(paths)} pictures: give one a line, in the order of the sorted file "
            "names, or JSONL with `file_name` and `text`."
        )
