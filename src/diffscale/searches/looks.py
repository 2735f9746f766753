"""Looks at candidates before they are finished, how far these agree with the end, and what that makes them worth.

A look is a draft (the whole way in few steps, from the same noise) or the x0-prediction after some steps of the way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from torch import Tensor

_RIDGE: Final = 0.01  # of the correlations among looks, which are measured and so need not be consistent


@dataclass(frozen=True)
class Look:
    """A draft of `steps` steps by `via`, see `types.Draft`; or, if `on_the_way`, the x0-prediction after `steps`."""

    steps: int
    via: str = ""
    on_the_way: bool = False

    def __str__(self) -> str:
        if self.on_the_way:
            return f"predictions after {self.steps} steps"
        return f"drafts of {self.steps} steps {self.via}".strip()


@dataclass(frozen=True)
class Agreement:
    """Correlations of the scores of candidates of one prompt: [K + 1, K + 1] of K `looks` and the finished sample.

    `shares`: each look's steps as a share of all.
    """

    looks: tuple[Look, ...]
    shares: tuple[float, ...]
    matrix: tuple[tuple[float, ...], ...]

    def number(self, look: Look, share: float) -> int | None:
        """The look of the same kind whose share of the steps is nearest; None if there is none of that kind."""
        alike = [
            i
            for i, each in enumerate(self.looks)
            if (each.on_the_way, each.via) == (look.on_the_way, look.via) or (not each.on_the_way and look.via)
        ]
        return min(alike, key=lambda i: abs(self.shares[i] - share), default=None)

    def numbers(self, looks: Sequence[Look], steps: int) -> tuple[int, ...]:
        """`number` of each of `looks` on a model of so many steps; 0 where there is none of its kind."""
        return tuple(self.number(look, look.steps / steps) or 0 for look in looks)

    def weights(self, numbers: Sequence[int]) -> Tensor:
        """Of these looks' standardised scores [K], the best linear guess of the finished one: float64 [K]."""
        matrix, index = torch.tensor(self.matrix, dtype=torch.float64), list(numbers)
        among = matrix[index][:, index] + _RIDGE * torch.eye(len(index), dtype=torch.float64)
        return torch.linalg.solve(among, matrix[index, -1])

    def with_the_end(self, look: Look, share: float) -> float:
        """How the scores of the nearest such look correlate with finished samples'; 0 if there is none."""
        number = self.number(look, share)
        return 0.0 if number is None else self.matrix[number][-1]

    def moved(self, on_the_way: bool, shift: float) -> "Agreement":
        """All looks of one kind agree more with the end, by `shift` in Fisher's z; the nearest such matrix."""
        matrix = np.array(self.matrix)
        for i, look in enumerate(self.looks):
            if look.on_the_way == on_the_way:
                matrix[i, -1] = matrix[-1, i] = np.tanh(fisher(matrix[i, -1]) + shift)
        values, vectors = np.linalg.eigh(matrix)
        matrix = (vectors * np.maximum(values, 1e-6)) @ vectors.T
        scale = np.sqrt(np.diag(matrix))
        return replace(self, matrix=tuple(map(tuple, (matrix / scale[:, None] / scale).round(6).tolist())))

    def without_drafts(self) -> "Agreement":
        """That of the x0-predictions alone."""
        kept = [i for i, look in enumerate(self.looks) if look.on_the_way]
        rows = [*kept, len(self.looks)]
        return Agreement(
            tuple(self.looks[i] for i in kept),
            tuple(self.shares[i] for i in kept),
            tuple(tuple(self.matrix[i][j] for j in rows) for i in rows),
        )


def fisher(correlation: float) -> float:
    """Fisher's z of a correlation, which is held a little within (-1, 1)."""
    return math.atanh(max(-0.98, min(0.98, correlation)))
