"""Users' text in pictures and plots: it is never markup, has one line, fits, and is drawn in fonts that have it.

What fails in a drawing is told and no more, see `drawing`.
"""

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, Final

import matplotlib
from matplotlib import font_manager
from matplotlib.ft2font import FT2Font
from matplotlib.text import Text

from diffscale._util.errors import raised
from diffscale._util.files import replacing

_MOST: Final = 400  # characters that a line of a picture may hold
_LINES, _LONGEST = 3, 160  # of any text of a plot
_FONT: Final = "DejaVu Sans"  # which matplotlib brings along
_MISSING: Final = "\u25a1"  # a white square, which that font has
_PLAIN: Final = {"text.usetex": False, "text.parse_math": False, "axes.formatter.use_mathtext": False,
                 "font.family": [_FONT]}  # fmt: skip


class NotDrawn(UserWarning):
    """A picture or plot of results could not be drawn."""


@contextmanager
def drawing(what: str) -> Iterator[None]:
    """Within it `what` is drawn, text as it is: whatever fails is told as a NotDrawn, since results are worth more.

    What libraries warn of, such as glyphs that a font lacks, is left out.
    """
    try:
        with warnings.catch_warnings(), matplotlib.rc_context(_PLAIN):
            warnings.simplefilter("ignore")
            yield
    except Exception as error:
        warnings.warn(f"{what} could not be drawn, all else is there ({raised(error)}).", NotDrawn, stacklevel=1)


def one_line(text: str, most: int = _MOST) -> str:
    """`text` without line breaks and signs that cannot be seen, and its middle cut out where it is above `most`."""
    # No more is looked at than could be shown: a text may have megabytes.
    ends = (text,) if len(text) <= 4 * most else (text[: 2 * most], text[-2 * most :])
    clean = ["".join(sign if sign.isprintable() else " " for sign in end).split() for end in ends]
    shown = " … ".join(" ".join(words) for words in clean)
    return shown if len(shown) <= most else f"{shown[: most - most // 2 - 1]}…{shown[len(shown) - most // 2 :]}"


def fitting(text: str, fits: Callable[[str], bool]) -> str:
    """The longest beginning of the one line of `text` that `fits`, with an ellipsis where it is cut."""
    line = one_line(text)
    if fits(line):
        return line
    least, most = 0, len(line)
    while least < most:
        middle = (least + most + 1) // 2
        least, most = (middle, most) if fits(f"{line[:middle]}…") else (least, middle - 1)
    return f"{line[:least]}…"


def label(text: str) -> str:
    """`text` as the label of a line or axis: short, and shown by legends, which leave out what begins with "_"."""
    short = one_line(text, 80)
    return f" {short}" if short.startswith("_") else short


def fonts(text: str) -> tuple[list[Any], str]:
    """Fonts that have all of `text` together, as matplotlib's entries, the usual one first; and what they can show.

    Signs that no installed font has become white squares.
    """
    every = font_manager.fontManager.ttflist
    found = [next(entry for entry in every if entry.name == _FONT)]
    missing = frozenset(text) - _covered(found[0].fname, frozenset(text))
    for entry in every:
        if missing and entry.style == "normal" and (covered := _covered(entry.fname, missing)):
            missing -= covered
            found.append(entry)
    return found, "".join(_MISSING if sign in missing else sign for sign in text)


def drawable(text: str) -> tuple[str, str]:
    """The file of the one font that has most of `text`, and what of it that font can show."""
    signs = frozenset(text)
    file = max((entry.fname for entry in fonts(text)[0]), key=lambda each: len(_covered(each, signs)))
    return file, "".join(sign if sign in _covered(file, signs) else _MISSING for sign in text)


def set_text(artist: Any, text: str) -> None:
    """Have a text of matplotlib say `text`, in fonts that have it."""
    found, shown = fonts(text)
    artist.set_text(shown)
    artist.set_fontfamily([entry.name for entry in found])


def save(figure: Any, *paths: Path, **svg: Any) -> None:
    """Write a figure of matplotlib to each of `paths`, whole or not at all; `svg`: for files of that format."""
    _fit_texts(figure)
    for path in paths:
        with replacing(path) as fresh:
            figure.savefig(fresh, **(svg if path.suffix == ".svg" else {}))


def svg_of(figure: Any) -> str:
    """A figure of matplotlib as the text of an SVG without a background."""
    _fit_texts(figure)
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return file.getvalue()


def _fit_texts(figure: Any) -> None:
    """Have no text of a figure of matplotlib more than a few lines, or long ones, and all in fonts that have it."""
    for each in figure.findobj(Text):
        given = each.get_text()
        lines = [one_line(line, _LONGEST) for line in given.split("\n", _LINES)[:_LINES]]
        if not given.isascii() or "\n".join(lines) != given:
            set_text(each, "\n".join(lines))


@lru_cache(maxsize=10_000)
def _covered(file: str, signs: frozenset[str]) -> frozenset[str]:
    """Those of `signs` that a font has; none of one that cannot be drawn at any size, or shows all signs alike."""
    try:
        font = FT2Font(file)
        usable = font.scalable and not font.family_name.startswith("Last Resort")
        return frozenset(sign for sign in signs if usable and font.get_char_index(ord(sign)))
    except (OSError, RuntimeError, ValueError):
        return frozenset()
