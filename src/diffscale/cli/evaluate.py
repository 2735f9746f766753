"""`diffscale evaluate`: metrics of a folder of pictures."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffscale._util import config
from diffscale._util.errors import DiffscaleError


def evaluate(
    folder: Annotated[Path, typer.Argument(help="Pictures (png, jpg, webp), also in folders below.")],
    metrics: Annotated[
        str | None,
        typer.Option(help="Of fid, fd_dino, precision, recall, cmmd, is, composition and any verifier, by commas."),
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(help="What to compare with: a folder, or a file of --save-reference.")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="Extractor, as clip or clip:model=ID.", show_default="each metric's own, as published"),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu.", show_default="the first there is")] = None,
    batch_size: Annotated[
        int | None, typer.Option(help="Most pictures at once.", show_default="found by itself")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="JSONL with file_name and text, a prompt a line, or the suite that the pictures are of.",
            show_default="metadata.jsonl or samples.jsonl",
        ),
    ] = None,
    output: Annotated[Path, typer.Option(help="JSON file for the results.")] = Path("outputs/evaluate.json"),
    save_reference: Annotated[
        Path | None, typer.Option(help="Keep FOLDER's statistics in this safetensors file, for --reference.")
    ] = None,
) -> None:
    """Measure the pictures in FOLDER: distances to a reference, diversity, and what verifiers say."""
    # Imported late: diffusers takes seconds.
    from diffscale.bench.evaluation import evaluate as job
    from diffscale.cli.quiet import quiet

    flags = {
        "folder": folder, "metrics": None if metrics is None else [name.strip() for name in metrics.split(",")],
        "reference": reference, "features": features, "device": device, "batch_size": batch_size, "prompts": prompts,
        "save_reference": save_reference,
    }  # fmt: skip
    settings = config.validated(job.EvaluateConfig, {name: value for name, value in flags.items() if value is not None})
    quiet()
    console = Console(soft_wrap=True)
    with _bars(console) as told:
        results = job.run(settings, told)
    _write(output, results)
    _tell(console, results)
    for note in results["warnings"]:
        console.print(f"warning: {note}", style="yellow", markup=False, highlight=False)
    if save_reference is not None:
        console.print(f"statistics for --reference are in {save_reference}", highlight=False, markup=False)
    console.print(f"results are in {output}", highlight=False, markup=False)


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """A bar for each network that looks at pictures."""
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("pictures"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
    ) as progress:
        bars: dict[str, Any] = {}

        def told(what: str, done: int, total: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(escape(what), total=total)
            progress.update(bars[what], completed=done)

        yield told


def _write(output: Path, results: dict[str, Any]) -> None:
    fresh = output.with_name(output.name + ".new")
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        fresh.write_text(json.dumps(results, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(fresh, output)
    except OSError as error:
        raise DiffscaleError(
            f"The results could not be written to {output}: choose another place ({error})."
        ) from error


def _tell(console: Console, results: dict[str, Any]) -> None:
    if not results["metrics"]:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("95% interval", justify="right")
    table.add_column("features")
    for name, result in results["metrics"].items():
        if "value" in result:
            spread = f" ±{result['std']:.3f}" if "std" in result else ""
            table.add_row(escape(name), f"{result['value']:.4g}{spread}", "", escape(result["features"]))
        elif "mean" in result:
            dropped = f"{result['dropped']} pictures dropped" if result["dropped"] else ""
            table.add_row(escape(name), *_shown(result), dropped)
        else:
            for category, interval in result.items():
                table.add_row(escape(f"{name}, {category}"), *_shown(interval), "")
    console.print(table)
    console.print(f"{results['pictures']} pictures; intervals are of means over prompts", highlight=False)


def _shown(interval: dict[str, float]) -> tuple[str, str]:
    return f"{interval['mean']:.3f}", f"{interval['low']:.3f} to {interval['high']:.3f}"
