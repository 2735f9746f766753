"""Data sets of the Hugging Face Hub, and local copies of them, through the library `datasets`.

Columns as published: `image` and `text` in reach-vb/pokemon-blip-captions and lambdalabs' original; `image`, `en_text`
and `zh_text` in svjack/pokemon-blip-captions-en-zh; `jpg` and `json` with a `prompt` in the WebDataset shards of
jackyhate/text-to-image-2M; `jpg_0`, `jpg_1` (bytes), `label_0` and `caption` in yuvalkirstain/pickapic_v1 and _v2.
"""

import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.train.data.dataset import Dataset, Want, preference_pairs

IMAGES: Final = ("image", "jpg", "jpeg", "png", "webp", "img")
CAPTIONS: Final = ("text", "caption", "prompt", "en_text", "txt", "json.prompt", "json.caption", "json.text")
_PAIR: Final = ("jpg_0", "jpg_1", "label_0", "caption")


@dataclass(frozen=True)
class HubOptions:
    """How a data set is read; names as the flags of diffusers' training scripts.

    `caption_column` may look into an object, as `json.prompt`. `data_files`: only these files of the repository, such
    as one shard of many; the library loads all of a split otherwise.
    """

    image_column: str | None = None
    caption_column: str | None = None
    split: str = "train"
    config_name: str | None = None
    data_files: tuple[str, ...] | None = None
    cache_dir: str | None = None


def load(source: str, want: Want, options: HubOptions) -> Dataset:
    """A data set by its id, or from a folder with its files.

    For "prompts" the pictures are not touched. A column is the one given, else the first known name. Of a list of
    captions the first counts. Rows without a caption, and ties, are left out. Raises DiffscaleError if the library, the
    data set or a column is missing.
    """
    table = _table(source, options)
    if want == "pairs":
        return _pairs(source, table)
    caption = _column(options.caption_column, CAPTIONS, table, source, "caption")
    column, *below = caption.split(".")
    texts = [_text(value, below) for value in table.select_columns([column])[:][column]]
    captions = {row: text for row, text in enumerate(texts) if text is not None}
    if not captions:
        raise DiffscaleError(f"The column {caption!r} of {source} holds no captions: name another caption column.")
    missing = len(texts) - len(captions)
    notes = (f"{missing} of {len(texts)} rows of {source} have no caption and are left out.",) if missing else ()
    prompts = list(captions.values())
    if want == "prompts":
        return Dataset(source, prompts, notes=notes)
    image = _reader(table, _column(options.image_column, IMAGES, table, source, "image"))
    return Dataset(source, prompts, 1, lambda row, _: image(row), list(captions), notes)


def _pairs(source: str, table: Any) -> Dataset:
    lacking = [name for name in _PAIR if name not in table.column_names]
    if lacking:
        raise DiffscaleError(
            f"{source} is not in the layout of Pick-a-Pic: it lacks {', '.join(lacking)}, and has "
            f"{', '.join(table.column_names)}."
        )
    plain = table.select_columns(["label_0", "caption"])[:]
    readers = [_reader(table, name) for name in _PAIR[:2]]
    return preference_pairs(source, plain["caption"], plain["label_0"], lambda row, side: readers[side](row))


def _table(source: str, options: HubOptions) -> Any:
    if importlib.util.find_spec("datasets") is None:
        raise DiffscaleError(
            f'Reading {source} needs the library datasets, which is not installed: pip install "diffscale[train]".'
        )
    import datasets  # an extra, and slow to import

    try:
        return datasets.load_dataset(
            source,
            options.config_name,
            split=options.split,
            data_files=None if options.data_files is None else {options.split: list(options.data_files)},
            cache_dir=options.cache_dir,
        )
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise DiffscaleError(
            f"The data set {source!r} could not be loaded: check its id, split and configuration, and the network; one "
            f"with terms of use needs them accepted on its page and `hf auth login` ({first_line(error)})."
        ) from error


def _column(given: str | None, known: Sequence[str], table: Any, source: str, what: str) -> str:
    columns = table.column_names
    if given is not None:
        if given.split(".")[0] not in columns:
            raise DiffscaleError(f"{source} has no column {given!r}: choose one of {', '.join(columns)}.")
        return given
    for name in known:
        column, *below = name.split(".")
        if column in columns and (not below or (len(table) and _text(table[0][column], below) is not None)):
            return name
    raise DiffscaleError(f"No {what} column is known in {source}: name it, out of {', '.join(columns)}.")


def _text(value: Any, below: Sequence[str]) -> str | None:
    for name in below:
        if isinstance(value, str | bytes):
            try:
                value = json.loads(value)
            except ValueError:
                return None
        value = value.get(name) if isinstance(value, dict) else None
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return value if isinstance(value, str) else None


def _reader(table: Any, column: str) -> Callable[[int], bytes]:
    """Encoded bytes of a picture by row, whether the column holds pictures or bytes."""
    import datasets

    narrow = table.select_columns([column])
    if isinstance(narrow.features[column], datasets.Image):
        narrow = narrow.cast_column(column, datasets.Image(decode=False))

    def read(row: int) -> bytes:
        value = narrow[row][column]
        if isinstance(value, dict):
            value = value["bytes"] if value.get("bytes") is not None else Path(value["path"]).read_bytes()
        if not isinstance(value, bytes):
            raise ValueError(f"the column {column!r} holds no picture")
        return value

    return read
