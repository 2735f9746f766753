"""`diffscale bench`: searches x verifiers x budgets on many prompts."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from diffscale._util.errors import DiffscaleError
from diffscale._util.numbers import rounded
from diffscale.bench.config import BenchConfig, check_names
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import print_dtype, print_table, print_warning, progress_bars, quiet_console


@settings_from_flags(BenchConfig)
def bench(
    settings: BenchConfig,
    output: Annotated[Path, typer.Option(help="Folder; what is done in it is not done again.")] = Path("outputs/bench"),
) -> None:
    """Compare searches, verifiers and budgets on many prompts."""
    check_names(settings.search, settings.verifiers, settings.allocation)
    # Imported late: diffusers takes seconds, and what is wrong should be told at once.
    from diffscale.bench import run as job
    from diffscale.bench.hacking import sentence_of_unread
    from diffscale.bench.report import write
    from diffscale.suites import prompts as prompt_files
    from diffscale.verifiers.heldout import judge_name

    job.check_folder(output)
    console = quiet_console()
    prompts = prompt_files.load(settings.suite, settings.limit)
    settings = job.settle(settings, output, partial(print_dtype, console))
    with progress_bars(console, "NFE") as progress:
        judge = judge_name(settings.model)
        samples = job.run(settings, prompts, output, progress, judges=[] if judge is None else [judge])
    rows = write(settings, job.cells(settings), samples, output)
    _print_results(console, rows, judge, sentence_of_unread(samples, judge), output)
    if all(row["failed"] == row["samples"] for row in rows):
        raise DiffscaleError(f"All searches failed, see results.json in {output}: {rows[0]['errors'][0]}")


def _print_results(
    console: Console, rows: Sequence[dict[str, Any]], judge: str | None, unread: str, output: Path
) -> None:
    from diffscale.bench.hacking import KEPT, sentence
    from diffscale.bench.series import Cell

    choose = next((row["choose"] for row in rows if "choose" in row), None)
    numbers = ("NFE", "score", "first sample", *(("value",) if choose else ()), "judge", "kept", "seconds", "failed")
    table = [{**_cells(row, judge), "search": row["search"], "verifier": row["verifier"]} for row in rows]
    there = {name for cells in table for name in cells}
    shown = tuple(name for name in ("search", "verifier", *numbers) if name in there)
    print_table(console, shown, ([cells.get(name, "-") for name in shown] for cells in table), numbers)
    of_judge = "; * searched or chosen by the judge itself" if any("judge" in cells for cells in table) else ""
    console.print(f"means over prompts and half their 95% bootstrap intervals{of_judge}")
    if unread:
        print_warning(console, unread)
    if choose:
        console.print(f"value: what {choose} says, which chose the pictures")
    if any("kept" in cells for cells in table):
        console.print(f"kept: {KEPT}")
    if allocation := next((row["allocation"] for row in rows if "allocation" in row), ""):
        shared = f"prompts share one budget by {allocation}: NFE are means, samples.jsonl has what each was given"
        console.print(shared, markup=False)
    for row in rows:
        cell = Cell(row["search"], row["verifier"], row["budget"], allocation=row.get("allocation", ""))
        if row["errors"]:
            more = f" (and {len(row['errors']) - 1} other errors)" if len(row["errors"]) > 1 else ""
            failed = f"{row['failed']} of {row['samples']} searches of {cell.name} failed"
            print_warning(console, f"{failed}: {row['errors'][0]}{more}")
        for fall in row.get("hacked", []):
            print_warning(console, sentence(cell, fall))
    console.print(f"report.html, results.json, results.csv, samples.jsonl, pictures and plots are in {output}")


def _cells(row: dict[str, Any], judge: str | None) -> dict[str, str]:
    """What the table shows of a row, by column, apart from its names; "-" where a column is missing."""
    if "score" not in row:
        return {"NFE": str(row["budget"]), "failed": str(row["failed"])}
    means = {"score": "score", "first sample": "baseline_score", "value": "value"}
    cells = {column: _mean(row[name]) for column, name in means.items() if name in row}
    if "judge" in row:
        cells["judge"] = _mean(row["judge"]) + ("*" if row["judge_searched_with"] else "")
    if judge in row["kept"]:
        cells["kept"] = _mean(row["kept"][judge])
    numbers = {"NFE": f"{row['nfe']:,.0f}", "seconds": f"{row['seconds']:.1f}", "failed": str(row["failed"])}
    return cells | numbers


def _mean(interval: dict[str, float]) -> str:
    return f"{rounded(interval['mean'])} ±{rounded((interval['high'] - interval['low']) / 2)}"
