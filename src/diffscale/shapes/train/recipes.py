"""One recipe per shipped network: train (or go on), write the folder, measure it, write its figures beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

from diffscale._util.files import write_json
from diffscale.shapes.train import (
    contrastive,
    dino,
    dpo,
    flux,
    inception,
    noise_prediction,
    preferences,
    ratings,
    sharpened,
    sit,
)
from diffscale.shapes.train.loop import last_figures
from diffscale.shapes.train.measure import measure_model
from diffscale.shapes.train.shipped import copy_rest, load_shipped


@dataclass(frozen=True)
class Recipe:
    """How a network is made.

    `train` is given the folder of checkpoints, that of the network, and the steps of the network itself (None: the
    usual number), and writes the weights; it may return figures of the training. `stages`: for each training the
    folder of its log below the checkpoints and its name in figures.json.
    """

    train: Callable[[Path, Path, int | None], dict[str, Any] | None]
    stages: Mapping[str, str] = field(default_factory=dict)
    samples: int | None = None  # pictures for each prompt of the suite that the judge measures a pipeline by


_FLUX_STAGES: Final = {
    "autoencoder": "autoencoder",
    "flux": "training",
    "flux-distilled": "distillation",
    "decoder": "decoder",
}
RECIPES: Final[dict[str, Recipe]] = {
    "flux": Recipe(flux.train, _FLUX_STAGES, 64),
    "clip": Recipe(contrastive.train_clip, {"clip": "clip"}),
    "aesthetic": Recipe(ratings.train_aesthetic, {"aesthetic": "aesthetic"}),
    "reward": Recipe(preferences.train_reward, {"blip": "blip", "reward": "reward"}),
    "pick": Recipe(preferences.train_pick, {"pick": "pick"}),
    "grader": Recipe(ratings.train_grader, {"grader": "grader"}),
    "dino": Recipe(dino.train, {"dino": "dino"}),
    "siglip": Recipe(contrastive.train_siglip, {"siglip": "siglip"}),
    "inception": Recipe(inception.train, {"inception": "inception"}),
    "pixart": Recipe(noise_prediction.train_pixart, {"pixart": "training"}, 16),
    "sdxl": Recipe(noise_prediction.train_sdxl, {"sdxl": "training"}, 16),
    "sdxl-dpo": Recipe(dpo.train, {"sdxl-dpo": "training"}, 16),
    "sdxl-sharpened": Recipe(sharpened.train, samples=16),
    **{f"sit-{size}": Recipe(partial(sit.train, size), {f"sit-{size}": "training"}, 16) for size in sit.SIZES},
}


def train(network: str, checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """Train one of `RECIPES`, or go on from its checkpoints, and write its folder with figures.json.

    `steps`: of the network itself; stages before and after keep their own. None: those of the recipe.
    """
    recipe = RECIPES[network]
    trained = recipe.train(checkpoints, folder, steps)
    figures: dict[str, Any] = {name: last_figures(checkpoints / log) for log, name in recipe.stages.items()}
    if trained is not None:
        figures["training"] = trained
    copy_rest(f"shapes-{network}", folder)
    if recipe.samples is not None:
        figures["judge"] = measure_model(load_shipped(str(folder)), recipe.samples)
    write_json(folder / "figures.json", figures)
