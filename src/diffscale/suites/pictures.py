"""A folder of pictures: which there are, what they were asked to show, and their pixels in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, cast

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import inside, read_text
from diffscale._util.pixels import SUFFIXES, as_float, pixels, read_picture, upright_size
from diffscale._util.progress import Counter, silent
from diffscale.engine.batching import MicroBatch
from diffscale.registry import plugins
from diffscale.suites.prompts import read_rows, text_in
from diffscale.types import World

METADATA: Final = ("metadata.jsonl", "metadata.csv")
"""What says of the pictures in a folder what they show, as Hugging Face's imagefolder has it; the first one counts."""
_SAMPLES: Final = "samples.jsonl"
_RESULT: Final = "result.json"
_TEXT: Final = ("text", "prompt", "caption")
_OTHER: Final = (".avif", ".bmp", ".gif", ".heic", ".heif", ".jfif", ".jp2", ".jxl", ".ppm", ".tga", ".tif", ".tiff")
"""Names of pictures that are not read end so."""


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder, sorted by path, and the prompt of each, None where none is known.

    `notes` are sentences for the user about what was left out.
    """

    folder: Path
    paths: tuple[Path, ...]
    prompts: tuple[str | None, ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def open(cls, folder: Path, prompt_file: Path | None = None) -> Pictures:
        """All png, jpg and webp pictures in `folder` and below it; hidden ones are left out.

        Prompts are from `prompt_file` (see `_read_prompts`), else from METADATA in the folder, else from what
        `diffscale bench` or `generate` wrote, of whose folders only what was found counts, not the plots. Raises
        DiffscaleError if there is no picture, a file cannot be read, or one names a picture outside of the folder.
        """
        if not folder.is_dir():
            raise DiffscaleError(f"There is no folder {folder}: give one with pictures.")
        folder = folder.resolve()  # what lies above "." is looked at too
        described = metadata(folder)
        known = {} if described else _bench_prompts(folder) or _generated_prompts(folder)
        paths, others = sorted(known), []
        if not known:
            every = sorted(path for path in folder.rglob("*") if _is_shown(path, folder))
            paths, others = ([p for p in every if p.suffix.lower() in suffixes] for suffixes in (SUFFIXES, _OTHER))
        if not paths:
            raise DiffscaleError(
                f"There are no pictures in {folder}: it needs {', '.join(SUFFIXES)} files.{_left_out(others, folder)}"
            )
        notes = []
        if file := prompt_file or described:
            known = _read_prompts(folder, file, paths if prompt_file else ())
            if missing := sorted(known.keys() - {*paths}):
                notes.append(
                    f"{len(missing)} of the {len(known)} pictures that {file} describes are not there, or of a format "
                    f"that is not read, and are left out (first {missing[0].relative_to(folder)})."
                )
        notes.append(_left_out([path for path in others if path not in known], folder).strip())
        return cls(folder, tuple(paths), tuple(known.get(path) or None for path in paths), tuple(filter(None, notes)))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each; raises DiffscaleError for a file that is no picture."""
        return [read_picture(path, upright_size, _unreadable(path)) for path in self.paths]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the files' contents, in order: another picture, or another order, is another digest.

        Raises DiffscaleError for a file that cannot be read.
        """
        with ThreadPoolExecutor() as pool:
            each = list(pool.map(_digest, self.paths))
        return hashlib.sha256(b"".join(each)).hexdigest()

    @property
    def world(self) -> World | None:
        """The world that these may be pictures of: all are of its size, and its judge can read all of their prompts."""
        prompts = [prompt for prompt in self.prompts if prompt is not None]
        for world in plugins("worlds").values():
            if set(self.sizes) == {world.size} and None not in map(world.prompt_key, prompts):
                return cast(World, world)
        return None

    def prompted(self, who: str) -> list[str]:
        """All prompts; raises DiffscaleError if one is missing that `who` needs."""
        missing = [path for path, prompt in zip(self.paths, self.prompts, strict=True) if prompt is None]
        if missing:
            raise DiffscaleError(
                f"{len(missing)} of {len(self)} pictures have no prompt, which {who} needs (first {missing[0]}): "
                f"give --prompts, or {METADATA[0]} in the folder with `file_name` and `text`."
            )
        return [prompt for prompt in self.prompts if prompt is not None]

    def load(self, indices: Sequence[int]) -> Tensor:
        """Pictures of one size: float32 [b, 3, H, W] in [0, 1]; raises DiffscaleError for one that is broken."""
        with ThreadPoolExecutor() as pool:
            found = pool.map(
                lambda path: read_picture(path, pixels, _unreadable(path)), (self.paths[i] for i in indices)
            )
            return as_float(np.stack(list(found)))

    def map(
        self, work: Callable[[Tensor, list[int]], Tensor], batch_size: int | None = None, progress: Counter = silent
    ) -> Tensor:
        """`work(images [b, 3, H, W], their indices)` for all, in batches of one size: its rows, on the CPU, in order.

        `batch_size`: most pictures at once; found by itself if None. `progress(done, total)`: pictures so far.
        """
        groups: dict[tuple[int, int], list[int]] = {}
        for i, size in enumerate(self.sizes):
            groups.setdefault(size, []).append(i)
        micro = MicroBatch(batch_size)
        found: list[Tensor] = []
        order: list[int] = []
        for group in groups.values():
            for part, answer in micro.map(lambda s, g=group: work(self.load(g[s]), g[s]).cpu(), len(group)):  # type: ignore[misc]
                found.append(answer)
                order += group[part]
                progress(len(order), len(self))
        return torch.cat(found)[torch.tensor(order).argsort()]


def _bench_prompts(folder: Path) -> dict[Path, str]:
    """Pictures in `folder` and their prompts, as the `samples.jsonl` of `diffscale bench` has them.

    `folder` is that of the bench or one below it, such as that of one cell; empty if it is no such folder.
    """
    # A bench keeps the pictures of a cell in pictures/<cell>.
    for home in (folder, folder.parent, folder.parent.parent):
        if (home / _SAMPLES).is_file():
            rows = [row for row in read_rows(home / _SAMPLES) if "image" in row and "prompt" in row]
            listed = {inside(home, str(row["image"]), home / _SAMPLES): str(row["prompt"]) for row in rows}
            return {path: prompt for path, prompt in listed.items() if path.is_relative_to(folder)}
    return {}


def _generated_prompts(folder: Path) -> dict[Path, str]:
    """The best pictures of runs of `diffscale generate` in `folder` or below it, and their prompts."""
    found = {}
    for result in folder.rglob(_RESULT):
        if (best := result.with_name("best.png")).is_file():
            unreadable = f"The prompt in {result} cannot be read: remove it, and give --prompts ({{why}})."
            with explained(unreadable, OSError, ValueError, TypeError, KeyError, RecursionError):
                found[best] = str(json.loads(read_text(result))["prompt"])
    return found


def metadata(folder: Path) -> Path | None:
    """The file in `folder` that describes its pictures, None where there is none."""
    return next((folder / name for name in METADATA if (folder / name).is_file()), None)


def _read_prompts(folder: Path, file: Path, paths: Sequence[Path] = ()) -> dict[Path, str]:
    """Prompts by picture from rows of `file_name` (relative to `folder`) and `text`, the imagefolder layout of Hugging
    Face; `prompt` or `caption` may stand for `text`, and rows without one have an empty text.

    Where no row has `file_name`, they are of the pictures `paths` in their order, if these are given. Raises
    DiffscaleError for a wrong number of such rows, and for a `file_name` outside of `folder`.
    """
    rows = read_rows(file)
    if paths and not any("file_name" in row for row in rows):
        if len(rows) != len(paths):
            raise DiffscaleError(
                f"{file} has {len(rows)} prompts for {len(paths)} pictures: give one a line, in the order of the "
                "sorted file names, or JSONL with `file_name` and `text`."
            )
        rows = [row | {"file_name": path} for row, path in zip(rows, paths, strict=True)]
    named = [row for row in rows if row.get("file_name")]
    return {inside(folder, str(row["file_name"]), file): text_in(row, _TEXT) for row in named}


def _left_out(others: Sequence[Path], folder: Path) -> str:
    """A sentence that tells of `others`, pictures that are not read; empty where there are none."""
    if not others:
        return ""
    return (
        f" {len(others)} files are pictures of formats that are not read and are left out (first "
        f"{others[0].relative_to(folder)}): make them png, jpg or webp."
    )


def _is_shown(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return not hidden and path.is_file()


def _digest(path: Path) -> bytes:
    with explained(_unreadable(path), OSError):
        return hashlib.sha256(path.read_bytes()).digest()


def _unreadable(path: Path) -> str:
    return f"The picture {path} cannot be read: mend or remove it ({{why}})."
