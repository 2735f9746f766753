"""Run folders as the page shows them: which there are, and how one stands, read from its files alone."""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Final

from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale._util.files import is_locked, read_json, read_text, split_lines
from diffscale.ui import feed
from diffscale.ui.feed import Point, Shown

_DEPTH: Final = 4  # folders below a root in which runs are looked for
_FILES: Final = ("config.yaml", "report.html")
"""A folder with one of these is a run, of whatever command."""


@dataclass(frozen=True)
class Run:
    """What is in one run folder; read when it is first asked for, so make a new one to see what has changed."""

    folder: Path

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What `config.yaml` says; empty if that cannot be read."""
        path = self.folder / "config.yaml"
        return _settings(path, _changed(path))

    @cached_property
    def searches_one_prompt(self) -> bool:
        """Whether it is of `diffscale generate`, so that it can be watched and go on; of others the report is shown."""
        return isinstance(self.settings.get("prompt"), str) and isinstance(self.settings.get("budget"), int)

    @cached_property
    def result(self) -> dict[str, Any] | None:
        """What `result.json` says; None if it is not there yet."""
        path = self.folder / "result.json"
        found = _result(path, _changed(path))
        return found if found is not None and self.searches_one_prompt and "best" in found else None

    @cached_property
    def computed_elsewhere(self) -> bool:
        """Whether a process, of this page or another, computes it now."""
        return is_locked(self.folder)

    @cached_property
    def points(self) -> list[Point]:
        """The curve of the verifier's best score; of a finished run as its result has it."""
        if self.result is not None:
            return [Point(nfe, self.result["nfe"], best) for nfe, best in self.result.get("trace", [])]
        told = feed.points(self.folder)
        if not self.candidates or any(len(each.score) != 1 for each in self.candidates):
            return told
        # Candidates tell more than progress, which comes once a micro-batch, and is of the chooser where there is one.
        chosen, best, merged = self.settings.get("choose") is not None, -math.inf, []
        events = [(each.nfe, each.score[0]) for each in self.candidates]
        events += [(point.nfe, None if chosen else point.best) for point in told]
        for nfe, score in sorted(events, key=lambda event: event[0]):
            best = best if score is None else max(best, score)
            merged.append(Point(nfe, self.settings["budget"], None if best == -math.inf else best))
        return merged

    @cached_property
    def candidates(self) -> list[Shown]:
        """Those that were finished while the page watched, in that order; none where another command computed it."""
        return feed.candidates(self.folder)

    @cached_property
    def log(self) -> str:
        """What the process that computed it has said."""
        try:
            return read_text(feed.log_file(self.folder))
        except (OSError, UnicodeDecodeError):
            return ""

    @property
    def error(self) -> str:
        """The sentence that the last process ended with, empty if it did not fail."""
        last = (split_lines(self.log) or [""])[-1]
        return last.removeprefix("error: ") if last.startswith("error: ") else ""

    @property
    def report(self) -> Path | None:
        """Its page, if there is one."""
        path = self.folder / "report.html"
        return path if path.is_file() else None

    @property
    def stamp(self) -> tuple[Any, ...]:
        """Changes whenever there is something new to show."""
        names = ("result.json", "scaling.png", "report.html")
        return *feed.stamp(self.folder), *((self.folder / name).exists() for name in names)


@lru_cache(1000)
def _settings(path: Path, changed: float) -> dict[str, Any]:
    try:
        return config.read(path)
    except DiffscaleError:
        return {}


@lru_cache(1000)
def _result(path: Path, changed: float) -> dict[str, Any] | None:
    return read_json(path)  # type: ignore[no-any-return]


def _changed(path: Path) -> float:
    """When it was last written; 0 where it is not there. What was read stays known by it: pages look every second."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0


def find_runs(roots: Sequence[Path]) -> list[Path]:
    """All run folders in `roots` and some floors below, the newest first."""
    found = {each for root in roots for each in _below(root, _DEPTH)}
    return sorted(found, key=lambda folder: (-_begun(folder), str(folder)))


def _below(folder: Path, depth: int) -> list[Path]:
    try:
        with os.scandir(folder) as entries:
            inside = list(entries)
    except OSError:
        return []
    if any(entry.name in _FILES for entry in inside):
        return [folder]
    if depth == 0:
        return []
    deeper = [entry.path for entry in inside if entry.is_dir(follow_symlinks=False) and not entry.name.startswith(".")]
    return [run for path in deeper for run in _below(Path(path), depth - 1)]


def _begun(folder: Path) -> float:
    """When its settings were written, which is done when it begins."""
    return next((when for name in _FILES if (when := _changed(folder / name))), 0.0)
