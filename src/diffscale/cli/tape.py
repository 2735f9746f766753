"""`diffscale tape`: record what verifiers say of many samples and of looks at them, and replay searches on that."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import check_writable, write_json
from diffscale._util.numbers import rounded
from diffscale.bench.config import check_names
from diffscale.bench.tape_config import ReplayConfig, TapeConfig
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import (
    plain_console,
    print_dtype,
    print_table,
    print_warning,
    progress_bars,
    quiet_console,
)

app = typer.Typer(no_args_is_help=True, help="Record scores once, and try searches on them without the model.")


@app.command()
@settings_from_flags(TapeConfig)
def record(
    settings: TapeConfig,
    output: Annotated[Path, typer.Option(help="File of the tape; what was recorded of it is kept beside it.")] = Path(
        "outputs/scores.tape"
    ),
) -> None:
    """Record what verifiers say of samples, of predictions on their way and of drafts."""
    check_names([], settings.verifiers)
    # Imported late: diffusers takes seconds, and what is wrong should be told at once.
    from diffscale.bench import tapes
    from diffscale.suites import prompts as prompt_files

    prompts = prompt_files.load(settings.suite, settings.limit)
    check_writable(output)
    console = quiet_console()
    with progress_bars(console, "prompts") as progress:
        tape = tapes.make(settings, prompts, output, partial(progress, "recording"), partial(print_dtype, console))
    console.print(
        f"{output} has the scores of {len(tape.prompts)} x {tape.candidates} candidates by {', '.join(tape.scores)}, "
        "for `diffscale tape replay`"
    )


@app.command()
@settings_from_flags(ReplayConfig)
def replay(
    settings: ReplayConfig,
    output: Annotated[Path | None, typer.Option(help="JSON file for the results.")] = None,
) -> None:
    """Try searches on a tape: what they find, and what random search finds for as much."""
    check_names(settings.search, [])
    # Imported late: torch takes seconds.
    from diffscale.bench import tapes
    from diffscale.tape.comparison import compare, scored
    from diffscale.tape.tape import load_tape

    if output is not None:
        check_writable(output)
    console, tape = plain_console(), load_tape(settings.tape)
    verifier = next(iter(tape.scores)) if settings.verifier is None else settings.verifier
    judge = tapes.default_judge(tape, verifier) if settings.judge is None else settings.judge
    used = scored(tape, [verifier, *([] if judge is None else [judge])])
    budgets = settings.budget or [tapes.default_budget(tape)]
    with progress_bars(console, "searches", transient=True) as progress:
        rows = compare(
            used, settings.search, verifier, budgets, judge=judge, draws=settings.draws,
            progress=partial(progress, "replaying"),
        )  # fmt: skip
    if output is not None:
        about = {"tape": str(settings.tape), "verifier": verifier, "judge": judge, "draws": settings.draws}
        write_json(output, {**about, "prompts": len(used.prompts), "rows": rows})
    if all("error" in row for row in rows):
        raise DiffscaleError(f"No search could be replayed: {rows[0]['error']}")
    _print_rows(console, rows, verifier, judge)
    if left_out := len(tape.prompts) - len(used.prompts):
        print_warning(
            console, f"without {left_out} of {len(tape.prompts)} prompts, of which a finished sample has no score"
        )


def _print_rows(console: Console, rows: Sequence[dict[str, Any]], verifier: str, judge: str | None) -> None:
    judged = ("judge", "judge gain") if judge else ()
    numbers = ("budget", "NFE", "finished", "score", "gain", "worth", *judged)
    cells = [_cells(row) for row in rows if "error" not in row]
    print_table(console, ("search", *numbers), cells, numbers)
    by = f"; judge: {judge}" if judge else ""
    console.print(f"score: {verifier}{by}; gain: over random search with the same budget, and half its 95% interval")
    console.print("worth: how many times the spent NFE random search needs for the same score, and its 95% interval")
    for row in rows:
        if "error" in row:
            print_warning(console, f"{row['search']} at {row['budget']} NFE: {row['error']}")


def _cells(row: dict[str, Any]) -> list[str]:
    cells = [row["search"], str(row["budget"]), f"{row['nfe']:,.0f}", f"{row['finished']:.1f}"]
    cells += [
        rounded(row["score"]["mean"]),
        _gained(row["gain"]),
        "{mean:.2f} ({low:.2f} to {high:.2f})".format(**row["worth"]),
    ]
    return cells + ([rounded(row["judge"]["mean"]), _gained(row["judge_gain"])] if "judge" in row else [])


def _gained(interval: dict[str, float]) -> str:
    return f"{rounded(interval['mean'], sign=True)} ±{rounded((interval['high'] - interval['low']) / 2)}"
