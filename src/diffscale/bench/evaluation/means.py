"""Means over pictures, with intervals: of what verifiers say, and of the judge of Shapes by category."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine.scoring import safe_score
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.shapes.captions import parse_caption
from diffscale.shapes.judge import judge_images
from diffscale.shapes.scenes import CANVAS, CATEGORIES
from diffscale.suites.pictures import Pictures
from diffscale.types import Verifier

# What verifiers of searches may ask for, by the attribute that says so.
_MORE: Final = {
    "components": "ranks pictures within a pool",
    "record_level": "looks at predictions on the way to a picture",
    "choose": "scores pictures by those chosen before",
}


def verifier_mean(
    verifier: Verifier,
    pictures: Pictures,
    device: Any = "cpu",
    batch_size: int | None = None,
    told: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """`mean`, `low` and `high` (95%, over prompts, pictures of one averaged first) of a verifier's scores, and
    `dropped`, how many pictures it could not score.

    Pictures without a prompt pass only to a verifier that has `needs_prompts = False`; it is given empty ones. Raises
    DiffscaleError for prompts that are missing, if nothing could be scored, and for a verifier that sees more than a
    finished picture and its prompt.
    """
    more = next((said for sign, said in _MORE.items() if hasattr(verifier, sign)), None)
    if more is not None:
        raise DiffscaleError(f"The verifier {verifier.name} {more}, so it has no mean over a folder: name another one.")
    needed = getattr(verifier, "needs_prompts", True)
    prompts = pictures.prompted(verifier.name) if needed else [prompt or "" for prompt in pictures.prompts]

    def scored(images: Tensor, at: list[int]) -> Tensor:
        return safe_score(verifier, images.to(device), [prompts[i] for i in at])

    with torch.no_grad():
        scores = pictures.map(scored, batch_size, told)
    usable = scores.isfinite().nonzero().flatten().tolist()
    if not usable:
        raise DiffscaleError(f"The verifier {verifier.name} could score none of the {len(pictures)} pictures.")
    return _summary(pictures, scores, usable) | {"dropped": len(pictures) - len(usable)}


def composition(
    pictures: Pictures, batch_size: int | None = None, told: Callable[[int], None] | None = None
) -> dict[str, dict[str, float]]:
    """The judge of Shapes, scores in [0, 1]: `mean`, `low`, `high` as of `verifier_mean`, for `all` pictures and for
    each category that their prompts are of.

    Raises DiffscaleError for pictures that are not of Shapes: of another size, or with prompts it cannot read.
    """
    if set(pictures.sizes) != {(CANVAS, CANVAS)}:
        raise DiffscaleError(f"`composition` judges pictures of Shapes, {CANVAS}x{CANVAS} pixels; these are others.")
    prompts = pictures.prompted("composition")
    meanings = [parse_caption(prompt) for prompt in prompts]
    known = [meaning for meaning in meanings if meaning is not None]
    if len(known) < len(prompts):
        raise DiffscaleError(
            f"`composition` judges prompts of Shapes, and cannot read {prompts[meanings.index(None)]!r}: describe "
            "objects as in `a small red circle above two blue squares`."
        )
    scores = pictures.map(lambda images, at: judge_images(images, [known[i] for i in at]), batch_size, told)
    found = {"all": _summary(pictures, scores, range(len(known)))}
    for category in CATEGORIES:
        of_it = [i for i, meaning in enumerate(known) if meaning.category == category]
        if of_it:
            found[category] = _summary(pictures, scores, of_it)
    return found


def _summary(pictures: Pictures, scores: Tensor, at: list[int] | range) -> dict[str, float]:
    # A picture without a prompt stands for itself.
    groups = [i if pictures.prompts[i] is None else pictures.prompts[i] for i in at]
    return interval(over_groups(scores[list(at)].tolist(), groups))
