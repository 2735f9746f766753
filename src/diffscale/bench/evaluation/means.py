"""Means over pictures, with intervals: of what verifiers say, and of the judge of their world by category."""

from collections.abc import Sequence
from statistics import fmean
from typing import Any, Final, cast

import torch
from torch import Tensor

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError
from diffscale._util.progress import Counter, silent
from diffscale.engine.scoring import safe_score
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.registry import plugins
from diffscale.suites.pictures import Pictures
from diffscale.types import Verifier

# What verifiers of searches may ask for, by the attribute that says so.
_MORE: Final = {
    "components": "ranks pictures within a pool",
    "record_level": "looks at predictions on the way to a picture",
    "choose": "scores pictures by those chosen before",
}

_OF_POOLS: Final = ("ensemble", "weighted")


def check(verifier: str) -> None:
    """Raise DiffscaleError for a verifier that `verifier_mean` would refuse, as far as can be told without loading."""
    if (name := verifier.split()[0]) in _OF_POOLS:
        # Before its members are looked at, since metrics are parted by commas too.
        raise _without_mean(name, "components")
    verifiers.check(verifier)


def _without_mean(name: str, sign: str) -> DiffscaleError:
    return DiffscaleError(f"The verifier {name} {_MORE[sign]}, so it has no mean over a folder: name another one.")


def verifier_mean(
    verifier: Verifier,
    pictures: Pictures,
    device: Any = "cpu",
    batch_size: int | None = None,
    progress: Counter = silent,
) -> dict[str, Any]:
    """`mean`, `low` and `high` (95%, over prompts, pictures of one averaged first) of a verifier's scores, and
    `dropped`, how many pictures it could not score.

    Of a verifier that tells the category of a prompt by a method `category`, `categories` has `mean`, `low` and `high`
    for each, and `over_categories` the mean of these means, which is the overall score of benchmarks such as GenEval.
    Pictures without a prompt pass only to a verifier that has `needs_prompts = False`; it is given empty ones. Raises
    DiffscaleError for prompts that are missing, if nothing could be scored, and for a verifier that sees more than a
    finished picture and its prompt.
    """
    if (sign := next((sign for sign in _MORE if hasattr(verifier, sign)), None)) is not None:
        raise _without_mean(verifier.name, sign)
    needed = getattr(verifier, "needs_prompts", True)
    prompts = pictures.prompted(verifier.name) if needed else [prompt or "" for prompt in pictures.prompts]

    def scored(images: Tensor, at: list[int]) -> Tensor:
        return safe_score(verifier, images.to(device), [prompts[i] for i in at])

    with torch.no_grad():
        scores = pictures.map(scored, batch_size, progress)
    usable = scores.isfinite().nonzero().flatten().tolist()
    if not usable:
        raise DiffscaleError(f"The verifier {verifier.name} could score none of the {len(pictures)} pictures.")
    found: dict[str, Any] = _summary(pictures, scores, usable) | {"dropped": len(pictures) - len(usable)}
    if (category := getattr(verifier, "category", None)) is not None and callable(category):
        rows: dict[str, list[int]] = {}
        for i in usable:
            rows.setdefault(category(prompts[i]), []).append(i)
        found["categories"] = {name: _summary(pictures, scores, each) for name, each in rows.items()}
        found["over_categories"] = fmean(each["mean"] for each in found["categories"].values())
    return found


def composition(
    pictures: Pictures, batch_size: int | None = None, progress: Counter = silent
) -> dict[str, dict[str, float]]:
    """The scores in [0, 1] of the judge of the pictures' world: `mean`, `low`, `high` as of `verifier_mean`, for `all`
    pictures and for each category that their prompts are of.

    Raises DiffscaleError for pictures that are of no such world: of another size, or with prompts it cannot read.
    """
    worlds = plugins("worlds")
    world = next((each for each in worlds.values() if set(pictures.sizes) == {each.size}), None)
    if world is None:
        sizes = [f"{name.capitalize()}, {each.size[0]}x{each.size[1]} pixels" for name, each in worlds.items()]
        raise DiffscaleError(f"`composition` judges pictures of {' or '.join(sizes)}; these are others.")
    prompts = pictures.prompted("composition")
    if (unread := next((prompt for prompt in prompts if world.prompt_key(prompt) is None), None)) is not None:
        raise DiffscaleError(
            f"`composition` judges prompts of {world.name.capitalize()}, and cannot read {unread!r}: describe objects "
            "as the prompts of its suites do, see `diffscale list suites`."
        )

    def scored(images: Tensor, rows: list[int]) -> Tensor:
        return cast(Tensor, world.judge(images, [prompts[i] for i in rows])["score"])

    scores = pictures.map(scored, batch_size, progress)
    found = {"all": _summary(pictures, scores, range(len(prompts)))}
    categories = [world.category(prompt) for prompt in prompts]
    for category in world.categories:
        if category in categories:
            found[category] = _summary(pictures, scores, [i for i, each in enumerate(categories) if each == category])
    return found


def _summary(pictures: Pictures, scores: Tensor, at: Sequence[int]) -> dict[str, float]:
    # A picture without a prompt stands for itself.
    groups = [i if pictures.prompts[i] is None else pictures.prompts[i] for i in at]
    return interval(over_groups(scores[list(at)].tolist(), groups))
