"""Strengths from comparisons in pairs (Bradley and Terry 1952, Biometrika 39): i beats j with probability σ(b_i - b_j).

A weak prior, as if everybody had also drawn a tenth of a game with an opponent of strength 0, keeps the strengths of
those who won or lost everything finite.
"""

from typing import Final

import torch
from torch import Tensor

PRIOR: Final = 0.1  # games against an opponent of strength 0, all drawn
_STEPS: Final = 100
_PRECISION: Final = 1e-12


def strengths(wins: Tensor) -> Tensor:
    """Log-strengths float64 [n] that are most probable for `wins` float64 [n, n]: how often i beat j, or with which
    probability; the diagonal is 0.

    Equal records have equal strengths: these are rounded. By Newton's method, whose steps from 0 do not overshoot.
    """
    games = wins + wins.T
    found = torch.zeros(len(wins), dtype=torch.float64)
    for _ in range(_STEPS):
        ahead, alone = (found[:, None] - found).sigmoid(), found.sigmoid()
        slope = (wins - games * ahead).sum(1) + PRIOR * (0.5 - alone)
        bend = games * ahead * (1 - ahead)
        curvature = torch.diag(bend.sum(1) + PRIOR * alone * (1 - alone)) - bend
        step = torch.linalg.solve(curvature, slope)
        found = found + step
        if step.abs().max() < _PRECISION:
            break
    return found.round(decimals=9)
