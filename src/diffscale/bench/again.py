"""A picture made again from what it says of its origin: by its key's own path, else by the search that led to it.

A candidate that a search sampled from the noise of its key, at once or step by step, is a function of the key: that
alone is sampled. One that descends from others, which the verifier chose, is had by the same search alone, which ends
as soon as it is there.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from diffscale._util.config import validated
from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.pixels import eight_bit
from diffscale._util.progress import Progress, silent
from diffscale._util.versions import versions
from diffscale.api import make_sampler
from diffscale.api.wordings import wordings_of
from diffscale.bench.config import GenerateConfig
from diffscale.bench.origin import PASSING, Origin, save_picture, sources_of
from diffscale.engine import noise
from diffscale.engine.batching import out_of_memory
from diffscale.engine.driver import run_searches
from diffscale.engine.kept_pictures import to_keep
from diffscale.engine.scoring import frame_strip
from diffscale.engine.task import Task
from diffscale.models.load import best_device, load_pipeline, settle_dtype
from diffscale.models.options import LoadOptions
from diffscale.searches import choose_search
from diffscale.types import ChecksPictures, Sampler, Wording
from diffscale.verifiers import load as load_verifier

CLOSE: Final = 1.0
"""Mean difference of values from 0 to 255 up to which two pictures are one but for rounding."""


@dataclass(frozen=True)
class Again:
    """A picture that was made again. `image`: uint8 [3, H, W]. `nfe`: what that took, `how` in words.

    `off`: the mean and the largest difference to the values (0 to 255) of what it was made from; None for one of
    another size.
    """

    image: Tensor
    nfe: int
    how: str
    off: tuple[float, int] | None

    @property
    def apart(self) -> tuple[float, int]:
        """`off`, and more than any other where it is None."""
        return self.off or (256.0, 256)

    @property
    def is_same(self) -> bool:
        """Whether it is the same to the bit."""
        return self.off == (0.0, 0)

    @property
    def is_close(self) -> bool:
        """Whether it is the same but for rounding."""
        return self.off is not None and self.off[0] <= CLOSE

    def save(self, path: Path, origin: Origin) -> None:
        """Write it to `path`, with its origin; raises DiffscaleError where that cannot be."""
        picture = Image.fromarray(self.image.permute(1, 2, 0).numpy(), "RGB")
        with explained(f"{path} cannot be written ({{why}}): make room, or choose another --output.", OSError):
            save_picture(picture, path, origin.model_copy(update={"versions": versions()}))


def settings_of(origin: Origin, given: GenerateConfig, path: Path) -> GenerateConfig:
    """The settings that the picture `path` was made with, and what of `given` says where it is made now.

    Raises DiffscaleError for what is given and would make another picture.
    """
    names = given.model_fields_set
    passing = {name: getattr(given, name) for name in names & {*PASSING, "batch_size"}}
    settings = validated(GenerateConfig, origin.settings | passing)
    for name in sorted(names - passing.keys()):
        stated, asked = getattr(settings, name), getattr(given, name)
        if asked != stated:
            raise DiffscaleError(
                f"{path} was made with {name} {stated!r}, not {asked!r}: leave that out to make it again, or leave "
                "--from out to make another."
            )
    return settle_dtype(settings.model, settings, None)


def make_again(
    origin: Origin, settings: GenerateConfig, pixels: NDArray[np.uint8], trusted: Sequence[str] = (),
    progress: Progress = silent,
) -> Again:  # fmt: skip
    """The picture of `origin`, whose pixels [H, W, 3] are `pixels`; it may be smaller there, as thumbnails are.

    `settings`: as of `settings_of`; `trusted`: names of those that the user gave too, and that may run code.
    `progress` is told of a search.

    Raises DiffscaleError where the model cannot be loaded, and where only code would give the picture that the user has
    not named.
    """
    wanted = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
    pipes: dict[str, Any] = {}

    def load(model: str, loading: LoadOptions) -> Any:
        pipes[model] = pipes.get(model) or load_pipeline(model, loading)
        return pipes[model]

    make = partial(
        make_sampler, settings.model, steps=settings.steps, pipe_args=settings.call_args, loading=settings, load=load,
        drafting=settings.drafting,
    )  # fmt: skip
    sampler = make([settings.prompt, *([] if origin.wording is None else [Wording(origin.wording, settings.prompt)])])
    best, spent = None, 0
    for path in _paths(origin):
        try:
            image = _along(origin.key, path, sampler)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or best is None:
                raise
            break
        spent += sum(rows * (stop - step) for (step, rows), (stop, _) in _legs(path, sampler))
        how = "by its key" + ("" if best is None else ", in micro-batches of the same sizes")
        best = _better(best, Again(image, spent, how, _difference(wanted, image)))
        if best.is_same or not best.is_close:
            break
    if best is None or not best.is_close:
        best = _better(best, _search_again(origin, settings, make, wanted, spent, trusted, progress))
    return best


def _paths(origin: Origin) -> list[list[tuple[int, int]]]:
    """The key's own path alone, which is quick, and as it was in its search; none where it is not of its key alone."""
    known = origin.micro_batches
    if not known or known[0][0] != 0:
        return []
    alone = [(0, 1)]
    return [alone] if known == alone else [alone, known]


def _better(one: Again | None, other: Again) -> Again:
    """The one of two that is closer, with what both took."""
    if one is None:
        return other
    return other if other.apart < one.apart else replace(one, nfe=other.nfe)


def _legs(path: Sequence[tuple[int, int]], sampler: Sampler) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The micro-batches of a path, each with the one after it; the last one ends with the steps."""
    return list(pairwise([*path, (sampler.steps, 0)]))


@torch.no_grad()
def _along(key: int, path: Sequence[tuple[int, int]], sampler: Sampler) -> Tensor:
    """The picture uint8 [3, H, W] of the noise of `key`, in micro-batches as `path` says, which copies of it fill."""
    last = len(sampler.prompts) - 1  # the wording, if there is one
    state, first = sampler.prior(torch.tensor([key]), torch.tensor([last])), torch.tensor([0])
    for (_, rows), (stop, _) in _legs(path, sampler):
        state = state[first.repeat(rows)]
        if stop > state.step:
            state = sampler.run(state, None if stop == sampler.steps else stop)
    if isinstance(sampler, ChecksPictures) and sampler.checks_pictures:
        images, _ = sampler.decode_checked(state.x)
    else:
        images = sampler.decode(state.x)
    return eight_bit(frame_strip(images)[0])


def _difference(wanted: Tensor, image: Tensor) -> tuple[float, int] | None:
    """The mean and the largest difference of two pictures uint8 [3, H, W]; a smaller one may be a thumbnail."""
    if wanted.shape != image.shape:
        image = to_keep(image.float() / 255, {}, True)["thumbnail"]
    if wanted.shape != image.shape:
        return None
    apart = (wanted.int() - image.int()).abs()
    return float(apart.float().mean()), int(apart.max())


class _Found(Exception):
    """The picture is there, and the search need not go on."""


def _search_again(
    origin: Origin, settings: GenerateConfig, make: Callable[[list[str]], Sampler], wanted: Tensor, spent: int,
    trusted: Sequence[str], progress: Progress,
) -> Again:  # fmt: skip
    """The candidate with the key of `origin` of the same search, as close to what is `wanted` as there is one."""
    for name, text in sources_of(settings):
        if name not in trusted:
            raise DiffscaleError(
                f"Only its search gives this picture again, and that has {name} {text!r}, which may run code or ask a "
                f"server: give --{name} {text!r} too if you trust it."
            )
    chosen, device = choose_search(settings.search), best_device(settings.device)
    prompts: list[str] = [settings.prompt]
    if chosen.declares("rewords"):
        prompts += wordings_of(settings.wordings, settings.model).find(prompts, {}, lambda _: None)
    sampler = make(prompts)
    key = noise.fold(noise.root(settings.seed), sampler.prompts[0], origin.repeat)
    found: list[Again] = []

    def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        for row in (keys == origin.key).nonzero().flatten().tolist():
            image = eight_bit(images[row])
            found.append(Again(image, spent + nfe[row], "by its search", _difference(wanted, image)))
            if found[-1].is_same:
                raise _Found

    counter = partial(progress, "searching")
    task = Task(chosen.make(device=device), 0, key, settings.budget)
    verifier = load_verifier(settings.verifier, device=device, image_model=settings.model)
    try:
        run_searches([task], sampler, verifier, settings.batch_size, [observe], progress=counter)
    except _Found:
        return found[-1]
    if not found:
        raise DiffscaleError(
            "The search came by other candidates than when this picture was made, so it cannot be made again here."
        )
    return min(found, key=lambda each: each.apart)
