"""What a search on its way leaves in its run folder, so that any page can watch it: progress, and candidates.

It is written by the process that searches and read by whoever watches. It is for watching alone: what was paid for is
in the journal, and what was found in `result.json`.
"""

import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from torch import Tensor

from diffscale._util.files import read_text, split_lines
from diffscale.report import pictures
from diffscale.report.text import drawing

_FOLDER: Final = "live"
_PAUSE: Final = 0.3  # seconds between two lines of progress in which the best score is the same
_SMALL: Final = 128  # pixels a side up to which a picture is kept without loss


@dataclass(frozen=True)
class Point:
    """Where a search was: `nfe` spent of `total`, and the best score so far, None before the first."""

    nfe: int
    total: int
    best: float | None


@dataclass(frozen=True)
class Shown:
    """A finished candidate: what the search had spent by then, its score and its picture.

    `score`: of several components, their scores; None for each that the verifier did not give.
    """

    nfe: int
    score: list[float | None]
    picture: Path


class Feed:
    """Writes to the run folder `folder` what `bench.generate.run` tells, as its `progress` and one of its observers.

    Whatever fails here is a warning, since no search is to be lost by being watched.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / _FOLDER
        (self.folder / "candidates").mkdir(parents=True, exist_ok=True)
        self._told: tuple[float, float | None] = (-math.inf, None)

    def progress(self, what: str, done: int, total: int, **figures: Any) -> None:
        """Append a point of the curve; not every one, where the best score stays the same."""
        now, best = time.monotonic(), _finite(figures.get("best", -math.inf))
        if now - self._told[0] < _PAUSE and best == self._told[1] and done < total:
            return
        self._told = now, best
        with drawing("The curve of the page"):
            self._append("progress.jsonl", {"nfe": done, "total": total, "best": best})

    def observe(self, search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        """Append finished candidates; see `engine.results.Observer`."""
        with drawing("The candidates of the page"):
            for key, score, image, spent in zip(keys.tolist(), scores.tolist(), images, nfe, strict=True):
                picture = pictures.shrink(pictures.to_pil(image))
                name = f"{spent}-{key & (1 << 64) - 1:016x}.webp"
                picture.save(self.folder / "candidates" / name, quality=90, lossless=max(picture.size) <= _SMALL)
                components = [_finite(each) for each in (score if isinstance(score, list) else [score])]
                self._append("candidates.jsonl", {"nfe": spent, "score": components, "picture": name})

    def _append(self, name: str, line: dict[str, Any]) -> None:
        # The line end comes first, so that a line which a kill has cut off spoils no other.
        with (self.folder / name).open("a", encoding="utf-8") as file:
            file.write("\n" + json.dumps(line))


def log_file(folder: Path) -> Path:
    """Where the process that searches writes what it says."""
    return folder / _FOLDER / "log.txt"


def stamp(folder: Path) -> tuple[float, ...]:
    """Changes whenever something was added to the feed of a run folder."""
    names = ("progress.jsonl", "candidates.jsonl", "log.txt")
    return tuple(_size(folder / _FOLDER / name) for name in names)


def points(folder: Path) -> list[Point]:
    """The curve so far, by NFE; of what was computed again, after a kill, the last is taken."""
    found: dict[int, Point] = {}
    for line in _lines(folder, "progress.jsonl"):
        point = Point(line["nfe"], line["total"], line["best"])
        found[point.nfe] = point
    return sorted(found.values(), key=lambda point: point.nfe)


def candidates(folder: Path) -> list[Shown]:
    """Finished candidates in the order in which they were, each once."""
    home = folder / _FOLDER / "candidates"
    # By their file names, which are those of what was computed again, after a kill.
    found = {line["picture"]: Shown(line["nfe"], line["score"], home / line["picture"]) for line in
             _lines(folder, "candidates.jsonl")}  # fmt: skip
    return sorted(found.values(), key=lambda shown: shown.nfe)


def _lines(folder: Path, name: str) -> Iterator[dict[str, Any]]:
    """The lines that read back; one may be cut off, or on its way."""
    try:
        text = read_text(folder / _FOLDER / name)
    except (OSError, UnicodeDecodeError):
        return
    for line in split_lines(text):
        try:
            yield json.loads(line)
        except ValueError:
            continue


def _size(path: Path) -> float:
    try:
        status = path.stat()
    except OSError:
        return -1.0
    return status.st_size + status.st_mtime


def _finite(score: float) -> float | None:
    return score if math.isfinite(score) else None
