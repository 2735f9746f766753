"""`diffscale generate`: search for the best sample of one prompt."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from diffscale._util.errors import DiffscaleError
from diffscale.bench import settings as config
from diffscale.cli.loading import loads


@loads
def generate(
    prompt: Annotated[
        str | None, typer.Argument(help="What to draw; of a class-conditional model a class, by name or id.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Shipped name, folder or Hub id. Default: shapes-flux.")] = None,
    search: Annotated[str | None, typer.Option(help='Search, as "random" or "random n=8". Default: random.')] = None,
    verifier: Annotated[str | None, typer.Option(help='Verifier, as "clip" or "clip model=ID". Default: clip.')] = None,
    budget: Annotated[int | None, typer.Option(help="Total NFE, final denoising included. Default: 1280.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of all noise. Default: 0.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps of a sample. Default: the model's own.")] = None,
    pipe_arg: Annotated[
        list[str] | None,
        typer.Option(help="name=value for the pipeline's call, such as height=512; repeatable."),
    ] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="What not to draw, by classifier-free guidance.")] = None,
    batch_size: Annotated[int | None, typer.Option(help="Most rows at once. Default: found by itself.")] = None,
    config_file: Annotated[
        Path | None, typer.Option("--config", help="YAML with these settings; flags override it.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Folder for the results.")] = Path("outputs/generate"),
    *,
    loading: dict[str, Any],
) -> None:
    """Search over the noise of PROMPT for the sample that the verifier likes best."""
    flags: dict[str, Any] = {
        "prompt": prompt,
        "model": model,
        "search": search,
        "verifier": verifier,
        "budget": budget,
        "seed": seed,
        "steps": steps,
        "pipe_args": dict(map(pair, pipe_arg)) if pipe_arg else None,
        "negative_prompt": negative_prompt,
        "batch_size": batch_size,
        **loading,
    }
    settings = config.resolve(config_file, flags)

    # Imported late: diffusers takes seconds, and wrong flags should be told at once.
    from diffscale.bench import generate as job
    from diffscale.cli.quiet import quiet

    quiet()

    console = Console(soft_wrap=True)
    summary = job.prepare(output, settings)
    if summary is not None:
        console.print(f"{output} already holds this run; nothing was computed.", highlight=False)
    else:
        with _bar(console, settings.budget) as move:
            summary = job.run(settings, output, move)
    _tell(console, summary, output)


def pair(text: str) -> tuple[str, Any]:
    """Name and value of a --pipe-arg."""
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise DiffscaleError(f"Write --pipe-arg as name=value, not {text!r}.")
    return name, yaml.safe_load(value)


@contextmanager
def _bar(console: Console, budget: int) -> Iterator[Callable[[int, float], None]]:
    """A bar in NFE with the best score so far, and what moves it."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("NFE, best {task.fields[best]}"),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        bar = progress.add_task("searching", total=budget, best="-")

        def move(nfe: int, best: float) -> None:
            progress.update(bar, completed=nfe, best=f"{best:.4f}" if math.isfinite(best) else "-")

        yield move


def _tell(console: Console, summary: dict[str, Any], output: Path) -> None:
    best, first, verifier = (
        summary["best"]["score"],
        summary["baseline"]["score"],
        summary["verifier"].split()[0],
    )
    console.print(
        f"{verifier}: first sample {first:.4f}, best of {summary['candidates']} {best:.4f} ({best - first:+.4f}) "
        f"for {summary['nfe']:,} NFE in {summary['seconds']:.1f} s",
        highlight=False,
    )
    for name, heldout_scores in summary["judges"].items():
        held_out = "the oracle searched with" if heldout_scores["searched_with"] else "not searched with"
        before, after = heldout_scores["baseline"]["score"], heldout_scores["best"]["score"]
        console.print(
            f"{name} ({held_out}): first sample {before:.2f}, best {after:.2f} ({after - before:+.2f})",
            highlight=False,
        )
        if after < before and best > first and not heldout_scores["searched_with"]:
            console.print(
                f"[yellow]warning:[/yellow] {verifier} rose and {name}, which was held out, fell: the search may have "
                "hacked its verifier; compare baseline.png, or search with an ensemble",
                highlight=False,
            )
    console.print(f"pictures, plot and figures are in {output}", highlight=False)
