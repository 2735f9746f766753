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
        (1.00, 0.57, 0.44, 0.41, 0.52, 0.53, 0.51, 0.49, 0.46, 0.40),
        (0.57, 1.00, 0.78, 0.70, 0.52, 0.63, 0.67, 0.69, 0.68, 0.66),
        (0.44, 0.78, 1.00, 0.90, 0.49, 0.62, 0.70, 0.73, 0.77, 0.82),
        (0.41, 0.70, 0.90, 1.00, 0.49, 0.63, 0.72, 0.76, 0.81, 0.92),
        (0.52, 0.52, 0.49, 0.49, 1.00, 0.76, 0.66, 0.61, 0.57, 0.48),
        (0.53, 0.63, 0.62, 0.63, 0.76, 1.00, 0.87, 0.81, 0.75, 0.63),
        (0.51, 0.67, 0.70, 0.72, 0.66, 0.87, 1.00, 0.94, 0.87, 0.73),
        (0.49, 0.69, 0.73, 0.76, 0.61, 0.81, 0.94, 1.00, 0.92, 0.77),
        (0.46, 0.68, 0.77, 0.81, 0.57, 0.75, 0.87, 0.92, 1.00, 0.83),
        (0.40, 0.66, 0.82, 0.92, 0.48, 0.63, 0.73, 0.77, 0.83, 1.00),
    ),
)
"""Rank correlations of shapes-flux in 20 steps, means of CLIPScore and ImageReward over prompts that are in no suite:
`diffscale tune auto` measures a model's own."""
