"""One recipe per shipped network: train (or go on), write the folder, measure it, write its figures beside it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

from diffscale._util.files import write_json
from diffscale_shapes.train import contrastive, dino, flux, inception, loras, noise_prediction, raters, sit
from diffscale_shapes.train.loop import last_figures
from diffscale_shapes.train.measure import measure_model
from diffscale_shapes.train.shipped import copy_rest, load_shipped


@dataclass(frozen=True)
class Recipe:
    """How a network is made.

    `train` is given the folder of checkpoints, that of the network, and the steps of the network itself (`steps` if
    nothing else is asked for), and writes the weights; it may return figures of the training. `stages`: for each
    training the folder of its log below the checkpoints and its name in figures.json.
    """

    train: Callable[[Path, Path, int], dict[str, Any] | None]
    steps: int
    stages: Mapping[str, str]
    samples: int | None = None  # pictures for each prompt of the suite that the judge measures a pipeline by


_FLUX_STAGES: Final = {
    "autoencoder": "autoencoder",
    "flux": "training",
    "flux-distilled": "distillation",
    "decoder": "decoder",
}
RECIPES: Final[dict[str, Recipe]] = {
    "flux": Recipe(flux.train, 7_200, _FLUX_STAGES, 64),
    "clip": Recipe(contrastive.train_clip, 2_000, {"clip": "clip"}),
    "aesthetic": Recipe(raters.train_aesthetic, 2_000, {"aesthetic": "aesthetic"}),
    "reward": Recipe(raters.train_reward, 600, {"blip": "blip", "reward": "reward"}),
    "pick": Recipe(raters.train_pick, 600, {"pick": "pick"}),
    "grader": Recipe(raters.train_grader, 800, {"grader": "grader"}),
    "dino": Recipe(dino.train, 1_200, {"dino": "dino"}),
    "siglip": Recipe(contrastive.train_siglip, 1_000, {"siglip": "siglip"}),
    "inception": Recipe(inception.train, 600, {"inception": "inception"}),
    "pixart": Recipe(noise_prediction.train_pixart, 6_000, {"pixart": "training"}, 16),
    "sdxl": Recipe(noise_prediction.train_sdxl, 2_500, {"sdxl": "training"}, 16),
    "sdxl-dpo": Recipe(loras.train_dpo, 400, {"sdxl-dpo": "training"}, 16),
    "sdxl-sharpened": Recipe(loras.train_sharpened, 400, {}, 16),
    **{f"sit-{size}": Recipe(partial(sit.train, size), 2_000, {f"sit-{size}": "training"}, 16) for size in sit.SIZES},
}


def train(network: str, checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """Train one of `RECIPES`, or go on from its checkpoints, and write its folder with figures.json.

    `steps`: of the network itself; stages before and after keep their own. None: those of the recipe.
    """
    recipe = RECIPES[network]
    trained = recipe.train(checkpoints, folder, recipe.steps if steps is None else steps)
    figures: dict[str, Any] = {name: last_figures(checkpoints / log) for log, name in recipe.stages.items()}
    if trained is not None:
        figures["training"] = trained
    copy_rest(f"shapes-{network}", folder)
    if recipe.samples is not None:
        figures["judge"] = measure_model(load_shipped(str(folder)), recipe.samples)
    write_json(folder / "figures.json", figures)
