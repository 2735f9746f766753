"""The head of the LAION aesthetic predictor and of ImageReward: linear layers with dropout between, no activations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Final

from torch import Tensor, nn

SIZES: Final = (768, 1024, 128, 64, 16, 1)
"""Widths of the published heads, from the features to the score."""


class Head(nn.Module):
    """Features [..., sizes[0]] to a number [..., 1], through `layers.0` ... as the publishers name them.

    Dropout (0.2, 0.2, 0.1) follows every layer but the last two, so that the published widths give linear layers at
    0, 2, 4, 6 and 7. Without activations the trained head is one linear function: the publishers' own choice.
    Source: MLP in github.com/christophschuhmann/improved-aesthetic-predictor and github.com/THUDM/ImageReward.
    """

    def __init__(self, sizes: Sequence[int] = SIZES) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for i, widths in enumerate(pairwise(sizes)):
            steps.append(nn.Linear(*widths))
            if i < len(sizes) - 3:
                steps.append(nn.Dropout(0.2 if i < 2 else 0.1))
        self.layers = nn.Sequential(*steps)

    def forward(self, features: Tensor) -> Tensor:
        """The score [..., 1] of `features` [..., sizes[0]]."""
        return self.layers(features)


def head_sizes(state: Mapping[str, Tensor]) -> list[int]:
    """The widths of a head from its state dict (`layers.0.weight`, ...), first to last; empty if it has no layers."""
    names = [name for name in state if name.startswith("layers.") and name.endswith(".weight")]
    weights = [state[name] for name in sorted(names, key=lambda name: int(name.split(".")[1]))]
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)] if weights else []
