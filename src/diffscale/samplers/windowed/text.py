"""What a pipeline made of each prompt, kept, and dealt out again by rows.

The pipeline encodes every prompt once and alone, by its own `encode_prompt`; later calls get these
answers back, stacked for the rows they run. So no layout of embeddings, pooled vectors or masks
needs to be known here.
"""

from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError


class Texts:
    """Answers of `pipe.encode_prompt`, put in its place on `pipe`."""

    def __init__(self, pipe: Any) -> None:
        self._encode = getattr(pipe, "encode_prompt", None)
        self._answers: list[list[Any]] = []
        self._rows: Sequence[int] | None = None
        self._calls = 0
        if self._encode is not None:
            pipe.__dict__["encode_prompt"] = self._answer

    def forget(self) -> None:
        """The next prompt that is recorded is the first."""
        self._answers = []

    def tensors(self) -> list[list[Tensor]]:
        """All tensors of every prompt's answers, in one order."""
        return [list(_tensors(answers)) for answers in self._answers]

    def hold(self, tensors: Sequence[Sequence[Tensor]]) -> None:
        """Have the answers of other prompts, made of what `tensors` gave of them, in the place of all that are held."""
        first, prompts = self._answers[0], [iter(each) for each in tensors]
        self._answers = [[_refilled(answer, each) for answer in first] for each in prompts]

    def record(self) -> None:
        """The pipeline's next call encodes the next prompt."""
        self._answers.append([])
        self._rows = None

    def replay(self, rows: Sequence[int]) -> None:
        """The pipeline's next call gets the answers for the prompts `rows`."""
        self._rows, self._calls = rows, 0

    def layout(self, row: int) -> Hashable:
        """Prompts of equal layout can share a batch."""
        return _shapes(self._answers[row])

    def _answer(self, *args: Any, **kwargs: Any) -> Any:
        if self._rows is None:
            assert self._encode is not None
            answer = self._encode(*args, **kwargs)
            self._answers[-1].append(answer)
            return answer
        call, self._calls = self._calls, self._calls + 1
        return _stack([self._answers[row][call] for row in self._rows])


def _shapes(answer: Any) -> Hashable:
    if isinstance(answer, list | tuple):
        return tuple(_shapes(item) for item in answer)
    return tuple(answer.shape) if isinstance(answer, Tensor) else None


def _tensors(answer: Any) -> Iterator[Tensor]:
    if isinstance(answer, list | tuple):
        for item in answer:
            yield from _tensors(item)
    elif isinstance(answer, Tensor):
        yield answer


def _refilled(answer: Any, tensors: Iterator[Tensor]) -> Any:
    """`answer` with `tensors` in the place of its own, as it has them typed and placed."""
    if isinstance(answer, list | tuple):
        return type(answer)([_refilled(item, tensors) for item in answer])
    return next(tensors).to(answer) if isinstance(answer, Tensor) else answer


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
    # No batch dimension, as the position ids of Flux: right only if it is the same for all.
    if any(answer is not first and not torch.equal(answer, first) for answer in answers):
        raise DiffscaleError(
            f"This pipeline encodes a prompt to shape {tuple(first.shape)}, which cannot share a "
            "batch with other prompts; search one prompt at a time."
        )
    return first
