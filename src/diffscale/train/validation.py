"""Pictures of the same seeds before, during and after a training, and how rewards score them."""

import shutil
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_json, write_json
from diffscale.engine import noise
from diffscale.report import pictures
from diffscale.suites.pictures import Pictures
from diffscale.train.base import Base
from diffscale.train.rewards import Reward
from diffscale.train.settings import TrainConfig
from diffscale.train.training_data import TrainingData
from diffscale.verifiers.defaults import build
from diffscale.verifiers.dino import load_dino
from diffscale.verifiers.heldout import heldout_scores, judge_name
from diffscale.verifiers.inception import load_inception

FOLDER: Final = "validation"
_SCORES: Final = "scores.json"
_AT_ONCE: Final = 4


@dataclass(frozen=True)
class Validation:
    """Pictures [3, H, W] in [0, 1] and, by verifier, the score of each (of an ensemble its components)."""

    images: list[Tensor]
    scores: dict[str, list[Any]]


def prompts_of_samples(data: TrainingData, settings: TrainConfig) -> list[str]:
    """The prompt of each picture of `sample`."""
    return [prompt for prompt in data.validation_prompts for _ in range(settings.num_validation_images)]


def load_features(settings: TrainConfig, model: str, device: Any) -> Callable[[Tensor], Tensor] | None:
    """What makes the features of `--validation_features`, for pictures of `model`; None where none is asked for."""
    if settings.validation_features is None:
        return None
    loaders: dict[str, Any] = {"dino": load_dino, "inception": load_inception}
    name = settings.validation_features
    extract: Callable[[Tensor], Tensor] = build(loaders[name], {}, name, device=device, image_model=model)
    return extract


@torch.no_grad()
def sample(base: Base, data: TrainingData, settings: TrainConfig) -> list[Tensor]:
    """Pictures [3, H, W] in [0, 1], `num_validation_images` of each prompt, of the model as it is now.

    Their noise is a function of the seed, the prompt and the number alone.
    """
    made: list[Tensor] = []
    root = noise.root(settings.seed)
    wanted = [(prompt, i) for prompt in data.validation_prompts for i in range(settings.num_validation_images)]
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        data.set_own_prompts([prompt for prompt, _ in part])
        keys = torch.tensor([noise.fold(root, "validation", prompt, i) for prompt, i in part])
        latents = base.sampler.run(base.sampler.prior(keys, torch.arange(len(part)))).x
        made += list(base.sampler.decode(latents).float().cpu())
    return made


@torch.no_grad()
def score(
    images: Sequence[Tensor], prompts: Sequence[str], rewards: Sequence[Reward], model: str, device: Any
) -> dict[str, list[Any]]:
    """Each verifier's score of each picture (of an ensemble its components), and the judge's where it can judge."""
    scores: dict[str, list[Any]] = {}
    for reward in rewards:
        each = [reward.scores(image[None].to(device), [prompt]) for image, prompt in zip(images, prompts, strict=True)]
        values = [scored.double().flatten().tolist() for scored in each]
        scores[reward.name] = [one[0] if len(one) == 1 else one for one in values]
    judged = [heldout_scores(model, prompt, {"it": image}) for prompt, image in zip(prompts, images, strict=True)]
    if judged and all(judged):
        scores[str(judge_name(model))] = [each["it"]["score"] for each in judged]
    return scores


def save(folder: Path, name: str, validation: Validation) -> None:
    """Keep the pictures of the moment `name` in `folder`, and the scores."""
    place = folder / FOLDER / name
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed, which may have had more
    place.mkdir(parents=True)
    for i, image in enumerate(validation.images):
        pictures.to_pil(image).save(place / f"{i:03}.png")
    write_json(place / _SCORES, validation.scores, None)


def load(folder: Path, name: str) -> Validation | None:
    """Return what `save` kept, None if it is not there.

    What cannot be read is as good as not there, and told: a training is worth more than what it is compared by.
    """
    place = folder / FOLDER / name
    if not (place / _SCORES).exists():
        return None
    scores = read_json(place / _SCORES, dict[str, list[Any]])
    try:
        if scores is None:
            raise DiffscaleError(f"{place / _SCORES} is broken.")
        saved = Pictures.open(place)
        return Validation(list(saved.load(range(len(saved)))), scores)
    except DiffscaleError as error:
        warnings.warn(f"The pictures of {name} are not compared with others: {error}", stacklevel=2)
        return None


def gains(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """Each verifier's means before and after, their difference, and its standard error over two pictures or more."""
    found = {}
    for name, new in after.items():
        old = before.get(name)
        if old is None or len(old) != len(new) or any(isinstance(value, list) for value in new):
            continue
        change = np.array(new) - np.array(old)
        error = float(change.std(ddof=1) / len(change) ** 0.5) if len(change) > 1 else None
        found[name] = {
            "before": float(np.mean(old)), "after": float(np.mean(new)), "gain": float(change.mean()),
            "standard_error": error, "pictures": len(new),
        }  # fmt: skip
    return found
