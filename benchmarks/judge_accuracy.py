"""How often the judge reads a whole scene back exactly, clean and degraded.

    python benchmarks/judge_accuracy.py [--scenes 1000]

A scene counts as read if every object has all its attributes and stands within one pixel, and there is no other. Shares
with 95% Wilson intervals; bar: 99% on clean renders. Milliseconds are of processor time, for reading alone: run it with
OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import io
import time
from collections.abc import Callable
from random import Random

import numpy as np
from diffscale_shapes.reading import read_picture
from diffscale_shapes.render import render
from diffscale_shapes.scenes import CATEGORIES, Obj, Scene, draw_description, draw_scene
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage, stats

Picture = NDArray[np.float32]


def degradations(seed: int = 0) -> dict[str, Callable[[Picture], Picture]]:
    rng = np.random.default_rng(seed)

    def noisy(sigma: float) -> Callable[[Picture], Picture]:
        return lambda picture: picture + sigma * rng.standard_normal(picture.shape).astype(np.float32)

    def blurred(sigma: float) -> Callable[[Picture], Picture]:
        return lambda picture: ndimage.gaussian_filter(picture, (sigma, sigma, 0))

    def jpeg(quality: int) -> Callable[[Picture], Picture]:
        def through(picture: Picture) -> Picture:
            file = io.BytesIO()
            Image.fromarray((picture * 255).round().astype(np.uint8)).save(file, "JPEG", quality=quality)
            return np.asarray(Image.open(file), np.float32) / 255

        return through

    return {
        "clean": lambda picture: picture,
        **{f"noise sigma {s}": noisy(s) for s in (0.02, 0.05, 0.1)},
        **{f"blur sigma {s} px": blurred(s) for s in (0.5, 1, 1.5)},
        **{f"JPEG quality {q}": jpeg(q) for q in (90, 70, 50)},
    }


def same(scene: Scene, read: list[Obj]) -> bool:
    left = list(read)
    for obj in scene:
        near = [o for o in left if max(abs(o.x - obj.x), abs(o.y - obj.y)) <= 1]
        near = [
            o for o in near if (o.shape, o.colour, o.texture, o.size) == (obj.shape, obj.colour, obj.texture, obj.size)
        ]
        if not near:
            return False
        left.remove(near[0])
    return not left


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scenes", type=int, default=1000)
    options = parser.parse_args()
    rng = Random("judge accuracy")
    scenes = [draw_scene(draw_description(rng, CATEGORIES[i % 6]), rng) for i in range(options.scenes)]
    print(f"{'':20} scenes read exactly, of {len(scenes)}")
    for name, degrade in degradations().items():
        hits, seconds = 0, 0.0
        for scene in scenes:
            picture = degrade(render(scene)).clip(0, 1).astype(np.float32)
            began = time.process_time()
            readings = read_picture(picture)
            seconds += time.process_time() - began
            hits += same(scene, [reading.obj for reading in readings])
        low, high = stats.binomtest(hits, len(scenes)).proportion_ci(0.95, "wilson")
        share = hits / len(scenes)
        print(
            f"{name:20} {share:6.1%} [{low:.1%}, {high:.1%}], {1000 * seconds / len(scenes):.1f} ms a picture",
            flush=True,
        )


if __name__ == "__main__":
    main()
