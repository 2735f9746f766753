"""Latents and text embeddings, made once and kept: another model, view, picture or prompt never meets a stale one.

They are kept by key, in shards of safetensors: what is written is whole, and stays when a run dies.
"""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Final, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import replacing
from diffscale._util.fingerprints import array_digest
from diffscale._util.progress import Counter, Progress, silent
from diffscale.engine import noise
from diffscale.engine.batching import MicroBatch
from diffscale.train.data.dataset import Dataset
from diffscale.verifiers.preprocess import resize

_digest = partial(array_digest, digits=32)
Value = TypeVar("Value")

SHARD_ROWS: Final = 1024
SHARD_BYTES: Final = 2**26
"""A shard is written as soon as it has this many entries or bytes."""

Made = tuple[list[int], dict[str, Tensor]]
"""The numbers of the entries that were made, and their tensors, one row each."""


class Store:
    """Entries by key in the shards of `folder`; every entry has the same named tensors, of the same shapes.

    A reader sees a shard whole or not at all; several processes, on several machines, may write to one folder. A shard
    that cannot be read counts as not there. Reading maps files into memory.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._where: dict[str, tuple[Path, int]] = {}
        self._known: set[Path] = set()
        self._open = lru_cache(maxsize=256)(lambda path: safe_open(path, "pt"))
        with suppress(OSError):
            # What killed runs began; a shard takes no hour to write.
            for path in folder.glob(".*.new*"):
                if time.time() - path.stat().st_mtime > 3600:
                    path.unlink()
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that others have written since."""
        for path in sorted(set(self.folder.glob("[!.]*.safetensors")) - self._known):
            with suppress(OSError, SafetensorError, ValueError, KeyError, TypeError):
                with safe_open(path, "pt") as shard:
                    keys = json.loads(shard.metadata()["keys"])
                self._add(path, keys)

    def __contains__(self, key: str) -> bool:
        return key in self._where

    def __len__(self) -> int:
        return len(self._where)

    def fill(
        self,
        keys: Sequence[str],
        make: Callable[[list[int]], Made],
        batch_size: int | None = None,
        progress: Counter = silent,
        shard_rows: int = SHARD_ROWS,
    ) -> None:
        """Make and write the entries of `keys` that are missing, shard by shard.

        `make(numbers)` gets places in `keys` and gives those that it could make, in order, with their tensors [b, ...].
        `batch_size`: most at once; found by itself if None. `progress(done, total)` counts the missing ones. Raises
        DiffscaleError if a shard cannot be written, and then all that was written before stays.
        """
        missing = sorted({key: i for i, key in reversed(list(enumerate(keys))) if key not in self._where}.values())
        names, waiting = list[str](), list[dict[str, Tensor]]()
        for part, (numbers, tensors) in MicroBatch(batch_size).map(lambda part: make(missing[part]), len(missing)):
            names += [keys[number] for number in numbers]
            waiting += [tensors] if numbers else []
            if len(names) >= shard_rows or sum(t.nbytes for one in waiting for t in one.values()) >= SHARD_BYTES:
                self._write_shard(names, waiting)
                names, waiting = [], []
            progress(part.stop, len(missing))
        self._write_shard(names, waiting)

    def read(self, keys: Sequence[str]) -> dict[str, Tensor]:
        """The tensors of `keys`, by name, a row each, on the CPU; raises KeyError for a key that is not there."""
        rows = [self._read_row(*self._where[key]) for key in keys]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]} if rows else {}

    def _read_row(self, path: Path, row: int) -> dict[str, Tensor]:
        lost = f"{path} cannot be read any more: give the same command again ({{why}})."
        with explained(lost, OSError, SafetensorError):
            shard = self._open(path)
            return {name: shard.get_slice(name)[row : row + 1] for name in shard.keys()}  # noqa: SIM118

    def _write_shard(self, names: list[str], parts: list[dict[str, Tensor]]) -> None:
        if not names:
            return
        there = [self.read([next(iter(self._where))])] if self._where else []
        shapes = [{name: tuple(t.shape[1:]) for name, t in part.items()} for part in (*there, *parts)]
        if other := [one for one in shapes if one != shapes[0]]:
            raise DiffscaleError(
                f"What is cached must have one shape, but {other[0]} came after {shapes[0]}: pad all prompts to one "
                "length, and encode all pictures at one resolution."
            )
        tensors = {name: torch.cat([part[name] for part in parts]).contiguous() for name in parts[0]}
        # Of the same entries the same name: what two processes write at once is one shard.
        path = self.folder / f"{array_digest(*names)}.safetensors"
        try:
            with replacing(path) as fresh:
                fresh.write_bytes(save(tensors, {"keys": json.dumps(names)}))
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            raise DiffscaleError(
                f"{'The disk is full' if full else 'The cache cannot be written'}: {self.folder} keeps the {len(self)} "
                f"entries made so far, and the same command goes on from there once "
                f"{'there is room' if full else 'that is mended'} ({error})."
            ) from error
        self._add(path, names)

    def _add(self, path: Path, keys: list[str]) -> None:
        self._known.add(path)
        self._where |= {key: (path, row) for row, key in enumerate(keys)}


@dataclass(frozen=True)
class Framing:
    """How pictures become square, as `--resolution`, `--center_crop` and `--random_flip` say.

    The shorter edge becomes `resolution`, antialiased; a square is cut from the middle, or at a place that `seed` and
    the picture decide. With `random_flip` there is a second view of every picture: mirrored, and cut at another place.
    A picture's crops do not change from epoch to epoch, since its latents are made once.
    """

    resolution: int
    center_crop: bool = False
    random_flip: bool = False
    seed: int = 0

    @property
    def views(self) -> tuple[bool, ...]:
        """Whether each view is mirrored."""
        return (False, True) if self.random_flip else (False,)

    def place(self, content: tuple[str, ...], mirrored: bool) -> tuple[float, float] | None:
        """Where the pictures of a row are cut, as shares of the free room above and to the left; None: the middle.

        `content`: the digests of all its pictures, so that the two of a pair are cut alike.
        """
        if self.center_crop:
            return None
        root = noise.root(self.seed)
        keys = [noise.fold(root, "crop", axis, int(mirrored), *content) for axis in ("down", "right")]
        down, right = noise.uniform(torch.tensor(keys)).tolist()
        return down, right

    def name(self, content: tuple[str, ...], mirrored: bool) -> str:
        """A name that no other view of the same picture has."""
        return f"{self.resolution} {self.place(content, mirrored)} {mirrored}"

    def frame(self, picture: Tensor, place: tuple[float, float] | None, mirrored: bool) -> tuple[Tensor, Tensor]:
        """A picture uint8 [3, H, W] as float32 [3, resolution, resolution] in [0, 1], and its sizes.

        The sizes, int64 [6], are what SDXL is told as time ids: height and width before, the crop's top and left edge
        in the resized picture, height and width after (Podell et al. 2023, section 2.2).
        """
        side, (height, width) = self.resolution, picture.shape[-2:]
        # The longer edge is cut off to whole pixels, as PIL-based processors do.
        size = (side, int(side * width / height)) if height <= width else (int(side * height / width), side)
        found = resize(picture[None].float() / 255, *size)[0]
        if mirrored:
            found = found.flip(-1)
        room = size[0] - side, size[1] - side
        top, left = (
            (free // 2 for free in room)
            if place is None
            else (min(int(share * (free + 1)), free) for share, free in zip(place, room, strict=True))
        )
        sizes = torch.tensor([height, width, top, left, side, side])
        return found[:, top : top + side, left : left + side].contiguous(), sizes


class Latents:
    """The latents of all rows of a data set, in every view; `keys`: of the entries, by row, view and picture."""

    def __init__(self, store: Store, keys: list[list[list[str]]], views: tuple[bool, ...]) -> None:
        self._store, self._keys, self.views = store, keys, views

    def __len__(self) -> int:
        return len(self._keys)

    def read(self, rows: Sequence[int], mirrored: Sequence[bool]) -> tuple[Tensor, Tensor]:
        """Latents [B, pictures, ...] and sizes int64 [B, pictures, 6] (see `Framing.frame`) of `rows`, on the CPU.

        `mirrored`: for each row, whether in the mirrored view, which there is with `random_flip` alone.
        """
        chosen = [self._keys[row][self.views.index(flip)] for row, flip in zip(rows, mirrored, strict=True)]
        found = self._store.read([key for keys in chosen for key in keys])
        latents, sizes = (t.unflatten(0, (len(chosen), -1)) for t in (found["latents"], found["sizes"]))
        return latents, sizes


class Embeddings:
    """The text embeddings of prompts."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def read(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """The embeddings of `prompts`, by name, a row each, on the CPU."""
        return self._store.read([_digest(prompt) for prompt in prompts])


@torch.no_grad()
def encode_dataset(
    dataset: Dataset,
    encode_pictures: Callable[[Tensor], Tensor],
    fingerprint: str,
    framing: Framing,
    folder: Path,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> tuple[Dataset, Latents]:
    """Latents of all pictures of `dataset`, from `folder` where they are there; and the rows that have them.

    `encode_pictures` takes float32 [B, 3, H, W] in [0, 1] and gives the latents that are trained on [B, ...]; it runs
    where its network is, and `fingerprint` (see `fingerprints.network_digest`) tells this network, and how it is used,
    from all others. Pictures that cannot be read are left out with a note. `batch_size`: most pictures at once; found
    by itself if None. With several processes one should do this first and the others after it; they find everything
    made. Raises DiffscaleError if no picture is left, for latents that are not finite, and if the disk is full.
    """
    store = Store(folder / f"latents-{_digest(fingerprint, str(framing.resolution))[:16]}")
    rows = range(len(dataset))
    with ThreadPoolExecutor() as pool:
        # In parts: a pool holds all that it is given.
        parts = (rows[i : i + 4096] for i in range(0, len(rows), 4096))
        contents = [one or () for part in parts for one in pool.map(partial(_unless_broken, dataset.content), part)]
        # The place of the crop is part of the key, so the pictures of a pair share it and nothing else does.
        keys = [
            [[_digest(one, framing.name(content, flip)) for one in content] for flip in framing.views]
            for content in contents
        ]
        # One place for every picture in every view.
        places = [
            (key, row, side, flip)
            for row in rows
            for flip, some in zip(framing.views, keys[row], strict=True)
            for side, key in enumerate(some)
        ]

        def framed(number: int) -> tuple[Tensor, Tensor]:
            _, row, side, flip = places[number]
            return framing.frame(dataset.picture(row, side), framing.place(contents[row], flip), flip)

        def make(numbers: list[int]) -> Made:
            each = zip(numbers, pool.map(partial(_unless_broken, framed), numbers), strict=True)
            found = {i: one for i, one in each if one is not None}
            if not found:
                return [], {}
            made = encode_pictures(torch.stack([picture for picture, _ in found.values()])).detach().cpu()
            _check(made, found, lambda i: f"the picture of row {places[i][1]} ({dataset.prompts[places[i][1]][:60]!r})")
            return list(found), {"latents": made, "sizes": torch.stack([sizes for _, sizes in found.values()])}

        store.fill([key for key, *_ in places], make, batch_size, partial(progress, "pictures encoded"))
    whole = [row for row in rows if contents[row] and all(key in store for some in keys[row] for key in some)]
    if not whole:
        raise DiffscaleError(f"None of the {len(dataset)} pictures of {dataset.source} can be read: give other data.")
    broken = sorted(set(rows) - set(whole))
    notes = [f"{len(broken)} of {len(dataset)} rows of {dataset.source} have pictures that cannot be read and are left "
             f"out (first: {dataset.prompts[broken[0]][:60]!r})."] if broken else []  # fmt: skip
    return dataset.select(whole, *notes), Latents(store, [keys[row] for row in whole], framing.views)


@torch.no_grad()
def encode_texts(
    prompts: Iterable[str],
    encode_prompts: Callable[[list[str]], dict[str, Tensor]],
    fingerprint: str,
    folder: Path,
    batch_size: int | None = None,
    progress: Progress = silent,
) -> Embeddings:
    """Embeddings of all different `prompts` and of the empty one, from `folder` where they are there.

    `encode_prompts` gives named tensors with one row a prompt, of the same shapes for every prompt (all padded to one
    length). `fingerprint` tells the text encoders, and the length, from all others. The rest as in `encode_dataset`.
    """
    store = Store(folder / f"texts-{_digest(fingerprint)[:16]}")
    texts = list(dict.fromkeys(["", *prompts]))

    def make(numbers: list[int]) -> Made:
        made = {name: t.detach().cpu() for name, t in encode_prompts([texts[i] for i in numbers]).items()}
        for tensor in made.values():
            _check(tensor, numbers, lambda i: f"the prompt {texts[i][:60]!r}")
        return numbers, made

    store.fill([_digest(text) for text in texts], make, batch_size, partial(progress, "prompts encoded"))
    return Embeddings(store)


def _unless_broken(read: Callable[[int], Value], number: int) -> Value | None:
    """Return what `read` gives for a row or place, None if a picture there cannot be read."""
    try:
        return read(number)
    except DiffscaleError:
        return None


def _check(made: Tensor, numbers: Iterable[int], named: Callable[[int], str]) -> None:
    numbers = list(numbers)
    if made.ndim == 0 or len(made) != len(numbers):
        raise DiffscaleError(f"An encoder must give one row for each of {len(numbers)}, not a {list(made.shape)}.")
    if made.is_floating_point() and not (finite := made.isfinite().flatten(1).all(1)).all():
        bad = numbers[int((~finite).nonzero()[0])]
        raise DiffscaleError(
            f"The encoder makes numbers that are not finite of {named(bad)}: run it in float32 (SDXL's own VAE "
            "overflows in float16)."
        )
