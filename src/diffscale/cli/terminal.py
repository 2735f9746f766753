"""What a command shows on the terminal: bars of work on its way, and tables."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from diffscale.models.dtypes import DtypeChoice


def plain_console(**options: Any) -> Console:
    """A console that shows texts as they are: what users typed is no markup."""
    return Console(soft_wrap=True, highlight=False, markup=False, emoji=False, **options)


def quiet_console() -> Console:
    """Where a command prints; diffusers and transformers say no more beside it.

    They show no loading bars, give no advice about image processors that are not used, and do not tell of functions
    that they will rename.
    """
    # Imported late: they take seconds.
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"(diffusers|transformers)\.")
    return plain_console()


@contextmanager
def progress_bars(console: Console, unit: str = "", transient: bool = False) -> Iterator[Any]:
    """Yield a callback `progress(what, done, total, **values)` that shows a bar for each `what`, counted in `unit`.

    Of the values the best score, the loss, the reward and what workers do are shown. `transient`: the bars vanish at
    the end.
    """
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[more]}", markup=False),
    )
    bars = Progress(*columns, TimeRemainingColumn(), console=console, transient=transient)
    tasks: dict[str, TaskID] = {}

    def progress(what: str, done: int, total: int, **values: Any) -> None:
        if not tasks:
            bars.start()  # no sooner: bars that show nothing leave an empty line
        if what not in tasks:
            tasks[what] = bars.add_task(what, more=unit)
        numbers = {name: values[name] for name in ("best", "loss", "reward") if name in values}
        shown = [f"{name} {value:.4g}" for name, value in numbers.items() if math.isfinite(value)]
        shown += [values["workers"]] if "workers" in values else []
        more = ", ".join([unit, *shown] if unit else shown)
        bars.update(tasks[what], completed=done, total=total, more=more)

    try:
        yield progress
    finally:
        if tasks:
            bars.stop()


def print_table(
    console: Console, columns: Sequence[str], rows: Iterable[Sequence[str]], numbers: Sequence[str] = ()
) -> None:
    """Print a table without lines, unless it has no rows; the columns `numbers` are aligned to the right."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        # Long names go on in the next line; cut off, two of them could look alike.
        table.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    if table.row_count:
        console.print(table, soft_wrap=False)


def print_warning(console: Console, text: str, kind: str = "warning") -> None:
    """Print a sentence of which the first word, `kind`, is yellow."""
    console.print(Text.assemble((f"{kind}:", "yellow"), " ", text))


def print_dtype(console: Console, choice: DtypeChoice) -> None:
    """Say which dtype `auto` is, where one was chosen; it is a warning where it is slow."""
    if choice.slow:
        print_warning(console, choice.why)
    elif choice.why:
        console.print(choice.why)
