"""Evaluation prompts are kept out of training: found by what they mean, reported, and dropped."""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from diffscale._util.errors import DiffscaleError
from diffscale.registry import plugins
from diffscale.suites import prompts
from diffscale.train.data.dataset import Dataset, Leaked

SHOWN: Final = 5


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
