"""Pictures that shapes-flux made of training captions, with what the judge reads in them: what raters are shown."""

import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffscale._util import hardware
from diffscale._util.files import replacing
from diffscale._util.pixels import eight_bit
from diffscale.engine import noise
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale_shapes.captions import write_caption
from diffscale_shapes.judge import cleanliness
from diffscale_shapes.prompts import training_example
from diffscale_shapes.reading import read_picture
from diffscale_shapes.scenes import Description, Obj

PROMPTS: Final = 2_000
STEPS: Final = (20, 20, 6)
"""Denoising steps of a prompt's pictures: two as good as they come and a hasty one."""

_CHUNK: Final = 125  # prompts in a file


@dataclass(frozen=True, eq=False)
class ShownPicture:
    """A picture as raters see it: what it was made of, what it shows, and how cleanly. Two are never the same."""

    prompt: str
    description: Description
    picture: Tensor  # uint8 [3, 64, 64]
    objects: list[Obj]
    cleanliness: float  # [0, 1]
    fit: float  # mean fit of its objects, [0, 1]; 0 for none

    @property
    def is_held_out(self) -> bool:
        """Whether it is for measuring, not for training: a tenth of all meanings, whatever the words."""
        return zlib.crc32(self.description.key().encode()) % 10 == 0


Groups = Sequence[Sequence[ShownPicture]]
"""The pictures of each prompt."""


def stack_pixels(shown: Sequence[ShownPicture]) -> Tensor:
    """Pictures as networks take them, float32 [B, 3, 64, 64] in [-1, 1]."""
    return torch.stack([one.picture for one in shown]).float() / 127.5 - 1


def generate_pictures(folder: Path, prompts: int = PROMPTS) -> Groups:
    """For each of `prompts` training captions its pictures; made once and kept in `folder`, chunk by chunk.

    A caption that comes twice, and so with the same pictures, counts once.
    """
    chunks = (_chunk(folder, start, min(prompts, start + _CHUNK)) for start in range(0, prompts, _CHUNK))
    return list({group[0].prompt: group for chunk in chunks for group in chunk}.values())


def _chunk(folder: Path, start: int, stop: int) -> Iterator[list[ShownPicture]]:
    examples = list(map(_caption, range(start, stop)))
    path = folder / f"pictures-{start}-{stop}.safetensors"
    if not path.exists():
        made = torch.stack([_make(steps, copy, examples) for copy, steps in enumerate(STEPS)], 1)
        with replacing(path) as fresh:
            save_file({"pictures": made}, fresh)
    for (prompt, description), pictures in zip(examples, load_file(path)["pictures"], strict=True):
        yield [_shown(prompt, description, picture) for picture in pictures]


def _caption(number: int) -> tuple[str, Description]:
    rng = Random(f"generated pictures {number}")
    description, _ = training_example(rng)
    return write_caption(description, rng), description


def _make(steps: int, copy: int, examples: list[tuple[str, Description]]) -> Tensor:
    dtype = "bfloat16" if hardware.fast_bfloat16() else "float32"
    pipe = load_pipeline("shapes-flux", LoadOptions(device="cpu", dtype=dtype))
    sampler = DiffusersSampler(pipe, [prompt for prompt, _ in examples], steps, plain_call(pipe).args)
    rows = torch.arange(len(examples))
    keys = torch.tensor([noise.fold(noise.root(0), "generated", copy, prompt) for prompt, _ in examples])
    with torch.no_grad():
        state = sampler.run(sampler.prior(keys, rows), sampler.steps)
        images = torch.cat([sampler.decode(x) for x in state.x.split(32)])
    return eight_bit(images)


def _shown(prompt: str, description: Description, picture: Tensor) -> ShownPicture:
    seen = (picture.permute(1, 2, 0).float() / 255).numpy()
    readings = read_picture(seen)
    fit = float(np.mean([reading.fit for reading in readings])) if readings else 0.0
    return ShownPicture(prompt, description, picture, [r.obj for r in readings], cleanliness(seen, readings), fit)
