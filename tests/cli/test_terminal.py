"""Bars, tables and warnings on the terminal."""

from __future__ import annotations

import io

from rich.console import Console

from diffscale.cli.terminal import print_table, print_warning, progress_bars


def _console() -> Console:
    return Console(file=io.StringIO(), width=120, soft_wrap=True, highlight=False, force_terminal=True, no_color=True)


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
