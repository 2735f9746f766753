"""Preference pairs of Shapes in the layout of Pick-a-Pic, for DPO: generated pictures, chosen by made-up raters."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

from PIL import Image

from diffscale.shapes.data import evaluation_keys, write_folder
from diffscale.shapes.taste import PICK_RATER, Rater
from diffscale.shapes.train.generated import ShownPicture
from diffscale.shapes.train.preferences import draw_pairs


def write(groups: Sequence[Sequence[ShownPicture]], folder: Path, rater: Rater = PICK_RATER) -> int:
    """Write the choices of `rater` between pictures of a prompt (see `generated`) to `folder`; how many they are.

    `metadata.jsonl` has, a line a pair, `jpg_0_file_name`, `jpg_1_file_name`, `label_0` (1 if the first was chosen),
    `label_1` and `caption`; which picture comes first is chance. Held meanings and those of evaluation prompts are left
    out. Raises DiffscaleError as `write_folder`.
    """
    rng = Random("shapes preference pairs")
    free = [group for group in groups if group and group[0].description.key() not in evaluation_keys()]
    told, _ = draw_pairs(free, rater, rng)

    def rows(fresh: Path) -> Iterator[dict[str, Any]]:
        names: dict[int, str] = {}
        for pair in told:
            for shown in (pair.chosen, pair.other):
                if id(shown) not in names:
                    names[id(shown)] = f"{len(names):05d}.png"
                    Image.fromarray(shown.picture.permute(1, 2, 0).numpy()).save(fresh / names[id(shown)])
            both = [names[id(pair.chosen)], names[id(pair.other)]]
            label = rng.randrange(2)  # 1: the chosen one comes first
            first, second = both if label else both[::-1]
            yield {
                "jpg_0_file_name": first, "jpg_1_file_name": second, "label_0": float(label),
                "label_1": float(1 - label), "caption": pair.chosen.prompt,
            }  # fmt: skip

    return write_folder(folder, rows)
