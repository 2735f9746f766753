"""JourneyDB (Sun et al. 2023, arXiv 2307.00716), which is no table on the Hub but archives and a file of lines.

`data/train/train_anno_realease_repath.jsonl.tgz` (spelt so) has a line for each picture, with `img_path`, the `prompt`
that Midjourney was given, and under `Task2` a `Caption` that GPT-3.5 made of it; `data/train/imgs/000.tgz` to `199.tgz`
have the pictures. Terms of use must be accepted on its page.
"""

import json
import os
import shutil
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError

from diffscale._util.errors import DiffscaleError, explained, first_line
from diffscale._util.files import each_line, inside
from diffscale.train.data.dataset import Dataset

ID: Final = "JourneyDB/JourneyDB"
ANNOTATIONS: Final = "train_anno_realease_repath.jsonl"
ARCHIVES: Final = tuple(f"data/train/imgs/{number:03d}.tgz" for number in range(200))


def fetch(folder: Path, archives: tuple[str, ...] | None = None) -> Path:
    """`folder` with the lines and the pictures of `archives` (all 200 if None); those that are there are left alone.

    Raises DiffscaleError if a file cannot be had or unpacked.
    """
    if not (folder / ANNOTATIONS).is_file():
        _unpack(f"data/train/{ANNOTATIONS}.tgz", folder, ANNOTATIONS)
    for archive in archives or ARCHIVES:
        name = Path(archive).name.removesuffix(".tgz")
        if not (folder / "imgs" / name).is_dir():
            _unpack(archive, folder / "imgs", name)
    return folder


def load(folder: Path, caption: str | None = None) -> Dataset:
    """The pictures in `folder`/imgs that a line tells of; `caption` is a name in the lines (`prompt` if None).

    `Task2.Caption` looks into an object. Raises DiffscaleError if there is no such picture or caption.
    """
    here = {
        f"{part.name}/{name}" for part in sorted((folder / "imgs").glob("*")) if part.is_dir()
        for name in os.listdir(part)
    }  # fmt: skip
    prompts: dict[str, Any] = {}
    for number, line in enumerate(each_line(folder / ANNOTATIONS), 1):
        unreadable = f"Line {number} of {folder / ANNOTATIONS} cannot be read: fetch it anew."
        with explained(unreadable, ValueError, KeyError, TypeError, RecursionError):
            row = json.loads(line)
            name = str(row["img_path"]).removeprefix("./")
        if name in here:
            prompts[name] = _look_up(row, (caption or "prompt").split("."))
    names = [name for name, prompt in prompts.items() if isinstance(prompt, str)]
    if not names:
        raise DiffscaleError(
            f"{folder} has no pictures with a caption: its lines must have {caption or 'prompt'!r}, and imgs/000 and "
            "so on the pictures that img_path names."
        )
    missing = len(prompts) - len(names)
    notes = (f"{missing} of {len(prompts)} pictures of JourneyDB have no caption and are left out.",) if missing else ()
    read = lambda row, _: (folder / "imgs" / names[row]).read_bytes()  # noqa: E731
    return Dataset(ID, [prompts[name] for name in names], 1, read, range(len(names)), notes)


def _look_up(row: Any, path: list[str]) -> Any:
    for name in path:
        row = row.get(name) if isinstance(row, dict) else None
    return row


def _unpack(archive: str, folder: Path, name: str) -> None:
    """Fetch an archive of the repository and put what it holds as `name` into `folder`, whole or not at all."""
    try:
        packed = hf_hub_download(ID, archive, repo_type="dataset")
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=".", dir=folder) as fresh, tarfile.open(packed) as tar:
            # By hand, as Python 3.11.0 to 3.11.3 have no filter against paths that lead out of the folder.
            for member in (each for each in tar if each.isfile()):
                place = inside(Path(fresh), member.name, Path(packed))
                place.parent.mkdir(parents=True, exist_ok=True)
                with tar.extractfile(member) as packed_file, place.open("wb") as file:  # type: ignore[union-attr]
                    shutil.copyfileobj(packed_file, file)
            next(path for path in Path(fresh).rglob("*") if path.name == name).replace(folder / name)
    except (OSError, ValueError, tarfile.TarError, StopIteration, HfHubHTTPError) as error:
        raise DiffscaleError(
            f"{archive} of {ID} could not be had: accept its terms on its page and log in (`hf auth login`), check the "
            f"network and the disk, or give a folder that holds {ANNOTATIONS} and imgs/ ({first_line(error)})."
        ) from error
