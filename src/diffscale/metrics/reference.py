"""Reference statistics on disk: safetensors with the names of the extractors in its metadata."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.moments import Statistics

_FORMAT: Final = "diffscale statistics 1"


def save(statistics: Sequence[Statistics], file: Path) -> None:
    """Write statistics of one set of pictures, one for each extractor, to `file`; it is replaced at once or not at all.

    Tensors `0.mean`, `0.covariance`, `0.n` and, where they were kept, `0.features` belong to the first extractor that
    the metadata names, and so on. Raises DiffscaleError if the file cannot be written.
    """
    tensors: dict[str, NDArray[Any]] = {}
    for i, one in enumerate(statistics):
        tensors |= {f"{i}.n": np.array([one.n]), f"{i}.mean": one.mean, f"{i}.covariance": one.covariance}
        if one.features is not None:
            tensors[f"{i}.features"] = one.features
    names = json.dumps([one.extractor for one in statistics])
    fresh = file.with_name(file.name + ".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, fresh,
            {"format": _FORMAT, "extractors": names},
        )  # fmt: skip
        os.replace(fresh, file)
    except (OSError, SafetensorError) as error:
        raise DiffscaleError(
            f"The statistics could not be written to {file}: choose another place ({error})."
        ) from error


def load(file: Path, extractor: str) -> Statistics:
    """The statistics in `file` that `extractor` made.

    Raises DiffscaleError for a file that cannot be read, is not one of `save`, or is of other extractors.
    """
    try:
        with safe_open(file, "np") as held:
            about = held.metadata() or {}
            if about.get("format") != _FORMAT:
                raise ValueError("it is another kind of file")
            names = list(json.loads(about["extractors"]))
            if extractor not in names:
                raise DiffscaleError(
                    f"{file} holds statistics of {', '.join(names)}, but {extractor} is asked for: name that extractor "
                    "with --features, or write the file again with --save-reference."
                )
            of = f"{names.index(extractor)}."
            found = {name[len(of) :]: held.get_tensor(name) for name in held.keys() if name.startswith(of)}  # noqa: SIM118
        return _checked(found, extractor)
    except (OSError, SafetensorError, ValueError, LookupError, TypeError) as error:
        raise DiffscaleError(
            f"The reference {file} cannot be read: give a folder of pictures, or a file that `diffscale evaluate "
            f"--save-reference` wrote ({error})."
        ) from error


def _checked(found: dict[str, NDArray[Any]], extractor: str) -> Statistics:
    """Raises LookupError or ValueError for tensors that do not fit together."""
    n, mean, covariance, features = int(found["n"][0]), found["mean"], found["covariance"], found.get("features")
    if n < 1 or mean.ndim != 1 or covariance.shape != mean.shape * 2:
        raise ValueError("its mean and covariance do not fit together")
    if features is not None and features.shape != (n, *mean.shape):
        raise ValueError("its features do not fit its mean")
    if not all(np.isfinite(tensor).all() for tensor in (mean, covariance, features) if tensor is not None):
        raise ValueError("it holds numbers that are not finite")
    return Statistics(extractor, n, mean.astype(np.float64), covariance.astype(np.float64), features)
