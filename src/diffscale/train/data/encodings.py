"""Latents and text embeddings, made once and kept: another model, view, picture or prompt never meets a stale one."""

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import array_digest
from diffscale._util.pixels import READING
from diffscale._util.progress import Progress, silent
from diffscale.engine import noise
from diffscale.train.data.dataset import Dataset
from diffscale.train.data.store import Made, Store
from diffscale.verifiers.preprocess import resize

_digest = partial(array_digest, digits=32)
Value = TypeVar("Value")


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
    store = Store(folder / f"latents-{_digest(fingerprint, str(framing.resolution), READING)[:16]}")
    rows = range(len(dataset))
    with ThreadPoolExecutor() as pool:
        # In parts: a pool holds all that it is given.
        parts = (rows[i : i + 4096] for i in range(0, len(rows), 4096))
        contents = [one for part in parts for one in pool.map(partial(_unless_broken, dataset.content), part)]
        # The place of the crop is part of the key, so the pictures of a pair share it and nothing else does.
        keys = [
            [[_digest(one, framing.name(content, mirrored)) for one in content] for mirrored in framing.views]
            if content
            else []
            for content in contents
        ]
        # One place for every picture in every view.
        places = [
            (key, row, side, view)
            for row in rows
            for view, some in enumerate(keys[row])
            for side, key in enumerate(some)
        ]

        def framed(number: int) -> tuple[Tensor, Tensor]:
            _, row, side, view = places[number]
            mirrored, content = framing.views[view], contents[row]
            assert content is not None
            return framing.frame(dataset.picture(row, side), framing.place(content, mirrored), mirrored)

        def make(numbers: list[int]) -> Made:
            each = zip(numbers, pool.map(partial(_unless_broken, framed), numbers), strict=True)
            found = {i: one for i, one in each if one is not None}
            if not found:
                return [], {}
            made = encode_pictures(torch.stack([picture for picture, _ in found.values()])).detach().cpu()
            _check(made, found, lambda i: f"the picture of row {places[i][1]} ({dataset.prompts[places[i][1]][:60]!r})")
            return list(found), {"latents": made, "sizes": torch.stack([sizes for _, sizes in found.values()])}

        store.fill([key for key, *_ in places], make, batch_size, partial(progress, "pictures encoded"))
    whole = [row for row in rows if keys[row] and all(key in store for some in keys[row] for key in some)]
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
