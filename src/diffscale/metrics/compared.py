"""Metrics of two sets of pictures, as `diffscale evaluate` computes them.

A package offers one by an entry point in the group `diffscale.metrics`, whose value is a `Compared`.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from diffscale.metrics import distances, frechet
from diffscale.metrics.statistics import Statistics


@dataclass(frozen=True)
class Compared:
    """A metric of generated pictures and a reference.

    `value(generated, reference)`: it. `rows`: whether it looks at the features themselves, not only at their mean and
    covariance. `extractor`: whose features it is published with (`clip`, `dino` or `inception`). `bound`: whether its
    name is right for no others.
    """

    value: Callable[[Statistics, Statistics], float]
    rows: bool
    extractor: str
    bound: bool


def _by_rows(metric: Callable[[Any, Any], float]) -> Callable[[Statistics, Statistics], float]:
    return lambda generated, reference: metric(reference.features, generated.features)


fid: Final = Compared(frechet.fid, False, "inception", False)
"""Frechet distance of the features of Inception (Heusel et al. 2017); lower is better."""

fd_dino: Final = Compared(frechet.fid, False, "dino", True)
"""Frechet distance of the features of DINOv2 (Stein et al. 2023); lower is better."""

precision: Final = Compared(_by_rows(distances.precision), True, "inception", False)
"""Share of generated pictures that lie among real ones (Kynkaanniemi et al. 2019)."""

recall: Final = Compared(_by_rows(distances.recall), True, "inception", False)
"""Share of real pictures that lie among generated ones (Kynkaanniemi et al. 2019)."""

cmmd: Final = Compared(_by_rows(distances.cmmd), True, "clip", True)
"""Distance of means in the kernel space of CLIP's features (Jayasumana et al. 2024); lower is better."""
