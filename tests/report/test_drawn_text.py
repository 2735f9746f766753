"""Whatever users type, what is drawn of it is a picture; what fails in drawing costs no result."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image, ImageDraw, ImageFont

from diffscale.bench import report
from diffscale.bench.papers import figures
from diffscale.bench.papers.recipe import LogPanel, Panel
from diffscale.report import pictures, plots, text
from diffscale.report.text import NotDrawn, drawing, fitting, label, one_line

WORST = ["two\nlines\u2028$$", r"$\frac{1}$ \x00 日本語 🙂", "y" * 3_000_000, "_"]
WIDE = {"mean": 1.0, "low": 0.5, "high": 2.0}
TYPED = [
    "two\nlines", "old\rlines\r\nand\ttabs", "\x00\x07\x1b[31m", "a\u2028b\u2029c\x85d\x0b\x0c\x1c", "\ud800 half",
    "a red circle with $$ on it", "$", r"$\frac{1}$", r"\frac{1}{0}", "$x_{", r"cost: $5 \$6", "100%",
    "a_b^c{d}~#&", "%s {0} {x}",
    "x" * 5_000, "word " * 1_000, "\n" * 5_000, "y" * 3_000_000, "日本語の長い文" * 300, "", " ", "_hidden", "_",
    "日本語", "한국어", "🙂👩‍👩‍👧 emoji", "नमस्ते", "שלום", "مرحبا", "e\u0301" * 50, "\u202egnp.exe",
    "\ufffe\uffff\U0010fffd",
    "<b>&amp;</b>", "[red]no[/red]", "![x](y)|`z`",
]  # fmt: skip


def _strips(typed: str, folder: Path) -> None:
    (folder / "pictures").mkdir(exist_ok=True)
    Image.new("RGB", (8, 8)).save(folder / "pictures" / "a.png")
    part = {"model": typed, "prompts": [typed], "series": {typed: [{"nfe": 4, "pictures": ["a.png"]}]}}
    setting: Any = SimpleNamespace(view="strips", parts={"p": SimpleNamespace(strips=1)})
    figures.draw({"parts": {"p": part}}, setting, folder)


def _logs(typed: str, folder: Path) -> None:
    setting: Any = SimpleNamespace(view="curves", panels=[], logs=[LogPanel(of=[typed], y="loss", title=typed)])
    figures.draw({"logs": {typed: [{"loss": 1.0, "seconds": 1.0}] * 3}, "parts": {}}, setting, folder)


def _scatter(typed: str, folder: Path) -> None:
    pairs = {typed: [[0.1, 0.2, 0.4]], "other": [[0.3, 0.1, 0.2]]}
    setting: Any = SimpleNamespace(view="scatter", panels=[Panel(part=typed, x=typed, y="other")], logs=[])
    figures.draw({"parts": {typed: {"pairs": pairs, "series": {}}}}, setting, folder)


def _grid(typed: str, folder: Path) -> None:
    pictures.grid([Image.new("RGB", (64, 64))] * 2, [typed, "x"], typed, mark=0).save(folder / "grid.png")


DRAWN: dict[str, Callable[[str, Path], Any]] = {
    "grid": _grid,
    "scaling": lambda typed, folder: plots.scaling([(4, 0.1), (16, 0.2)], 4, typed, typed, folder / "scaling.png"),
    "curves": lambda typed, folder: plots.curves({typed: [(4, WIDE), (8, WIDE)]}, typed, typed, folder / "c.png"),
    "crowded": lambda typed, folder: plots.curves(
        {typed + str(i): [(4, WIDE), (8, WIDE)] for i in range(6)}, typed, typed, folder / "crowded.png"
    ),
    "forest": lambda typed, folder: plots.forest(
        {typed + str(i): {typed: [WIDE], typed + "x": [WIDE | {"beyond": 1}]} for i in range(4)},
        [typed],
        typed,
        folder / "forest.png",
        typed,
    ),
    "training": lambda typed, folder: plots.training_curve([{"step": 1, typed: 1.0}], typed, typed, folder / "t.png"),
    "strips": _strips,
    "logs": _logs,
    "scatter": _scatter,
}


@pytest.fixture(autouse=True)
def _markup() -> Iterator[None]:
    """As if the user's own configuration of matplotlib had every text read as TeX."""
    with matplotlib.rc_context({"text.usetex": True, "axes.formatter.use_mathtext": True}):
        yield


@pytest.mark.parametrize("what", [*DRAWN, *(pytest.param(f"all {what}", marks=pytest.mark.slow) for what in DRAWN)])
def test_any_text_can_be_drawn_at_once_and_without_a_word(what: str, tmp_path: Path) -> None:
    every = what.startswith("all ") or what == "grid"
    what = what.removeprefix("all ")
    for typed in TYPED if every else WORST:
        began = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            with drawing(what):
                DRAWN[what](typed, tmp_path)
        assert time.process_time() - began < 5, typed[:20]
        for path in tmp_path.glob("*.png"):
            with Image.open(path) as picture:
                assert max(picture.size) < 3000, typed[:20]
                picture.load()
            path.unlink()


def test_every_drawing_of_ours_is_within_drawing_and_saved_by_save() -> None:
    sources = (Path(__file__).parents[2] / "src").rglob("*.py")
    assert [path.name for path in sources if ".savefig(" in path.read_text(encoding="utf-8")] == ["text.py"]


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError(), RecursionError("deep"), OSError(28, "No space")])
def test_what_fails_in_drawing_is_told_and_no_more(error: Exception) -> None:
    with pytest.warns(NotDrawn, match=r"The plot could not be drawn, all else is there \(.*\)\.$"), drawing("The plot"):
        raise error


def test_the_configuration_of_matplotlib_is_as_it_was() -> None:
    before = dict(matplotlib.rcParams)
    with drawing("x"):
        assert not matplotlib.rcParams["text.usetex"]
    assert dict(matplotlib.rcParams) == before


def test_text_is_one_line_and_short() -> None:
    for typed in TYPED:
        line = one_line(typed, 100)
        assert len(line) <= 100 and line.isprintable() and "  " not in line
    assert one_line("a\n b\u2028c") == "a b c" and one_line("abc" * 100, 11) == "abcab…bcabc"
    assert label("_a") == " _a" and label("a") == "a"


def test_a_title_is_the_longest_beginning_that_fits() -> None:
    draw, font = ImageDraw.Draw(Image.new("RGB", (1, 1))), ImageFont.load_default(13)
    for typed in ("a red circle above a blue square", "WWWWWWWWWWWWWWWWWWWWWWWWiiiiiiiiiiiiii", "x"):
        for width in (0, 5, 40, 77, 1000):
            fits = lambda line, width=width: draw.textlength(line, font) <= width  # noqa: E731
            cut = typed
            if not fits(typed):  # by the plain way, a character after the other
                while cut and not fits(cut + "…"):
                    cut = cut[:-1]
                cut += "…"
            assert fitting(typed, fits) == cut


def test_glyphs_that_a_font_lacks_are_taken_from_one_that_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    every = text.font_manager.fontManager.ttflist
    usual = next(entry for entry in every if entry.name == "DejaVu Sans")
    other = next(entry for entry in every if entry.name == "STIXGeneral" and entry.style == "normal")
    only = next(chr(code) for code in text.FT2Font(other.fname).get_charmap()
                if chr(code).isprintable() and not text._covered(usual.fname, frozenset(chr(code))))  # fmt: skip
    monkeypatch.setattr(text.font_manager.fontManager, "ttflist", [usual, other])
    assert text.fonts("abc") == ([usual], "abc")
    assert text.fonts(f"a{only}\U0001fae0") == ([usual, other], f"a{only}\u25a1")
    figure = Figure()
    figure.suptitle(f"a{only}")
    text.save(figure)
    (title,) = (each for each in figure.findobj(Text) if each.get_text())
    assert title.get_fontfamily() == ["DejaVu Sans", "STIXGeneral"]


def test_a_bench_keeps_its_numbers_when_its_plots_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(report.plots, "curves", fail)
    from diffscale.bench.config import BenchConfig
    from diffscale.bench.series import Cell

    sample = {"name": "n", "search": "random", "verifier": "clip", "budget": 8, "prompt": "p", "repeat": 0,
              "score": {"best": 1.0, "baseline": 0.5}, "scores": {}, "nfe": 8, "network_forwards": 8, "flops": 1.0,
              "seconds": {"a": 1.0}, "dropped": 0, "trace": [[4, 0.5], [8, 1.0]]}  # fmt: skip
    settings = BenchConfig(search=["random"], budget=[8], dtype="float32")
    with pytest.warns(NotDrawn, match="plot of clip could not be drawn"):
        (row,) = report.write(settings, [Cell("random", "clip", 8)], [sample], tmp_path)
    assert row["samples"] == 1 and (tmp_path / "results.json").exists() and (tmp_path / "results.csv").exists()
    assert np.isfinite(row["nfe"])
