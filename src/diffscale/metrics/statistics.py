"""Mean and covariance of features, and files of them: references that are computed once."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import replacing
from diffscale.metrics.distances import matrix

_FORMAT: Final = "diffscale statistics 1"
_ROWS: Final = 4096  # rows that are float64 at once


@dataclass(frozen=True)
class Statistics:
    """What is known of a set of pictures.

    `extractor`: name of the network that made the features. `n`: pictures. `mean` [D] and `covariance` [D, D] (divided
    by n - 1; zero for a single picture, which does not vary), float64. `features`: float32 [n, D], None where they were
    not kept.
    """

    extractor: str
    n: int
    mean: NDArray[np.float64]
    covariance: NDArray[np.float64]
    features: NDArray[np.float32] | None = None

    @classmethod
    def from_features(cls, features: NDArray[np.float32], extractor: str) -> Statistics:
        """The statistics of `features` [N, D], which are kept; raises DiffscaleError as `matrix` does.

        Deviations from the mean are added up, never squares of the features themselves, so that nothing cancels where
        the mean is large.
        """
        matrix(features[:1])
        mean, scatter = features.mean(0, dtype=np.float64), np.zeros((features.shape[1],) * 2)
        for start in range(0, len(features), _ROWS):
            deviations = matrix(features[start : start + _ROWS]) - mean
            scatter += deviations.T @ deviations
        return cls(extractor, len(features), mean, scatter / max(len(features) - 1, 1), features)


def save_reference(statistics: Sequence[Statistics], file: Path) -> None:
    """Write statistics of one set of pictures, one for each extractor, to `file`; it is replaced at once or not at all.

    The file is safetensors. Tensors `0.mean`, `0.covariance`, `0.n` and, where they were kept, `0.features` belong to
    the first extractor that the metadata names, and so on. Raises DiffscaleError if the file cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for i, one in enumerate(statistics):
        tensors |= {f"{i}.n": np.array([one.n]), f"{i}.mean": one.mean, f"{i}.covariance": one.covariance}
        if one.features is not None:
            tensors[f"{i}.features"] = np.ascontiguousarray(one.features)
    names = json.dumps([one.extractor for one in statistics])
    unwritten = f"The statistics could not be written to {file}: choose another place ({{why}})."
    with explained(unwritten, OSError, SafetensorError), replacing(file) as fresh:
        save_file(tensors, fresh, {"format": _FORMAT, "extractors": names})


def load_reference(file: Path, extractor: str) -> Statistics:
    """The statistics in `file` that `extractor` made.

    Raises DiffscaleError for a file that cannot be read, is not one of `save_reference`, or is of other extractors.
    """
    try:
        with safe_open(file, "np") as content:
            about = content.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError("it is another kind of file")
            names = list(json.loads(about["extractors"]))
            if extractor not in names:
                raise DiffscaleError(
                    f"{file} holds statistics of {', '.join(names)}, but {extractor} is asked for: name that extractor "
                    "with --features, or write the file again with --save-reference."
                )
            prefix = f"{names.index(extractor)}."
            kept = [name for name in content.keys() if name.startswith(prefix)]  # noqa: SIM118
            tensors = {name.removeprefix(prefix): content.get_tensor(name) for name in kept}
        return _checked(tensors, extractor)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DiffscaleError(
            f"The reference {file} cannot be read: give a folder of pictures, or a file that `diffscale evaluate "
            f"--save-reference` wrote ({error})."
        ) from error


def _checked(tensors: dict[str, NDArray[Any]], extractor: str) -> Statistics:
    """Raises LookupError or ValueError for tensors that do not fit together."""
    n, features = int(tensors["n"][0]), tensors.get("features")
    mean, covariance = tensors["mean"], tensors["covariance"]
    if n < 1 or mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise ValueError("its mean and covariance do not fit together")
    if features is not None and features.shape != (n, *mean.shape):
        raise ValueError("its features do not fit its mean")
    if not all(np.isfinite(tensor).all() for tensor in tensors.values()):
        raise ValueError("it holds numbers that are not finite")
    return Statistics(extractor, n, mean.astype(np.float64), covariance.astype(np.float64), features)
