"""How looks agree with finished samples where nothing was measured: means over the tapes of Shapes."""

from typing import Final

from diffscale.searches.looks import Agreement, Look

_STEPS: Final = 20
_PREDICTIONS: Final = (5, 7, 9, 11)
_DRAFTS: Final = (3, 4, 5, 6, 8)

TYPICAL: Final = Agreement(
    (*(Look(steps, on_the_way=True) for steps in _PREDICTIONS), *map(Look, _DRAFTS)),
    tuple(steps / _STEPS for steps in (*_PREDICTIONS, *_DRAFTS)),
    (
        (1.00, 0.58, 0.44, 0.41, 0.50, 0.54, 0.52, 0.49, 0.46, 0.39),
        (0.58, 1.00, 0.79, 0.71, 0.52, 0.65, 0.70, 0.72, 0.71, 0.67),
        (0.44, 0.79, 1.00, 0.91, 0.49, 0.64, 0.71, 0.73, 0.76, 0.82),
        (0.41, 0.71, 0.91, 1.00, 0.49, 0.63, 0.73, 0.75, 0.80, 0.91),
        (0.50, 0.52, 0.49, 0.49, 1.00, 0.74, 0.63, 0.60, 0.56, 0.47),
        (0.54, 0.65, 0.64, 0.63, 0.74, 1.00, 0.88, 0.82, 0.76, 0.63),
        (0.52, 0.70, 0.71, 0.73, 0.63, 0.88, 1.00, 0.95, 0.88, 0.74),
        (0.49, 0.72, 0.73, 0.75, 0.60, 0.82, 0.95, 1.00, 0.93, 0.77),
        (0.46, 0.71, 0.76, 0.80, 0.56, 0.76, 0.88, 0.93, 1.00, 0.84),
        (0.39, 0.67, 0.82, 0.91, 0.47, 0.63, 0.74, 0.77, 0.84, 1.00),
    ),
)
"""Rank correlations of shapes-flux in 20 steps, means of CLIPScore and ImageReward over prompts that are in no suite:
`diffscale tune auto` measures a model's own."""
