"""Torch's normal draws, caught wherever code of others makes them, so that noise is a function of keys."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffscale.engine import noise


class NormalDraws(TorchFunctionMode):
    """Within it torch's normal draws are what `replacement` makes of each, and of its number from 0 on.

    `shapes`: of the draws so far. `batches_only`: tensors of less than 2 dimensions are left as they are drawn.
    """

    def __init__(self, replacement: Callable[[Tensor, int], Tensor], batches_only: bool = True) -> None:
        super().__init__()
        self._replacement, self._batches_only = replacement, batches_only
        self.shapes: list[torch.Size] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like) or (self._batches_only and drawn.ndim < 2):
            return drawn
        self.shapes.append(drawn.shape)
        return self._replacement(drawn, len(self.shapes) - 1)


def same_in_every_row(drawn: Tensor, number: int) -> Tensor:
    """Noise like `drawn` [B, ...], the same for every row, and for every draw of that `number` in a call."""
    key = torch.tensor([noise.fold(0, "opening", number)])
    return noise.normal(key, drawn.shape[1:]).to(drawn).expand_as(drawn)
