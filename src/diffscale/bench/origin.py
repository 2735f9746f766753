"""What a picture says of its origin, in text chunks of its PNG file, so that it can be made again; see `again`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, ValidationError

from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.files import replacing
from diffscale._util.pixels import pixels, read_picture
from diffscale._util.versions import versions
from diffscale.bench.config import GenerateConfig
from diffscale.engine.results import Candidate, Thumbnail
from diffscale.models.options import MEANS
from diffscale.types import Wording

_CHUNK: Final = "diffscale"
_FORMAT: Final = 1
PASSING: Final = frozenset({"workers", "verifier_workers", "allow_pickles", *MEANS})
"""Settings that a picture does not state: where it is computed, and whether pickles are trusted, says who makes it."""


class Origin(BaseModel):
    """How a picture was made.

    `settings`: those of `diffscale generate` that lead to it, without `PASSING`. `repeat`: which of the searches for
    its prompt found it. `key`, `number`, `nfe`, `score`, `micro_batches`: as of `engine.results.Candidate`.
    `wording`: in what other words the model was asked. `versions`: of the libraries, see `_util.versions`.
    """

    model_config = ConfigDict(frozen=True)

    format: int = _FORMAT
    settings: dict[str, Any]
    repeat: int = 0
    key: int
    number: int
    nfe: int
    score: float
    wording: str | None = None
    micro_batches: list[tuple[int, int]] = []
    versions: dict[str, str] = {}

    @classmethod
    def of(cls, settings: Mapping[str, Any], candidate: Candidate | Thumbnail, wording: str, repeat: int = 0) -> Self:
        """The origin of a candidate that a search by `settings` found, which was drawn from `wording`."""
        other = str(wording) if isinstance(wording, Wording) else None
        return cls(
            settings=dict(settings), repeat=repeat, key=candidate.key, number=candidate.number, nfe=candidate.nfe,
            score=candidate.score, wording=other, micro_batches=list(candidate.micro_batches), versions=versions(),
        )  # fmt: skip

    @classmethod
    def of_generated(cls, settings: GenerateConfig, candidate: Candidate | Thumbnail, wording: str) -> Self:
        """The origin of a candidate of `diffscale generate`."""
        stated = settings.model_dump(mode="json", exclude=set(PASSING), exclude_none=True)
        return cls.of(stated, candidate, wording)

    def other_versions(self) -> str:
        """Which versions are others here than where the picture was made, as in "torch was 2.12, now 2.13"."""
        here = versions()
        names = [name for name in self.versions if self.versions[name] != here.get(name)]
        return ", ".join(f"{name} was {self.versions[name]}, now {here.get(name, 'missing')}" for name in names)


def save_picture(picture: Image.Image, path: Path, origin: Origin) -> None:
    """Write `picture` as a PNG to `path`, whole or not at all, with its `origin`; OSErrors pass through."""
    with replacing(path) as fresh:
        picture.save(fresh, pnginfo=_chunks(origin))


def save_pictures(folder: Path, images: Mapping[str, tuple[Image.Image, Origin]]) -> None:
    """Write pictures, by the names of their files, to the new `folder`, all of them or none."""
    with replacing(folder) as fresh:
        fresh.mkdir()
        for name, (picture, origin) in images.items():
            picture.save(fresh / name, pnginfo=_chunks(origin))


def _chunks(origin: Origin) -> PngInfo:
    """Text chunks as the PNG specification names them for any viewer, and one that has everything."""
    chunks = PngInfo()
    chunks.add_text("Software", f"diffscale {origin.versions.get('diffscale', '')}".strip())
    # Half of a surrogate pair, which JSON can hold, is no UTF-8.
    chunks.add_itxt("Description", str(origin.settings["prompt"]).encode(errors="replace").decode())
    chunks.add_text(_CHUNK, json.dumps(origin.model_dump(mode="json")))
    return chunks


def read_origin(path: Path) -> tuple[Origin, NDArray[np.uint8]]:
    """The origin that the picture `path` states, and its pixels [H, W, 3].

    Raises DiffscaleError for a file that is no whole picture, and one that states no origin or one that is broken.
    """

    def look(picture: Image.Image) -> tuple[NDArray[np.uint8], str | None]:
        # Decoded first: text may stand behind the pixels.
        return pixels(picture), getattr(picture, "text", {}).get(_CHUNK)

    found, text = read_picture(path, look, f"The picture {path} cannot be read: give another one ({{why}}).")
    if text is None:
        raise DiffscaleError(
            f"{path} does not say how it was made: give a PNG file as `diffscale generate` or `diffscale bench` wrote "
            "it; programs that save pictures anew may leave that out."
        )
    try:
        stated = json.loads(text)
        if isinstance(stated, dict) and stated.get("format", _FORMAT) != _FORMAT:
            raise DiffscaleError(f"{path} was made by another version of diffscale, which states it in another form.")
        return Origin(**stated), found
    except (ValueError, TypeError, RecursionError, ValidationError) as error:
        raise DiffscaleError(f"What {path} says of how it was made is broken ({first_line(error)}).") from error


def sources_of(settings: GenerateConfig) -> Sequence[tuple[str, str]]:
    """The settings, with their names, by which a repeated search could run code or ask a server: those with a colon."""
    named = {name: getattr(settings, name) for name in ("search", "verifier", "wordings")}
    return [(name, text) for name, text in named.items() if text is not None and ":" in text]
