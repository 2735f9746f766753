"""`report.html`: what a run found, on one page that needs no network and no server.

The pages of `generate`, `bench` and `train` are templates of one layout beside this file. What users typed is escaped
by jinja2, and pictures are inlined as small WebP files, so that a page can be sent to somebody as it is.
"""

import base64
import io
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import write_text
from diffscale._util.numbers import rounded
from diffscale._util.pixels import pixels, read_picture
from diffscale.report.pictures import shrink

REPORT: Final = "report.html"
INLINED: Final = 64
"""Small pictures that a page holds itself; further ones are shown from the files beside it."""
_LARGE: Final = 640  # pixels a side of the pictures that a page begins with
_QUALITIES: Final = (85, 65, 45, 25)
_MOST_BYTES: Final = 30_000  # of a small picture; 64 of them in base64 are 2.6 MB
_UNITS: Final = ("", "k", "M", "G", "T", "P", "E")


@dataclass
class PagePictures:
    """The pictures of a page, by their places in the `folder` of the run, beside which the page lies."""

    folder: Path
    _small: int = field(default=0, init=False)

    def large(self, name: str | None) -> str:
        """The source of a picture that the page begins with; empty where there is none that can be read."""
        return _inlined(_opened(self.folder, name), _LARGE, 10 * _MOST_BYTES)

    def small(self, name: str | None) -> str:
        """The source of one of many pictures; the first `INLINED` of them are in the page itself."""
        if self._small >= INLINED:
            return self.link(name) if name and (self.folder / name).is_file() else ""
        source = _inlined(_opened(self.folder, name), 256, _MOST_BYTES)
        self._small += bool(source)
        return source

    @staticmethod
    def link(name: str | None) -> str:
        """The address of a file beside the page."""
        return quote(name or "")


def write(folder: Path, template: str, **content: Any) -> Path:
    """Fill the page `template` with `content`, and write it to `folder`; errors pass through, see `text.drawing`."""
    text = _TEMPLATES.get_template(template).render(pictures=PagePictures(folder), **content)
    # Half of a surrogate pair, which users can type and JSON can hold, is no UTF-8.
    write_text(folder / REPORT, text.encode(errors="replace").decode())
    return folder / REPORT


def large_number(value: float) -> str:
    """A number of operations, such as 1.2 T."""
    power = 0
    while abs(value) >= 1000 and power < len(_UNITS) - 1:
        value, power = value / 1000, power + 1
    return f"{value:.3g} {_UNITS[power]}".strip()


def settings_table(settings: dict[str, Any]) -> list[tuple[str, str]]:
    """Settings as a page lists them: those that say something, lists as texts."""
    shown = {name: value for name, value in settings.items() if value not in (None, [], {}, False)}
    return [(name, ", ".join(map(str, v)) if isinstance(v, list) else str(v)) for name, v in shown.items()]


def _opened(folder: Path, name: str | None) -> Image.Image | None:
    """A picture in `folder`; None for one that is not there, broken, or outside of it."""
    path = folder / (name or "")
    with suppress(DiffscaleError):
        if name and path.resolve().is_relative_to(folder.resolve()):
            return read_picture(path, lambda picture: Image.fromarray(pixels(picture), "RGB"), "")
    return None


def _inlined(picture: Image.Image | None, side: int, most: int) -> str:
    """A picture as an address that holds it, in WebP, with at most `side` pixels a side and about `most` bytes."""
    if picture is None:
        return ""
    small, data = shrink(picture, side), b""
    for quality in _QUALITIES:
        file = io.BytesIO()
        small.save(file, "WEBP", quality=quality, method=4)
        data = file.getvalue()
        if len(data) <= most:
            break
    return f"data:image/webp;base64,{base64.b64encode(data).decode()}"


def _signed(value: float, digits: int = 3) -> str:
    return rounded(value, digits, sign=True)


def _gaps(values: Iterable[float]) -> list[float]:
    """Each value less the one before it, the first less nothing."""
    listed = list(values)
    return [now - before for before, now in zip([0, *listed], listed, strict=False)]


_TEMPLATES: Final = Environment(
    loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=select_autoescape(["html"]),
    trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
)  # fmt: skip
_TEMPLATES.filters |= {"rounded": rounded, "signed": _signed, "large": large_number, "gaps": _gaps}
