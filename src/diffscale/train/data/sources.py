"""One door to all data: a folder, a file of prompts, or an id of the Hub."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from diffscale._util.errors import DiffscaleError
from diffscale.registry import plugins
from diffscale.suites import prompts
from diffscale.train.data import folders, hub, journeydb
from diffscale.train.data.batches import permutation
from diffscale.train.data.dataset import Dataset, Want
from diffscale.train.data.evaluation_prompts import without_evaluation_prompts
from diffscale.train.data.hub import HubOptions

_TABLES: Final = (".parquet", ".tar")


def cache_folder() -> Path:
    """Where encodings and unpacked archives are kept: `diffscale/train` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    It may be deleted.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "diffscale" / "train"


def load(
    source: str,
    want: Want = "pictures",
    options: HubOptions = HubOptions(),  # noqa: B008 - it is frozen
    *,
    held_out: Sequence[str] = (),
    limit: int | None = None,
    seed: int = 0,
) -> Dataset:
    """The rows of `source` to train on, without those whose prompt is one of a known suite or of the files `held_out`.

    `source` is, for "pictures", a folder with `metadata.jsonl` (see `folders.captioned_pictures`), a folder with
    parquet files or WebDataset shards, an unpacked JourneyDB, or an id of the Hub; for "pairs", a folder with
    `metadata.jsonl` (see `folders.pairs`) or parquet files, or an id; for "prompts", any source of pictures, whose
    different captions are the prompts, or a text, JSONL or CSV file (see `suites.prompts.load`). `limit`: at most that
    many rows, drawn by `seed`. Raises DiffscaleError for what cannot be had or leaves nothing to train on.
    """
    if want not in ("pictures", "pairs", "prompts"):
        raise ValueError(f"want must be pictures, pairs or prompts, not {want!r}")
    if limit is not None and limit < 1:
        raise DiffscaleError(f"At least one row is needed, not {limit}.")
    found = _load(source, want, options)
    if want == "prompts":
        found = Dataset(found.source, list(dict.fromkeys(found.prompts)), notes=found.notes)
    found = without_evaluation_prompts(found, held_out)
    if limit is None or limit >= len(found):
        return found
    return found.select(sorted(permutation(len(found), seed, "limit")[:limit].tolist()))


def _load(source: str, want: Want, options: HubOptions) -> Dataset:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, want, options)
    if path.is_file():
        if want != "prompts":
            raise DiffscaleError(f"{source} is a file of prompts, but {want} are needed: give a folder or a Hub id.")
        return Dataset(source, prompts.load(str(path)))
    if source in plugins("suites"):
        raise DiffscaleError(f"{source} is a suite to measure on and is never trained on: give other data.")
    if source == journeydb.ID and want != "pairs":
        folder = Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder() / "journeydb"
        return journeydb.load(journeydb.fetch(folder, options.data_files), options.caption_column)
    if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/", "~")):
        return hub.load(source, want, options)
    raise DiffscaleError(f"There is no {source!r}: give a folder, a file of prompts or an id of the Hub (owner/name).")


def _folder(folder: Path, want: Want, options: HubOptions) -> Dataset:
    if (folder / journeydb.ANNOTATIONS).is_file() and want != "pairs":
        return journeydb.load(folder, options.caption_column)
    paired = folders.has_pairs(folder)
    if not paired and any(path.suffix in _TABLES for path in folder.rglob("*")):
        return hub.load(str(folder), want, options)
    if want == "pairs":
        if not paired:
            raise DiffscaleError(
                f"{folder} has no preference pairs: it needs metadata.jsonl with jpg_0_file_name, jpg_1_file_name, "
                "label_0 and caption, or parquet files with jpg_0, jpg_1, label_0 and caption."
            )
        return folders.pairs(folder)
    if paired and want == "pictures":
        raise DiffscaleError(f"{folder} holds preference pairs, but captioned pictures are needed: give other data.")
    return folders.pairs(folder) if paired else folders.captioned_pictures(folder)
