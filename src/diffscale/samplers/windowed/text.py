"""What a pipeline made of each prompt, kept, and dealt out again by rows.

The pipeline encodes every prompt once and alone, by its own `encode_prompt`; later calls get these
answers back, stacked for the rows they run. So no layout of embeddings, pooled vectors or masks
needs to be known here.
"""

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from diffscale._util.errors import DiffscaleError


class PromptEncodings:
    """Answers of `pipe.encode_prompt`, put in its place on `pipe`."""

    def __init__(self, pipe: Any) -> None:
        self._encode = getattr(pipe, "encode_prompt", None)
        self._answers: list[list[Any]] = []  # by prompt, then by call of `encode_prompt`
        self._rows: Sequence[int] | None = None
        self._calls = 0
        if self._encode is not None:
            pipe.__dict__["encode_prompt"] = self._answer

    def share(self, other: "PromptEncodings") -> None:
        """Have what `other` has of every prompt, now."""
        self._answers = other._answers

    def clear(self) -> None:
        """The next prompt that is recorded is the first."""
        self._answers = []

    def tensors(self) -> list[list[Tensor]]:
        """All tensors of every prompt's answers, in one order."""
        return [[leaf for leaf in pytree.tree_leaves(answers) if isinstance(leaf, Tensor)] for answers in self._answers]

    def replace(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Have the answers of other prompts, made of what `tensors` gave of them, in the place of all there are."""
        first = self._answers[0]

        def refilled(prompt: Sequence[Tensor]) -> list[Any]:
            """The first prompt's answers with the tensors of another, typed and placed as its own."""
            left = iter(prompt)
            return pytree.tree_map_only(Tensor, lambda own: next(left).to(own), first)

        self._answers = [refilled(prompt) for prompt in tensors]

    def record(self) -> None:
        """The pipeline's next call encodes the next prompt."""
        self._answers.append([])
        self._rows = None

    def replay(self, rows: Sequence[int]) -> None:
        """The pipeline's next call gets the answers for the prompts `rows`."""
        self._rows, self._calls = rows, 0

    def layout(self, row: int) -> Hashable:
        """Prompts of equal layout can share a batch."""
        return tuple(
            leaf.shape if isinstance(leaf, Tensor) else None for leaf in pytree.tree_leaves(self._answers[row])
        )

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if self._rows is None:
            assert self._encode is not None
            answer = self._encode(*args, **kwargs)
            self._answers[-1].append(answer)
            return answer
        call, self._calls = self._calls, self._calls + 1
        return _stack([self._answers[row][call] for row in self._rows])


def _stack(answers: list[Any]) -> Any:
    """Answers to single prompts as the answer to all of them at once."""
    first = answers[0]
    if isinstance(first, tuple):
        return tuple(_stack(list(items)) for items in zip(*answers, strict=True))
    if isinstance(first, list):
        return [item for answer in answers for item in answer]
    if not isinstance(first, Tensor):
        return first
    if len(first) == 1:
        return torch.cat(answers)
    if first.ndim == 4 and first.shape[1] == 1:
        return torch.cat(answers, 1)  # layers of a text network come before the batch
    # No batch dimension, as the position ids of Flux: right only if it is the same for all.
    if any(answer is not first and not torch.equal(answer, first) for answer in answers):
        raise DiffscaleError(
            f"This pipeline encodes a prompt to shape {tuple(first.shape)}, which cannot share a "
            "batch with other prompts; search one prompt at a time."
        )
    return first
