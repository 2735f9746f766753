"""Pictures for people: single samples and grids of candidates with their scores."""

import math
from collections.abc import Sequence
from typing import Any, Final

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from diffscale._util.pixels import eight_bit
from diffscale.report.text import drawable, fitting, one_line

_LEAST: Final = 128  # pixels a side below which a picture is enlarged
_PAPER: Final = (255, 255, 255)
_INK: Final = (40, 40, 40)
_ACCENT: Final = (0, 110, 60)


def to_pil(image: Tensor) -> Image.Image:
    """A float picture [3, H, W] in [0, 1] as an 8-bit RGB picture of the same size."""
    return Image.fromarray(eight_bit(image).permute(1, 2, 0).numpy(), "RGB")


def enlarge(picture: Image.Image, least: int = _LEAST) -> Image.Image:
    """The picture by the smallest whole factor that makes its shorter side at least `least`, without blur."""
    factor = math.ceil(least / min(picture.size))
    if factor <= 1:
        return picture
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)


def shrink(picture: Image.Image, most: int = 256) -> Image.Image:
    """The picture with its longer side at most `most` pixels: grids of large pictures stay handy."""
    small = picture.copy()
    small.thumbnail((most, most), Image.Resampling.LANCZOS)
    return small


def grid(
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    title: str,
    mark: int | None = None,
    columns: int | None = None,
) -> Image.Image:
    """A sheet of equally large pictures, row by row, each with its caption below; `mark` is framed.

    `columns`: pictures a row; None makes the sheet about square.

    Raises ValueError without pictures.
    """
    if not pictures:
        raise ValueError("a grid needs at least one picture")
    tiles = [enlarge(picture) for picture in pictures]
    width, height = tiles[0].size
    columns = columns or max(1, min(len(tiles), math.ceil(math.sqrt(len(tiles) * 1.3))))
    rows = math.ceil(len(tiles) / columns)
    gap, line, head = 8, 20, 36
    sheet = Image.new("RGB", (columns * (width + gap) + gap, head + rows * (height + line + gap) + gap), _PAPER)
    draw = ImageDraw.Draw(sheet)
    _write(draw, (gap, 9), title, sheet.width - 2 * gap, 14, _INK, "la")
    for i, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        left, top = gap + i % columns * (width + gap), head + i // columns * (height + line + gap)
        if i == mark:
            draw.rectangle((left - 3, top - 3, left + width + 2, top + height + 2), outline=_ACCENT, width=3)
        sheet.paste(tile, (left, top))
        ink = _ACCENT if i == mark else _INK
        _write(draw, (left + width / 2, top + height + 3), caption, width, 12, ink, "ma")
    return sheet


def _write(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, width: float, size: float, ink: Any, anchor: str
) -> None:
    """Write one line that is at most `width` pixels wide."""
    file, shown = drawable(one_line(text))
    font = ImageFont.truetype(file, size)
    draw.text(at, fitting(shown, lambda line: draw.textlength(line, font) <= width), ink, font, anchor)
