"""Loads rows to train on from any source: a folder, a file of prompts, or an id of the Hub."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import inside, user_cache
from diffscale.registry import plugins
from diffscale.suites import prompts
from diffscale.suites.pictures import Pictures, metadata
from diffscale.suites.prompts import read_rows
from diffscale.train.data import hub, journeydb
from diffscale.train.data.batches import permutation
from diffscale.train.data.dataset import Dataset, Leaked, Want, preference_pairs
from diffscale.train.data.hub import HubOptions

_TABLES: Final = (".parquet", ".tar")
SHOWN: Final = 5
"""Evaluation prompts that a note quotes."""
_SIDES: Final = ("jpg_0", "jpg_1")


def cache_folder() -> Path:
    """Where encodings and unpacked archives are kept: `diffscale/train` in `$XDG_CACHE_HOME`, else in `~/.cache`.

    It may be deleted.
    """
    return user_cache() / "train"


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

    `source` is, for "pictures", a folder with `metadata.jsonl` (see `_captioned_pictures`), a folder with
    parquet files or WebDataset shards, an unpacked JourneyDB, or an id of the Hub; for "pairs", a folder with
    `metadata.jsonl` (see `_pairs`) or parquet files, or an id; for "prompts", any source of pictures, whose
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


def meaning(text: str) -> str:
    """A text equal for two prompts that ask for the same.

    For captions that the judge of a world can read it is their meaning, whatever the words; for others it is the text
    without case, punctuation and further spaces.
    """
    for name, world in plugins("worlds").items():
        if (key := world.prompt_key(text)) is not None:
            return f"{name} {key}"
    return " ".join(re.sub(r"[\W_]+", " ", unicodedata.normalize("NFKC", text).casefold()).split())


def evaluation_prompts(files: Sequence[str] = ()) -> dict[str, str]:
    """Meanings of all known suites and of the prompts in `files`, each with the first suite or file that has it."""
    found: dict[str, str] = {}
    for suite in (*plugins("suites"), *files):
        for prompt in prompts.load(suite):
            found.setdefault(meaning(prompt), suite)
    return found


def without_evaluation_prompts(dataset: Dataset, files: Sequence[str] = ()) -> Dataset:
    """`dataset` without the rows whose prompt is one of a known suite, or of `files` that the user measures on.

    What was dropped is in `leaked`, and as a sentence in `notes`. Raises DiffscaleError if nothing is left, or a file
    cannot be read.
    """
    known = evaluation_prompts(files)
    suites = [known.get(meaning(prompt)) for prompt in dataset.prompts]
    counts = Counter(suite for suite in suites if suite is not None)
    if not counts:
        return dataset
    dropped = dict.fromkeys(prompt for prompt, suite in zip(dataset.prompts, suites, strict=True) if suite is not None)
    leaked = Leaked(dict(counts), tuple(dropped)[:SHOWN])
    note = (
        f"{leaked.count} of {len(dataset)} rows of {dataset.source} have evaluation prompts "
        f"({', '.join(f'{n} of {suite}' for suite, n in counts.items())}) and are not trained on: "
        f"{', '.join(map(repr, leaked.first))}{', ...' if len(dropped) > SHOWN else ''}"
    )
    if leaked.count == len(dataset):
        raise DiffscaleError(f"Nothing is left to train on: {note}. Give other data.")
    kept = [row for row, suite in enumerate(suites) if suite is None]
    return replace(dataset.select(kept, f"{note}."), leaked=leaked)


def _load(source: str, want: Want, options: HubOptions) -> Dataset:
    path = Path(source).expanduser()
    if path.is_dir():
        return _folder(path, want, options)
    if path.is_file():
        if want != "prompts":
            raise DiffscaleError(f"{source} is a file of prompts, but {want} are needed: give a folder or a Hub id.")
        _check_columns(source, options)
        return Dataset(source, prompts.load(str(path)))
    if source in plugins("suites"):
        raise DiffscaleError(f"{source} is a suite to measure on and is never trained on: give other data.")
    if source == journeydb.ID and want != "pairs":
        _check_columns(source, options, captions=False)
        folder = Path(options.cache_dir).expanduser() if options.cache_dir else cache_folder() / "journeydb"
        return journeydb.load(journeydb.fetch(folder, options.data_files), options.caption_column)
    if source.count("/") == 1 and not path.suffix and not source.startswith((".", "/", "~")):
        return hub.load(source, want, options)
    raise DiffscaleError(f"There is no {source!r}: give a folder, a file of prompts or an id of the Hub (owner/name).")


def _check_columns(source: str, options: HubOptions, captions: bool = True) -> None:
    """Raises DiffscaleError for a column that is named where names are fixed, and that is none of these."""
    for flag, given, names in (
        ("image_column", options.image_column, ("image", "file_name")),
        ("caption_column", options.caption_column if captions else None, ("text", "prompt", "caption")),
    ):
        if given is not None and given not in names:
            raise DiffscaleError(
                f"{source} is read by the columns {', '.join(names)} and has no other {flag}, such as {given!r}: leave "
                f"--{flag} out."
            )


def _folder(folder: Path, want: Want, options: HubOptions) -> Dataset:
    if (folder / journeydb.ANNOTATIONS).is_file() and want != "pairs":
        _check_columns(str(folder), options, captions=False)
        return journeydb.load(folder, options.caption_column)
    paired = _has_pairs(folder)
    if not paired and any(path.suffix in _TABLES for path in folder.rglob("*")):
        return hub.load(str(folder), want, options)
    _check_columns(str(folder), options)
    if want == "pairs":
        if not paired:
            raise DiffscaleError(
                f"{folder} has no preference pairs: it needs metadata.jsonl with jpg_0_file_name, jpg_1_file_name, "
                "label_0 and caption, or parquet files with jpg_0, jpg_1, label_0 and caption."
            )
        return _pairs(folder)
    if paired and want == "pictures":
        raise DiffscaleError(f"{folder} holds preference pairs, but captioned pictures are needed: give other data.")
    return _pairs(folder) if paired else _captioned_pictures(folder)


def _captioned_pictures(folder: Path) -> Dataset:
    """An image-caption folder, as `diffscale evaluate` reads it: `metadata.jsonl` or .csv with `file_name` and `text`.

    Raises DiffscaleError if there is no picture, one has no caption, or a file cannot be read.
    """
    found = Pictures.open(folder)
    texts = found.prompted("training")
    return Dataset(str(folder), texts, 1, lambda row, _: found.paths[row].read_bytes(), range(len(texts)), found.notes)


def _has_pairs(folder: Path) -> bool:
    """Whether the lines of `metadata.jsonl` or .csv name two pictures each."""
    file = metadata(folder)
    return file is not None and any(_names(row) is not None for row in read_rows(file)[:1])


def _pairs(folder: Path) -> Dataset:
    """Preference pairs in the layout of Pick-a-Pic, the chosen picture first; see `preference_pairs`.

    A line of `metadata.jsonl` or .csv has `caption`, `label_0` and two file names, `jpg_0_file_name` and
    `jpg_1_file_name`, as the imagefolder layout of Hugging Face has several pictures a row, or plainly `jpg_0` and
    `jpg_1`. Raises DiffscaleError for a line that lacks something or names a picture outside of the folder.
    """
    file = metadata(folder)
    assert file is not None
    lines = read_rows(file)
    files: list[tuple[Path, ...]] = []
    for number, row in enumerate(lines, 1):
        names = _names(row)
        if names is None or row.get("label_0") is None or not isinstance(row.get("caption"), str):
            raise DiffscaleError(
                f"Line {number} of {file} must have jpg_0_file_name, jpg_1_file_name, label_0 and caption."
            )
        files.append(tuple(inside(folder, name, file) for name in names))
    captions, labels = [row["caption"] for row in lines], [_number(row["label_0"]) for row in lines]
    return preference_pairs(str(folder), captions, labels, lambda row, side: files[row][side].read_bytes())


def _number(label: Any) -> Any:
    """A label as a number where it is the text of one, as all values of CSV are texts."""
    with suppress(ValueError):
        return float(label) if isinstance(label, str) else label
    return label


def _names(row: dict[str, Any]) -> tuple[str, str] | None:
    first, second = (row.get(f"{side}_file_name", row.get(side)) for side in _SIDES)
    return (first, second) if isinstance(first, str) and isinstance(second, str) else None
