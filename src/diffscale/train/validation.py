"""Pictures of the same seeds before, during and after a training, and what rewards say of them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diffscale.engine import noise
from diffscale.report import pictures
from diffscale.train.base import Base
from diffscale.train.configs import TrainConfig
from diffscale.train.rewards import Reward
from diffscale.train.training_data import Materials
from diffscale.verifiers.heldout import heldout_scores

FOLDER: Final = "validation"
_AT_ONCE: Final = 4


def asked(materials: Materials, settings: TrainConfig) -> list[str]:
    """The prompt of each picture of `sample`."""
    return [prompt for prompt in materials.prompts for _ in range(settings.num_validation_images)]


def sample(base: Base, materials: Materials, settings: TrainConfig) -> list[Tensor]:
    """Pictures [3, H, W] in [0, 1], `num_validation_images` of each prompt, of the model as it is now.

    Their noise is a function of the seed, the prompt and the number alone.
    """
    made: list[Tensor] = []
    wanted = [(prompt, i) for prompt in materials.prompts for i in range(settings.num_validation_images)]
    for start in range(0, len(wanted), _AT_ONCE):
        part = wanted[start : start + _AT_ONCE]
        materials.tell_own([prompt for prompt, _ in part])
        root = noise.root(settings.seed)
        keys = torch.tensor([noise.fold(root, "validation", prompt, i) for prompt, i in part])
        with torch.no_grad():
            latents = base.sampler.run(base.sampler.prior(keys, torch.arange(len(part)))).x
            made += list(base.sampler.decode(latents).float().cpu())
    return made


def scores(
    images: Sequence[Tensor], prompts: Sequence[str], rewards: Sequence[Reward], model: str, device: Any
) -> dict[str, list[Any]]:
    """By verifier, its score of each picture (of an ensemble its components), and the judge's where it can tell."""
    found: dict[str, list[Any]] = {}
    for reward in rewards:
        with torch.no_grad():
            each = [
                reward.verifier(image[None].to(device), [prompt]) for image, prompt in zip(images, prompts, strict=True)
            ]
        found[reward.name] = [torch.as_tensor(one).double().flatten().tolist() for one in each]
        found[reward.name] = [one[0] if len(one) == 1 else one for one in found[reward.name]]
    verdicts = [heldout_scores(model, p, {"it": image}) for p, image in zip(prompts, images, strict=True)]
    if verdicts and all(verdicts):
        found["shapes-judge"] = [verdict["it"]["score"] for verdict in verdicts]
    return found


def save(folder: Path, name: str, images: Sequence[Tensor], said: dict[str, list[Any]]) -> None:
    """Keep the pictures of the moment `name` in `folder`, and the scores."""
    place = folder / FOLDER / name
    shutil.rmtree(place, ignore_errors=True)  # of a run that was killed, which may have had more
    place.mkdir(parents=True)
    for i, image in enumerate(images):
        pictures.to_pil(image).save(place / f"{i:03}.png")
    (place / "scores.json").write_text(json.dumps(said) + "\n")


def saved(folder: Path, name: str) -> tuple[list[Tensor], dict[str, list[Any]]] | None:
    """What `save` kept; None if it is not there."""
    place = folder / FOLDER / name
    if not (place / "scores.json").exists():
        return None
    images = [
        torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1).float() / 255
        for path in sorted(place.glob("*.png"))
    ]
    return images, json.loads((place / "scores.json").read_text())


def strip(before: Sequence[Tensor], after: Sequence[Tensor], captions: Sequence[str], title: str) -> Image.Image:
    """Two rows of pictures of the same seeds: before above, after below, with the prompts."""
    return pictures.grid(
        [pictures.to_pil(image) for image in (*before, *after)],
        [*(f"before: {caption}" for caption in captions), *(f"after: {caption}" for caption in captions)],
        title,
        columns=len(before),
    )


def gains(before: dict[str, list[Any]], after: dict[str, list[Any]]) -> dict[str, dict[str, Any]]:
    """By verifier the means before and after, their difference, and its standard error over two pictures or more."""
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
