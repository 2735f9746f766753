"""`diffscale reproduce`: tables and figures of papers, by recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from diffscale._util.errors import DiffscaleError, unknown

if TYPE_CHECKING:
    from diffscale.bench.papers.plan import Plan
    from diffscale.bench.papers.recipe import Setting
    from diffscale.bench.papers.run import Workshop


def reproduce(
    items: Annotated[
        list[str], typer.Argument(metavar="LIST|ITEM...", help="Items (A.table2, B.figure4), a paper (A), or all.")
    ],
    setting: Annotated[str, typer.Option(help="Models of shapes, or of the paper.")] = "shapes",
    limit: Annotated[int | None, typer.Option(help="Prompts of each part, at most.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Small sizes: each item within two minutes on 2 cores.")
    ] = False,
    suite: Annotated[
        list[str] | None,
        typer.Option(help="name=file or Hub id of a suite that is not shipped, as drawbench=prompts.csv; repeatable."),
    ] = None,
    reference: Annotated[
        str | None, typer.Option(help="Statistics of real pictures, by `diffscale evaluate --save-reference`.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            help="id=folder, file or Hub id: train on that instead of what recipes name, as "
            "JourneyDB/JourneyDB=journeydb; repeatable."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cuda, mps or cpu. Default: the first of these there is.")] = None,
    offload: Annotated[str | None, typer.Option(help="Keep networks on the CPU: model or sequential.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1, help="Most rows at once. Default: found by itself.")] = None,
    resume: Annotated[
        bool,
        typer.Option(
            help="Go on from what the folder holds; --no-resume deletes its cache, of all items, and begins cold."
        ),
    ] = True,
    estimate: Annotated[bool, typer.Option("--estimate", help="Say what it would take, and end.")] = False,
    output: Annotated[Path, typer.Option(help="Folder; what is done in it is not done again.")] = Path(
        "outputs/reproduction"
    ),
) -> None:
    """Draw tables and figures of papers again, on Shapes or on the papers' own models."""
    # Imported late: diffusers takes seconds.
    from diffscale.bench.papers import recipe as recipes

    console = Console(soft_wrap=True)
    if [item.upper() for item in items] == ["LIST"]:
        _list(console)
        return
    if setting not in ("shapes", "paper"):
        raise unknown("setting", setting, ["shapes", "paper"])
    names = recipes.chosen(items)
    from diffscale._util.config import validated
    from diffscale.bench.papers import page
    from diffscale.bench.papers.plan import check, plan
    from diffscale.bench.papers.points import GIVEN
    from diffscale.bench.papers.run import Workshop, discard, run
    from diffscale.cli.quiet import quiet as silence
    from diffscale.models.load import best_device
    from diffscale.models.options import LoadOptions

    silence()
    options: dict[str, Any] = {
        "setting": setting, "limit": limit, "quick": quick, "suites": _pairs("suite", suite or []),
        "reference": reference, "data": _pairs("data", data or []),
    }  # fmt: skip
    if wrong := options["suites"].keys() - set(GIVEN):
        raise unknown("suite", min(wrong), GIVEN)
    loaded = {name: recipes.load(name) for name in names}
    if len(names) > 1:
        loaded = {name: recipe for name, recipe in loaded.items() if setting in recipe.settings}
    settings = {name: recipes.resolved(recipe, **options) for name, recipe in loaded.items()}
    for each in settings.values():
        check(each)
    left = {name: each for name, each in settings.items() if not (resume and _done(console, name, each, output))}
    for name in left if not estimate else ():
        page.check(output, name, options)
    loading = validated(LoadOptions, {"device": device, "offload": offload})
    best_device(device)  # told of before anything is deleted
    if not resume and not estimate:
        discard(output, settings)
    workshop = Workshop(output, loading, batch_size)
    if left:
        _tell_estimate(console, left, workshop)
    if estimate:
        return
    recording = {call for call, need in plan(left.values()).pools.items() if need.record}
    for name, each in settings.items():
        with _bars(console) as told:
            run(name, each, workshop, told, recording)
        # Also of what is done: a run may have been killed before this.
        page.keep(output, name, loaded[name], each, options)
    path = page.build(output)
    _tell(console, output)
    console.print(f"{path} has all of it", highlight=False)


def _pairs(option: str, texts: list[str]) -> dict[str, str]:
    """By name; raises DiffscaleError for a text that is not name=value."""
    found = {}
    for text in texts:
        name, _, value = text.partition("=")
        if not name or not value:
            raise DiffscaleError(f"Write --{option} as name=value, not {text!r}.")
        found[name] = value
    return found


def _list(console: Console) -> None:
    from diffscale.bench.papers import recipe as recipes

    table = Table("item", "what it shows", "settings", box=None, pad_edge=False, header_style="bold")
    for name in recipes.names():
        found = recipes.load(name)
        table.add_row(name, found.title, ", ".join(found.settings))
    console.print(table)


def _done(console: Console, name: str, setting: Setting, folder: Path) -> bool:
    """Whether an item's numbers are there; says so where they are stale."""
    from diffscale.bench.papers.run import made_of, read

    held = read(folder, name)
    if held is None:
        return False
    if held["made_of"] == made_of(setting):
        console.print(f"{name} is done", highlight=False)
        return True
    console.print(
        f"[yellow]{name} is stale:[/yellow] its recipe, what it was asked for or the weights changed since; what "
        "changed is run again",
        highlight=False,
    )
    return False


def _tell_estimate(console: Console, settings: dict[str, Setting], workshop: Workshop) -> None:
    """NFE first, which needs no model; then what a second or two of each model says."""
    from diffscale.bench.papers.plan import plan

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in ("item", "NFE", "TFLOPs", "minutes", "GB"):
        table.add_column(head, justify="left" if head == "item" else "right")
    plans: dict[str, Plan] = {name: plan([setting]) for name, setting in settings.items()}
    if len(plans) > 1:
        plans["together, shared once"] = plan(settings.values())
    total = sum(plans[next(reversed(plans))].nfe().values())
    count = len(plans[next(reversed(plans))].trainings)
    training = f" and {count} trainings" if count else ""
    console.print(f"{total:,} NFE{training} from a cold start; measuring the models...", highlight=False)
    for name, each in plans.items():
        found = workshop.speeds.estimate(each)
        table.add_row(
            name, f"{found.nfe:,}", f"{found.flops / 1e12:,.1f}", f"{found.seconds / 60:,.1f}",
            f"{found.memory / 1e9:.1f}",
        )  # fmt: skip
    console.print(table)


@contextmanager
def _bars(console: Console) -> Iterator[Any]:
    """A bar for each kind of work."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
    ) as progress:  # fmt: skip
        bars: dict[str, Any] = {}

        def told(what: str, done: int, of: int) -> None:
            if what not in bars:
                bars[what] = progress.add_task(what, total=of)
            progress.update(bars[what], completed=done, total=of)

        yield told


def _tell(console: Console, output: Path) -> None:
    import json

    table = Table("item", "claim", "verdict", "p", box=None, pad_edge=False, header_style="bold")
    rows = json.loads((output / "verdicts.json").read_text())
    for row in rows:
        table.add_row(row["item"], row["claim"], row["verdict"], f"{row['p']:.2g}")
    if rows:
        console.print(table)
