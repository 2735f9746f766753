"""Calling a verifier so that one bad candidate costs one candidate."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from diffscale.batching import out_of_memory
from diffscale.errors import DiffscaleError
from diffscale.types import Verifier


class DroppedCandidate(UserWarning):
    """A candidate could not be scored and takes no further part."""


def judge(verifier: Verifier, images: Tensor, prompts: list[str]) -> Tensor:
    """Scores float64 [b] on the CPU; -inf, with a warning, for what the verifier cannot score.

    Raises DiffscaleError for a verifier that does not keep to its shape; out of memory passes through.
    """
    try:
        return _checked(verifier, verifier(images, prompts), prompts)
    except DiffscaleError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(images) == 1:
            _warn(verifier, f"raised {type(error).__name__}: {error}", prompts[0])
            return torch.full((1,), -math.inf, dtype=torch.float64)
    # One of the batch made the verifier raise: find out which, and keep the others.
    return torch.cat([judge(verifier, images[i : i + 1], [prompt]) for i, prompt in enumerate(prompts)])


def one_each(verifier: Verifier, raw: Tensor, prompts: list[str]) -> Tensor:
    """The verifier's answer as [b]; raises DiffscaleError if it is no one score a picture."""
    if tuple(raw.shape) not in ((len(prompts),), (len(prompts), 1)):
        raise DiffscaleError(
            f"Verifier {verifier.name!r} must return one score a picture, shape ({len(prompts)},), but returned shape "
            f"{tuple(raw.shape)}."
        )
    return raw.reshape(-1)


def usable(verifier: Verifier, raw: Tensor, prompts: list[str]) -> Tensor:
    """Scores float64 on the CPU, -inf with a warning where they are not finite."""
    # To the CPU first: not every device has float64.
    scores = raw.detach().cpu().double().clone()
    for at in (~scores.isfinite()).nonzero().flatten().tolist():
        _warn(verifier, f"gave {scores[at].item()}", prompts[at])
        scores[at] = -math.inf
    return scores


def _checked(verifier: Verifier, raw: Tensor, prompts: list[str]) -> Tensor:
    return usable(verifier, one_each(verifier, raw, prompts), prompts)


def _warn(verifier: Verifier, what: str, prompt: str) -> None:
    text = f"Dropped a candidate of {prompt!r}: verifier {verifier.name!r} {what}."
    warnings.warn(text, DroppedCandidate, stacklevel=2)
