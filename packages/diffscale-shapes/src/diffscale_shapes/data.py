"""Data sets of Shapes that differ as the three of paper B do: in size, in how captions are written, in domain.

Paper B (Tian et al. 2025, arXiv 2502.12146, figure 4) trains on JourneyDB (large, prompts as people type them),
Text-to-Image-2M (detailed captions written by a model) and Pokemon captions (833 pictures of one kind). Sizes here are
ours. Nothing that is drawn means what an evaluation prompt means.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import numpy as np
from PIL import Image

from diffscale._util.errors import DiffscaleError
from diffscale_shapes.captions import parse_caption, write_caption
from diffscale_shapes.prompts import class_prompts, shapes, training_example
from diffscale_shapes.render import render
from diffscale_shapes.scenes import RELATIONS, Description, Scene, Spec, related


@dataclass(frozen=True)
class Recipe:
    """How one data set is drawn: its usual size, and what a training example becomes (None: it does not fit)."""

    size: int
    become: Callable[[Description, Scene], tuple[Description, Scene] | None]


def plain(description: Description, scene: Scene) -> tuple[Description, Scene]:
    """The example as it is: a caption of what matters, the rest left open."""
    return description, scene


def detailed(description: Description, scene: Scene) -> tuple[Description, Scene] | None:
    """The same scene with everything said: size, texture and colour of each object, and where the first two stand.

    Of scenes with things of several kinds alone: there is little to say of others.
    """
    left = iter(scene)
    groups = [[next(left) for _ in range(spec.count)] for spec in description.specs]
    specs = tuple(Spec(g[0].shape, g[0].colour, g[0].texture, g[0].size, len(g)) for g in groups)
    if len(specs) < 2 or len({replace(spec, count=1) for spec in specs}) < len(specs):
        return None
    relation = description.relation
    if relation is None and [spec.count for spec in specs[:2]] == [1, 1]:
        relation = next((r for r in RELATIONS if related(scene[0], scene[1], r)), None)
    return Description("complex", specs, relation), scene


def stars(description: Description, scene: Scene) -> tuple[Description, Scene] | None:
    """One domain: every object becomes a star."""
    specs = tuple(replace(spec, shape="star") for spec in description.specs)
    if len({replace(spec, count=1) for spec in specs}) < len(specs):
        return None
    return replace(description, specs=specs), tuple(replace(obj, shape="star") for obj in scene)


RECIPES: Final = {
    "plain": Recipe(20_000, plain),  # as JourneyDB, the large one
    "detailed": Recipe(5_000, detailed),  # as Text-to-Image-2M
    "stars": Recipe(800, stars),  # as the Pokemon captions, the small one
}
"""Recipes by name; "pairs", which needs pictures that shapes-flux made, is `write_pairs`."""


@cache
def evaluation_keys() -> frozenset[str]:
    """Keys of the meanings of all evaluation prompts of all suites."""
    found = map(parse_caption, [*shapes(), *class_prompts()])
    return frozenset(description.key() for description in found if description is not None)


def draw_example(name: str, number: int) -> tuple[str, Description, Scene]:
    """Example `number` of the recipe `name`: caption, its meaning, and a scene that it is true of; always the same.

    Raises KeyError for an unknown name.
    """
    recipe, rng = RECIPES[name], Random(f"shapes data {name} {number}")
    while True:
        made = recipe.become(*training_example(rng))
        if made is not None and made[0].key() not in evaluation_keys():
            return write_caption(made[0], rng), *made


def write_dataset(name: str, folder: Path, size: int | None = None) -> int:
    """Draw a data set into `folder` as an image-caption folder: PNGs and `metadata.jsonl` of `file_name` and `text`.

    Returns the number of pictures (`size`, else that of the recipe). Raises DiffscaleError as `write_folder`.
    """
    size = RECIPES[name].size if size is None else size

    def rows(fresh: Path) -> Iterator[dict[str, Any]]:
        for number in range(size):
            caption, _, scene = draw_example(name, number)
            pixels = (render(scene) * 255).round().astype(np.uint8)
            file = f"{number:05d}.png"
            Image.fromarray(pixels).save(fresh / file)
            yield {"file_name": file, "text": caption}

    return write_folder(folder, rows)


def write_folder(folder: Path, rows: Callable[[Path], Iterator[dict[str, Any]]]) -> int:
    """Let `rows` write pictures into a folder and put what it yields into its `metadata.jsonl`: all of it or nothing.

    Returns the number of rows. Raises DiffscaleError if `folder` holds files already, cannot be written or would be
    empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise DiffscaleError(f"{folder} is there already: name an empty folder, or one that is yet to be made.")
    folder = folder.absolute()
    fresh = folder.with_name(f".{folder.name}.{os.getpid()}.new")
    try:
        fresh.mkdir(parents=True)
        lines = [json.dumps(row) + "\n" for row in rows(fresh)]
        if not lines:
            raise DiffscaleError("A data set has at least one row: give a larger --size.")
        (fresh / "metadata.jsonl").write_text("".join(lines), encoding="utf-8")
        fresh.replace(folder)
    except OSError as error:
        raise DiffscaleError(f"The data set cannot be written to {folder}: choose another place ({error}).") from error
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return len(lines)
