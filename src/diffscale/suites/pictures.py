"""A folder of pictures: which there are, what they were asked to show, and their pixels in batches."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.progress import Counter, silent
from diffscale.engine.batching import MicroBatch
from diffscale.registry import plugins
from diffscale.suites.prompts import read_rows, text_in
from diffscale.types import World

SUFFIXES: Final = (".jpeg", ".jpg", ".png", ".webp")
METADATA: Final = "metadata.jsonl"
_SAMPLES: Final = "samples.jsonl"
_RESULT: Final = "result.json"
_TEXT: Final = ("text", "prompt", "caption")


@dataclass(frozen=True)
class Pictures:
    """Pictures of a folder, sorted by path, and the prompt of each, None where none is known."""

    folder: Path
    paths: tuple[Path, ...]
    prompts: tuple[str | None, ...]

    @classmethod
    def open(cls, folder: Path, prompt_file: Path | None = None) -> Pictures:
        """All png, jpg and webp pictures in `folder` and below it; hidden ones are left out.

        Prompts are from `prompt_file` (see `_read_prompts`), else from `metadata.jsonl` in the folder, else from what
        `diffscale bench` or `generate` wrote, of whose folders only what was found counts, not the plots. Raises
        DiffscaleError if there is no picture, or a file cannot be read.
        """
        if not folder.is_dir():
            raise DiffscaleError(f"There is no folder {folder}: give one with pictures.")
        folder = folder.resolve()  # what lies above "." is looked at too
        described = (folder / METADATA).is_file()
        known = {} if described else _bench_prompts(folder) or _generated_prompts(folder)
        paths = sorted(known or (path for path in folder.rglob("*") if _is_picture(path, folder)))
        if not paths:
            raise DiffscaleError(f"There are no pictures in {folder}: it needs {', '.join(SUFFIXES)} files.")
        if prompt_file is not None:
            known = _read_prompts(folder, prompt_file, paths)
        elif described:
            known = _read_prompts(folder, folder / METADATA)
        return cls(folder, tuple(paths), tuple(known.get(path) for path in paths))

    def __len__(self) -> int:
        return len(self.paths)

    @cached_property
    def sizes(self) -> list[tuple[int, int]]:
        """Width and height of each; raises DiffscaleError for a file that is no picture."""
        return [_read_picture(path, lambda picture: picture.size) for path in self.paths]

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
                f"give --prompts, or {METADATA} in the folder with `file_name` and `text`."
            )
        return [prompt for prompt in self.prompts if prompt is not None]

    def load(self, indices: Sequence[int]) -> Tensor:
        """Pictures of one size: float32 [b, 3, H, W] in [0, 1]; raises DiffscaleError for one that is broken."""
        with ThreadPoolExecutor() as pool:
            found = list(pool.map(lambda i: _read_picture(self.paths[i], pixels), indices))
        return torch.from_numpy(np.stack(found)).permute(0, 3, 1, 2).float() / 255

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
            listed = {home / str(row["image"]): str(row["prompt"]) for row in rows}
            return {path: prompt for path, prompt in listed.items() if path.is_relative_to(folder)}
    return {}


def _generated_prompts(folder: Path) -> dict[Path, str]:
    """The best pictures of runs of `diffscale generate` in `folder` or below it, and their prompts."""
    found = {}
    for result in folder.rglob(_RESULT):
        if (best := result.with_name("best.png")).is_file():
            unreadable = f"The prompt in {result} cannot be read: remove it, and give --prompts ({{why}})."
            with explained(unreadable, OSError, ValueError, TypeError, KeyError):
                found[best] = str(json.loads(result.read_text(encoding="utf-8"))["prompt"])
    return found


def _read_prompts(folder: Path, file: Path, paths: Sequence[Path] = ()) -> dict[Path, str]:
    """Prompts by picture from rows of `file_name` (relative to `folder`) and `text`, the imagefolder layout of Hugging
    Face; `prompt` or `caption` may stand for `text`, and rows without one say nothing.

    Where no row has `file_name`, they are of the pictures `paths` in their order, if these are given. Raises
    DiffscaleError for a wrong number of such rows.
    """
    rows = read_rows(file)
    if paths and not any("file_name" in row for row in rows):
        if len(rows) != len(paths):
            raise DiffscaleError(
                f"{file} has {len(rows)} prompts for {len(paths)} pictures: give one a line, in the order of the "
                "sorted file names, or JSONL with `file_name` and `text`."
            )
        rows = [row | {"file_name": path} for row, path in zip(rows, paths, strict=True)]
    texts = {folder / str(row["file_name"]): text_in(row, _TEXT) for row in rows if "file_name" in row}
    return {path: text for path, text in texts.items() if text}


def pixels(picture: Image.Image) -> Any:
    """The picture as uint8 [H, W, 3]; raises ValueError for modes of more than 8 bits, which would be cut off."""
    if picture.mode.startswith(("I", "F")):
        raise ValueError("it has more than 8 bits a channel")
    return np.asarray(picture.convert("RGB"))


def _is_picture(path: Path, folder: Path) -> bool:
    hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
    return path.suffix.lower() in SUFFIXES and not hidden and path.is_file()


def _digest(path: Path) -> bytes:
    with explained(_unreadable(path), OSError):
        return hashlib.sha256(path.read_bytes()).digest()


def _read_picture(path: Path, look: Callable[[Image.Image], Any]) -> Any:
    kinds = OSError, SyntaxError, ValueError, Image.DecompressionBombError
    with explained(_unreadable(path), *kinds), Image.open(path) as picture:
        return look(picture)


def _unreadable(path: Path) -> str:
    return f"The picture {path} cannot be read: mend or remove it ({{why}})."
