"""The metrics that compare two sets of pictures, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.bench.evaluation.extractors import Extractor
from diffscale.bench.evaluation.features import features
from diffscale.metrics.cmmd import cmmd
from diffscale.metrics.frechet import fid
from diffscale.metrics.precision_recall import precision, recall
from diffscale.metrics.statistics import Statistics, load_reference
from diffscale.suites.pictures import Pictures


@dataclass(frozen=True)
class Compared:
    """A metric of two sets of pictures.

    `value(generated, reference)`: it. `rows`: whether it looks at the features themselves, not only at their mean and
    covariance. `extractor`: whose features it is published with. `bound`: whether its name is right for no others.
    """

    value: Callable[[Statistics, Statistics], float]
    rows: bool
    extractor: str
    bound: bool


def _of_rows(metric: Callable[[Any, Any], float]) -> Callable[[Statistics, Statistics], float]:
    return lambda generated, reference: metric(reference.features, generated.features)


COMPARED: Final = {
    "fid": Compared(fid, False, "inception", False),
    "fd_dino": Compared(fid, False, "dino", True),
    "precision": Compared(_of_rows(precision), True, "inception", False),
    "recall": Compared(_of_rows(recall), True, "inception", False),
    "cmmd": Compared(_of_rows(cmmd), True, "clip", True),
}


def statistics(
    source: Pictures | Path,
    extractor: Extractor,
    rows_for: str | None = None,
    batch_size: int | None = None,
    told: Callable[[int], None] | None = None,
) -> Statistics:
    """Statistics of pictures, or those that a file holds.

    `rows_for`: the metric that needs the features themselves, if one does. Raises DiffscaleError if the file does not
    have what is needed.
    """
    if isinstance(source, Pictures):
        return Statistics.from_features(features(source, extractor, batch_size, told), extractor.name)
    held = load_reference(source, extractor.name)
    if rows_for is not None and held.features is None:
        raise DiffscaleError(
            f"{source} holds no features, which {rows_for} needs: write it again by --save-reference with --metrics "
            f"{rows_for}."
        )
    return held
