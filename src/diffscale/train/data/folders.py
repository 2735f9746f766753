"""Local folders: pictures with captions, and preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.suites.pictures import METADATA, Pictures
from diffscale.suites.prompts import read_rows
from diffscale.train.data.dataset import Dataset, preference_pairs

_SIDES: Final = ("jpg_0", "jpg_1")


def captioned_pictures(folder: Path) -> Dataset:
    """An image-caption folder, as `diffscale evaluate` reads it: `metadata.jsonl` with `file_name` and `text`.

    Raises DiffscaleError if there is no picture, one has no caption, or a file cannot be read.
    """
    found = Pictures.open(folder)
    texts = found.prompted("training")
    return Dataset(str(folder), texts, 1, lambda row, _: found.paths[row].read_bytes(), range(len(texts)))


def has_pairs(folder: Path) -> bool:
    """Whether the lines of `metadata.jsonl` name two pictures each."""
    return (folder / METADATA).is_file() and any(_names(row) is not None for row in read_rows(folder / METADATA)[:1])


def pairs(folder: Path) -> Dataset:
    """Preference pairs in the layout of Pick-a-Pic, the chosen picture first; see `preference_pairs`.

    A line of `metadata.jsonl` has `caption`, `label_0` and two file names, `jpg_0_file_name` and `jpg_1_file_name`, as
    the imagefolder layout of Hugging Face has several pictures a row, or plainly `jpg_0` and `jpg_1`. Raises
    DiffscaleError for a line that lacks something.
    """
    lines = read_rows(folder / METADATA)
    files: list[tuple[str, str]] = []
    for number, row in enumerate(lines, 1):
        names = _names(row)
        if names is None or row.get("label_0") is None or not isinstance(row.get("caption"), str):
            raise DiffscaleError(
                f"Line {number} of {folder / METADATA} must have jpg_0_file_name, jpg_1_file_name, label_0 and caption."
            )
        files.append(names)
    captions, labels = ([row[name] for row in lines] for name in ("caption", "label_0"))
    return preference_pairs(str(folder), captions, labels, lambda row, side: (folder / files[row][side]).read_bytes())


def _names(row: dict[str, Any]) -> tuple[str, str] | None:
    first, second = (row.get(f"{side}_file_name", row.get(side)) for side in _SIDES)
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None
