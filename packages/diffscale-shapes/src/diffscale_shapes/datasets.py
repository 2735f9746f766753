"""The data sets of Shapes, as the plug-in offers them."""

from pathlib import Path
from typing import Final

from diffscale.registry import DataSet
from diffscale_shapes.data import write_dataset
from diffscale_shapes.train import generated, raters


def _drawn(name: str) -> DataSet:
    def write(folder: Path, size: int | None, cache: Path) -> int:
        return write_dataset(name, folder, size)

    return write


def pairs(folder: Path, size: int | None, cache: Path) -> int:
    """Preference pairs of pictures that shapes-flux makes of 2,000 prompts, as Pick-a-Pic."""
    groups = generated.generate_pictures(cache / "generated", size or generated.PROMPTS)
    return raters.write_pairs(groups, folder)


plain: Final = _drawn("plain")
"""20,000 pictures with short captions."""

detailed: Final = _drawn("detailed")
"""5,000 pictures with captions that say everything."""

stars: Final = _drawn("stars")
"""800 pictures of one domain."""

DATASETS: Final = {"plain": plain, "detailed": detailed, "stars": stars, "pairs": pairs}
