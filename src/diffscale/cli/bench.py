"""`diffscale bench`: searches x verifiers x budgets on many prompts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffscale._util import config
from diffscale.bench.config import BenchConfig
from diffscale.cli.generate import pair
from diffscale.cli.loading import loads

if TYPE_CHECKING:
    from diffscale.bench.run import Cell


@loads
def bench(
    suite: Annotated[
        str, typer.Argument(metavar="SUITE|FILE", help="Prompts: a suite, or a txt, jsonl or csv file.")
    ] = "shapes-mini",
    model: Annotated[str | None, typer.Option(help="Shipped name, folder or Hub id. Default: shapes-flux.")] = None,
    search: Annotated[
        list[str] | None, typer.Option(help="Algorithm and arguments; repeatable. Default: random.")
    ] = None,
    verifier: Annotated[list[str] | None, typer.Option(help="What to search with; repeatable. Default: clip.")] = None,
    budget: Annotated[list[int] | None, typer.Option(help="NFE a prompt; repeatable. Default: 1280.")] = None,
    repeats: Annotated[int | None, typer.Option(help="Searches a prompt, each from its own noise. Default: 1.")] = None,
    limit: Annotated[int | None, typer.Option(help="Prompts, evenly over the suite. Default: all.")] = None,
    seed: Annotated[int | None, typer.Option(help="Every noise follows from it. Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of a sample. Default: the model's own.")] = None,
    pipe_arg: Annotated[list[str] | None, typer.Option(help="name=value for the pipeline's call; repeatable.")] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw, by classifier-free guidance.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most rows at once. Default: found by itself.")] = None,
    output: Annotated[Path, typer.Option(help="Folder; what is done in it is not done again.")] = Path("outputs/bench"),
    *,
    loading: dict[str, Any],
) -> None:
    """Compare searches, verifiers and budgets on many prompts."""
    flags = {
        "suite": suite, "model": model, "search": search, "verifier": verifier, "budget": budget, "repeats": repeats,
        "limit": limit, "seed": seed, "steps": steps, "pipe_args": dict(map(pair, pipe_arg)) if pipe_arg else None,
        "negative_prompt": negative_prompt, "batch_size": batch_size, **loading,
    }  # fmt: skip
    settings = config.validated(BenchConfig, {name: value for name, value in flags.items() if value is not None})

    # Imported late: diffusers takes seconds, and wrong flags should be told at once.
    from diffscale.bench import run as job
    from diffscale.bench.report import write
    from diffscale.cli.quiet import quiet
    from diffscale.suites import prompts as prompt_files

    quiet()

    console = Console(soft_wrap=True)
    prompts = prompt_files.load(settings.suite, settings.limit)
    output.mkdir(parents=True, exist_ok=True)
    with _bars(console) as told:
        samples = job.run(settings, prompts, output, told)
    rows = write(settings, job.cells(settings), samples, output)
    _tell(console, rows, output)


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """A bar for each cell, in NFE over all its prompts."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("NFE"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bars: dict[str, Any] = {}

        def told(cell: Cell, spent: int, total: int) -> None:
            if cell.name not in bars:
                bars[cell.name] = progress.add_task(cell.name, total=total)
            progress.update(bars[cell.name], completed=spent)

        yield told


def _tell(console: Console, rows: Sequence[dict[str, Any]], output: Path) -> None:
    from diffscale.bench.hacking import sentence
    from diffscale.bench.run import Cell

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("search", "verifier", "NFE", "score", "first sample", "judge", "seconds", "failed"):
        table.add_column(name, justify="left" if name in ("search", "verifier") else "right")
    for row in rows:
        if "score" not in row:
            table.add_row(row["search"], row["verifier"], str(row["budget"]), "-", "-", "-", "-", str(row["failed"]))
            continue
        judge = _shown(row["judge"]) + ("*" if row["judge_searched_with"] else "") if "judge" in row else "-"
        table.add_row(
            row["search"], row["verifier"], f"{row['nfe']:,.0f}", _shown(row["score"]), _shown(row["baseline_score"]),
            judge, f"{row['seconds']:.1f}", str(row["failed"]),
        )  # fmt: skip
    console.print(table)
    console.print(
        "means over prompts and half their 95% bootstrap intervals; * searched with the judge itself", highlight=False
    )
    for row in rows:
        cell = Cell(row["search"], row["verifier"], row["budget"])
        if row["errors"]:
            more = f" (and {len(row['errors']) - 1} other errors)" if len(row["errors"]) > 1 else ""
            console.print(
                f"[yellow]warning:[/yellow] {row['failed']} of {row['samples']} searches of {escape(cell.name)} "
                f"failed: {escape(row['errors'][0])}{more}",
                highlight=False,
            )
        for fall in row.get("hacked", []):
            console.print(f"[yellow]warning:[/yellow] {escape(sentence(cell, fall))}", highlight=False)
    console.print(f"results.json, results.csv, samples.jsonl, pictures and plots are in {output}", highlight=False)


def _shown(interval: dict[str, float]) -> str:
    return f"{interval['mean']:.3f} ±{(interval['high'] - interval['low']) / 2:.3f}"
