"""Features of a folder of pictures, computed once and kept on disk."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.bench.evaluation.extractors import Classifier, Extractor
from diffscale.suites.pictures import Pictures

_NAME: Final = "features"


def cache_folder() -> Path:
    """Where features are kept: `diffscale/features` in `$XDG_CACHE_HOME`, else in `~/.cache`; it may be deleted."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffscale" / "features"


def features(
    pictures: Pictures,
    extractor: Extractor,
    batch_size: int | None = None,
    told: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Features [N, D] of all pictures, in their order; of pictures seen before by this extractor, from the cache.

    `batch_size`, `told`: see `Pictures.map`. Raises DiffscaleError for features of another shape or not finite.
    """
    return _kept(pictures, extractor.name, extractor, batch_size, told)


def logits(
    pictures: Pictures,
    extractor: Classifier,
    batch_size: int | None = None,
    told: Callable[[int], None] | None = None,
) -> NDArray[np.float32]:
    """Logits [N, classes] of all pictures, as `features`."""
    return _kept(pictures, f"{extractor.name} logits", extractor.logits, batch_size, told)


def _kept(
    pictures: Pictures,
    name: str,
    make: Callable[[Tensor], Tensor],
    batch_size: int | None,
    told: Callable[[int], None] | None,
) -> NDArray[np.float32]:
    key = hashlib.sha256(f"{name}\n{pictures.digest}".encode()).hexdigest()
    file = cache_folder() / f"{key}.safetensors"
    held = _read(file, len(pictures))
    if held is not None:
        return held
    with torch.no_grad():
        rows = pictures.map(lambda images, _: _checked(make(images), len(images), name), batch_size, told).numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise DiffscaleError(
            f"{name} makes no finite features of {len(bad)} pictures: leave out {pictures.paths[bad[0]]}."
        )
    _write(file, rows)
    return rows


def _checked(made: Tensor, pictures: int, name: str) -> Tensor:
    if made.ndim != 2 or len(made) != pictures:
        raise DiffscaleError(
            f"The extractor {name} must return features of shape ({pictures}, dimensions), not {tuple(made.shape)}."
        )
    return made.float().cpu()


def _read(file: Path, n: int) -> NDArray[np.float32] | None:
    """What is kept in `file`; None if that is nothing, or not whole."""
    try:
        rows = load_file(file)[_NAME]
    except (OSError, SafetensorError, KeyError, ValueError):
        return None
    return rows if rows.ndim == 2 and len(rows) == n else None


def _write(file: Path, rows: NDArray[np.float32]) -> None:
    # Two runs may make the same features at once.
    fresh = file.with_name(f"{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({_NAME: rows}, fresh)
        os.replace(fresh, file)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            fresh.unlink()
        warnings.warn(f"Features are not kept: {file.parent} cannot be written ({error}).", stacklevel=2)
