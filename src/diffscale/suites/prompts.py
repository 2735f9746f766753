"""Prompts to measure on: a suite by name, a file, or a data set of the Hub."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from diffscale._util.errors import DiffscaleError, UnknownName, explained, unknown
from diffscale._util.files import parse_jsonl, read_text, split_lines
from diffscale.registry import DEFAULT_SUITE, HOW_TO_GET_SHAPES, plugins

COLUMNS: Final = ("prompt", "prompts", "caption", "text")
CATEGORIES: Final = ("category", "tag", "challenge", "atom_count")
"""What the columns of prompts and of their categories may be called, in any case."""
_SUFFIXES: Final = (".csv", ".tsv", ".jsonl", ".json", ".txt")
_HUB: Final = re.compile(r"[\w.-]+/[\w.-]+(:.+)?")

T = TypeVar("T")


def load(source: str, limit: int | None = None) -> list[str]:
    """Prompts of a suite (one that an installed package offers, such as `imagenet`, its 1000 classes) or of a file:
    text with a prompt a line, or JSONL, JSON, CSV or TSV with a column `prompt` (or `caption`, `text`); those of
    GenEval, GenEval 2, DPG-Bench and DrawBench are such.

    `owner/name` or `owner/name:file` is a data set of the Hub with such a file, which is downloaded. `limit`: that
    many, evenly over all, so that every category of a suite has its share. Raises DiffscaleError for a file without
    prompts, UnknownName for what is neither.
    """
    if source in (suites := plugins("suites")):
        # Two classes of ImageNet may be called alike.
        different = {(getattr(prompt, "class_id", None), prompt): prompt for prompt in suites[source]()}
        return evenly(list(different.values()), limit)
    return evenly(list(dict.fromkeys(prompt for prompt, _ in _with_categories(source))), limit)


def categories(source: str) -> dict[str, str]:
    """The category of each prompt of a file that has a column `category` (or `tag`); empty for all else.

    Raises as `load` does.
    """
    if source in plugins("suites"):
        return {}
    return {prompt: category for prompt, category in _with_categories(source) if category}


def evenly(prompts: Sequence[T], limit: int | None) -> list[T]:
    """`limit` of the prompts, evenly over all; None, or more than there are, is all of them."""
    n = len(prompts) if limit is None else min(limit, len(prompts))
    return [prompts[i * len(prompts) // n] for i in range(n)]


def read_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a CSV, TSV, JSON (a list of prompts or objects) or JSONL file; of others a `prompt` for each line.

    Raises DiffscaleError for a file that cannot be read; of JSONL it names the line.
    """
    kinds = OSError, ValueError, TypeError, RecursionError, csv.Error
    with explained(f"The prompts in {file} cannot be read ({{why}}).", *kinds):
        text, kind = read_text(file), file.suffix.lower()
        if kind in (".csv", ".tsv"):
            sign = "\t" if kind == ".tsv" else ","
            return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=sign, strict=True))
        if kind == ".json":
            content = json.loads(text)
            if not isinstance(content, list):
                raise TypeError("it is no list of prompts or rows")
            return [{"prompt": row} if isinstance(row, str) else dict(row) for row in content]
    if kind == ".jsonl":
        return parse_jsonl(text, file)
    return [{"prompt": line} for line in split_lines(text)]


def text_in(row: Mapping[str, Any], columns: Sequence[str]) -> str:
    """What a row has in the first of `columns`, named in any case, that is not blank (0 is not), else ""."""
    by_name = {str(name).strip().lower(): "" if value in (None, [], {}) else str(value) for name, value in row.items()}
    return next((by_name[name] for name in columns if by_name.get(name, "").strip()), "")


def _with_categories(source: str) -> list[tuple[str, str]]:
    """The prompts of a file or a data set, and their categories, empty where none is said."""
    file = Path(source)
    if not file.is_file():
        if not _HUB.fullmatch(source) or Path(source.partition(":")[0]).suffix.lower() in _SUFFIXES:
            if source == DEFAULT_SUITE:
                raise UnknownName(f"The suite {source} {HOW_TO_GET_SHAPES}")
            if not file.suffix and "/" not in source:
                raise unknown("suite", source, plugins("suites"))
            raise DiffscaleError(
                f"There is no file {source}; give one with prompts, or a suite: {', '.join(plugins('suites'))}."
            )
        file = _download(source)
    prompts = [(text_in(row, COLUMNS).strip(), text_in(row, CATEGORIES).strip()) for row in read_rows(file)]
    if not prompts:
        raise DiffscaleError(f"{file} holds no prompts.")
    if not all(prompt for prompt, _ in prompts):
        raise DiffscaleError(f"The prompts in {file} cannot be read; it needs a column `prompt` (a row has none).")
    return prompts


def _download(source: str) -> Path:
    """The file of prompts in the data set `owner/name`, or `owner/name:file`."""
    # What finds files is of no use without the Hub.
    from httpx2 import RequestError
    from huggingface_hub import HfApi, hf_hub_download

    repository, _, name = source.partition(":")
    unreadable = f"{source} is no file, and no data set of the Hub that can be read ({{why}})."
    with explained(unreadable, OSError, ValueError, RequestError):  # the last: no connection, of the listing alone
        if not name:
            files = HfApi().list_repo_files(repository, repo_type="dataset")
            readable = [file for file in files if Path(file).suffix.lower() in _SUFFIXES]
            if len(readable) != 1:
                listed = ", ".join(sorted(readable)[:20]) or "none"
                raise DiffscaleError(
                    f"The data set {repository} has {listed} of the files that hold prompts ({', '.join(_SUFFIXES)}): "
                    f"name one as {repository}:FILE."
                )
            name = readable[0]
        return Path(hf_hub_download(repository, name, repo_type="dataset"))
