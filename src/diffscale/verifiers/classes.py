"""What classifiers as verifiers share: which class a condition means, and the score of that class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError

Output = Literal["log_probability", "probability", "logit"]
"""Of the conditioning class: log of the softmax, at most 0; the softmax, in [0, 1]; or the logit before it."""


def class_ids(conditions: Sequence[str], count: int, verifier: str) -> Tensor:
    """The `class_id` of each condition, int64 [B], in [0, count).

    A condition is a string with an attribute `class_id`, as class-conditional models have it. Raises DiffscaleError for
    a plain text and for a class that a classifier of `count` classes does not have.
    """
    found = []
    for condition in conditions:
        number = getattr(condition, "class_id", None)
        if number is None:
            raise DiffscaleError(
                f"Verifier {verifier!r} needs a class, but {str(condition)!r} is a plain text: use it with a "
                "class-conditional model, or choose a verifier of texts, such as clip."
            )
        if not 0 <= int(number) < count:
            raise DiffscaleError(
                f"Verifier {verifier!r} has the classes 0 to {count - 1}, but {str(condition)!r} is class {number}: "
                "give a classifier of the classes that the model was trained on."
            )
        found.append(int(number))
    return torch.tensor(found, dtype=torch.long)


def class_scores(logits: Tensor, ids: Tensor, output: Output) -> Tensor:
    """The score [B] of class `ids[i]` in row i of `logits` [B, classes]."""
    if output != "logit":
        logits = logits.log_softmax(-1)
    picked = logits.gather(1, ids.to(logits.device)[:, None])[:, 0]
    return picked.exp() if output == "probability" else picked
