"""Bars, tables and warnings on the terminal."""

from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from diffscale._util.numbers import rounded
from diffscale.cli import main
from diffscale.cli.evaluate import _print_results
from diffscale.cli.generate import _print_summary
from diffscale.cli.main import _format_warning
from diffscale.cli.terminal import plain_console, print_table, print_warning, progress_bars


def _console() -> Console:
    return plain_console(file=io.StringIO(), width=120, force_terminal=True, no_color=True)


def _shown(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_bars_show_what_is_done_and_the_figures_that_people_watch() -> None:
    console = _console()
    with progress_bars(console, "NFE") as progress:
        progress("[a] search", 0, 8, best=float("-inf"), seconds=3.0)
        progress("another", 1, 2, loss=0.25, reward=2.0)
        progress("[a] search", 8, 8, best=1.23456)
    first, second = _shown(console).splitlines()[-3:-1]
    assert "[a] search" in first and "8/8" in first and "NFE, best 1.235" in first
    assert "1/2" in second and "NFE, loss 0.25, reward 2" in second
    assert "inf" not in _shown(console) and "seconds" not in _shown(console)


def test_bars_of_nothing_show_nothing() -> None:
    for interactive in (True, False):
        console = plain_console(file=io.StringIO(), force_terminal=interactive)
        with progress_bars(console, "pictures", transient=True):
            pass
        assert _shown(console) == ""


def test_no_name_becomes_an_emoji() -> None:
    console = _console()
    with progress_bars(console) as progress:
        progress("ed:heart:1 | ed:v:2", 1, 2)
    print_table(console, ("search", ":v:"), [("ed:heart:1", ":warning:")])
    print_warning(console, "ed:v:2 fell")
    console.print(":heart: ed:v:2")
    shown = _shown(console)
    assert not set(shown) & set("✌❤⚠")
    assert all(text in shown for text in ("ed:heart:1 | ed:v:2", ":v:", ":warning:", "ed:v:2 fell", ":heart: ed:v:2"))


def test_long_names_go_on_in_the_next_line_of_a_table() -> None:
    console = _console()
    names = [f"module_of_a_long_name:search_of_a_long_name population={n}" for n in (3, 5)]
    print_table(console, ("search", "verifier", "n"), [(name, "verifier " * 9, "1") for name in names], numbers=("n",))
    assert "population=3" in _shown(console) and "population=5" in _shown(console)


def test_small_numbers_keep_their_digits() -> None:
    assert [rounded(value) for value in (0.0, 1.2345, -0.0123, 0.00012345, 12345.6)] == [
        "0.000", "1.234", "-0.012", "0.000123", "12345.600"
    ]  # fmt: skip
    assert rounded(1e-7, 4, sign=True) == "+1e-07" and rounded(0.25, 4, sign=True) == "+0.2500"


def test_a_warning_of_ours_is_a_sentence_without_a_place_in_our_code() -> None:
    ours, others = (_format_warning("mind this", UserWarning, file, 3) for file in (main.__file__, __file__))
    assert ours == "warning: mind this\n" and "test_terminal.py:3: UserWarning: mind this" in others


def test_one_picture_has_no_interval() -> None:
    console = _console()
    metric = {"mean": 0.5, "low": 0.5, "high": 0.5, "dropped": 0}
    _print_results(console, {"pictures": 1, "metrics": {"clip": metric, "aesthetic": metric | {"low": 0.25}}})
    _, one, two, end = (line.split() for line in _shown(console).splitlines())
    assert one[:3] == ["clip", "0.500", "-"] and two[:5] == ["aesthetic", "0.500", "0.250", "to", "0.500"]
    assert end[:2] == ["1", "picture;"]


def test_dropped_candidates_are_told() -> None:
    console, end = _console(), {"score": 0.5, "image": "best.png"}
    summary = {
        "verifier": "clip",
        "candidates": 4,
        "dropped": 3,
        "nfe": 8,
        "seconds": 1.0,
        "best": end,
        "baseline": end,
        "compared": [],
    }
    _print_summary(console, {**summary, "judges": {}}, Path("out"))
    assert "warning: 3 of 4 candidates could not be scored" in _shown(console)


def test_tables_and_warnings_show_texts_as_they_are() -> None:
    console = _console()
    print_table(console, ("name", "n"), [], numbers=("n",))
    assert _shown(console) == ""
    print_table(console, ("name", "n"), [("[red]x", "1"), ("y", "200")], numbers=("n",))
    print_warning(console, "mind [this]")
    print_warning(console, "so it is", "note")
    lines = [line.rstrip() for line in _shown(console).splitlines()]
    assert "[red]x    1" in lines and "y       200" in lines
    assert "warning: mind [this]" in lines and "note: so it is" in lines
