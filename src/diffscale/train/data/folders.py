"""Local folders: pictures with captions, and preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.suites.pictures import METADATA, Pictures
from diffscale.suites.prompts import read_rows
from diffscale.train.data.dataset import Dataset

_SIDES: Final = ("jpg_0", "jpg_1")


def captioned(folder: Path) -> Dataset:
    """An image-caption folder, as `diffscale evaluate` reads it: `metadata.jsonl` with `file_name` and `text`.

    Raises DiffscaleError if there is no picture, one has no caption, or a file cannot be read.
    """
    found = Pictures.open(folder)
    texts = found.prompted("training")
    return Dataset(str(folder), texts, 1, lambda where, _: found.paths[where].read_bytes(), range(len(texts)))


def has_pairs(folder: Path) -> bool:
    """Whether the lines of `metadata.jsonl` name two pictures each."""
    return (folder / METADATA).is_file() and any(_names(row) is not None for row in read_rows(folder / METADATA)[:1])


def pairs(folder: Path) -> Dataset:
    """Preference pairs in the layout of Pick-a-Pic (Kirstain et al. 2023), the chosen picture first.

    A line of `metadata.jsonl` has `caption`, `label_0` (1 if the first picture was chosen, 0 if the second, 0.5 for a
    tie) and two file names, `jpg_0_file_name` and `jpg_1_file_name`, as the imagefolder layout of Hugging Face has
    several pictures a row, or plainly `jpg_0` and `jpg_1`. Ties are left out. Raises DiffscaleError for a line that
    lacks something.
    """
    prompts: list[str] = []
    files: list[tuple[Path, Path]] = []
    lines = read_rows(folder / METADATA)
    for number, row in enumerate(lines, 1):
        names, label = _names(row), row.get("label_0")
        if names is None or label is None or not isinstance(row.get("caption"), str):
            raise DiffscaleError(
                f"Line {number} of {folder / METADATA} must have jpg_0_file_name, jpg_1_file_name, label_0 and caption."
            )
        first = chosen(label)
        if first is not None:
            prompts.append(row["caption"])
            files.append((folder / names[first], folder / names[1 - first]))
    return told_of_ties(
        Dataset(str(folder), prompts, 2, lambda where, side: files[where][side].read_bytes(), range(len(files))),
        len(lines),
    )


def chosen(label_0: Any) -> int | None:
    """Which of the two pictures was chosen; None for a tie or where nobody chose."""
    return {1.0: 0, 0.0: 1}.get(label_0) if isinstance(label_0, int | float) else None


def told_of_ties(dataset: Dataset, pairs: int) -> Dataset:
    """`dataset` with a note of how many of `pairs` were ties; raises DiffscaleError if all were."""
    if not len(dataset):
        raise DiffscaleError(f"{dataset.source} has no preference pairs with a choice: label_0 must be 0 or 1.")
    if len(dataset) == pairs:
        return dataset
    note = f"{pairs - len(dataset)} of {pairs} pairs of {dataset.source} are ties and are left out."
    return dataset.select(range(len(dataset)), note)


def _names(row: dict[str, Any]) -> tuple[str, str] | None:
    first, second = (row.get(f"{side}_file_name", row.get(side)) for side in _SIDES)
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None
