"""Features of a folder of pictures, computed once and kept on disk, and their statistics."""

import hashlib
import warnings
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
from diffscale._util.files import replacing, user_cache
from diffscale._util.pixels import READING
from diffscale._util.progress import Counter, silent
from diffscale.bench.evaluation.extractors import Extractor
from diffscale.metrics.statistics import Statistics, load_reference
from diffscale.suites.pictures import Pictures

_NAME: Final = "features"


def cache_folder() -> Path:
    """Where features are kept: `diffscale/features` in `$XDG_CACHE_HOME`, else in `~/.cache`; it may be deleted."""
    return user_cache() / "features"


def features(
    pictures: Pictures, extractor: Extractor, batch_size: int | None = None, progress: Counter = silent
) -> NDArray[np.float32]:
    """Features [N, D] of all pictures, in their order; of pictures seen before by this extractor, from the cache.

    `batch_size`, `progress`: see `Pictures.map`. Raises DiffscaleError for features of another shape or not finite.
    """
    key = hashlib.sha256(f"{extractor.name}\n{READING}\n{pictures.digest}".encode()).hexdigest()
    file = cache_folder() / f"{key}.safetensors"
    with suppress(OSError, SafetensorError, KeyError, ValueError):  # there is no file, or it is not whole
        rows: NDArray[np.float32] = load_file(file)[_NAME]
        if rows.ndim == 2 and len(rows) == len(pictures):
            return rows
    with torch.no_grad():
        rows = pictures.map(lambda images, _: _extract(extractor, images), batch_size, progress).numpy()
    bad = np.flatnonzero(~np.isfinite(rows).all(1))
    if len(bad):
        raise DiffscaleError(
            f"{extractor.name} makes no finite features of {len(bad)} pictures: leave out {pictures.paths[bad[0]]}."
        )
    try:
        with replacing(file) as fresh:
            save_file({_NAME: rows}, fresh)
    except (OSError, SafetensorError) as error:
        warnings.warn(f"Features are not kept: {file.parent} cannot be written ({error}).", stacklevel=2)
    return rows


def _extract(extractor: Extractor, images: Tensor) -> Tensor:
    made = extractor(images)
    if made.ndim != 2 or len(made) != len(images):
        raise DiffscaleError(
            f"The extractor {extractor.name} must return features of shape ({len(images)}, dimensions), not "
            f"{tuple(made.shape)}."
        )
    return made.float().cpu()


def statistics(
    source: Pictures | Path,
    extractor: Extractor,
    rows_for: str | None = None,
    batch_size: int | None = None,
    progress: Counter = silent,
) -> Statistics:
    """Statistics of pictures, or those that a file holds.

    `rows_for`: the metric that needs the features themselves, if one does. Raises DiffscaleError if the file does not
    have what is needed.
    """
    if isinstance(source, Pictures):
        return Statistics.from_features(features(source, extractor, batch_size, progress), extractor.name)
    loaded = load_reference(source, extractor.name)
    if rows_for is not None and loaded.features is None:
        raise DiffscaleError(
            f"{source} holds no features, which {rows_for} needs: write it again by --save-reference with --metrics "
            f"{rows_for}."
        )
    return loaded
