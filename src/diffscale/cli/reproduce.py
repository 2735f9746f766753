"""`diffscale reproduce`: tables and figures of papers, by recipe."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from diffscale._util.errors import DiffscaleError, UnknownName, unknown
from diffscale._util.files import holds_others, read_text
from diffscale.bench.config import ReproduceConfig
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import plain_console, print_dtype, print_table, print_warning, progress_bars, quiet_console
from diffscale.models.options import LoadOptions
from diffscale.registry import HOW_TO_GET_SHAPES, plugins

if TYPE_CHECKING:
    from diffscale.bench.papers.plan import Plan
    from diffscale.bench.papers.recipe import Setting
    from diffscale.bench.papers.session import Session


@settings_from_flags(ReproduceConfig)
def reproduce(
    config: ReproduceConfig,
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

    asked = [item.upper() for item in config.items]
    if asked == ["LIST"]:
        items = {name: recipes.load(name) for name in (*recipes.names(), *recipes.planned())}
        titles = [(name, item.title, ", ".join(item.settings)) for name, item in items.items()]
        print_table(plain_console(), ("item", "what it shows", "settings"), titles)
        return
    if asked == ["PLAN"]:
        _print_plan(output, config)
        return
    loaded = {name: recipes.load(name) for name in recipes.chosen(config.items)}
    if config.setting == "shapes" and config.setting not in plugins("worlds"):
        raise UnknownName(f"The setting {config.setting} {HOW_TO_GET_SHAPES}")
    if len(loaded) > 1:
        loaded = {name: recipe for name, recipe in loaded.items() if config.setting in recipe.settings}
    from diffscale.api.workers import Crew, worker_options
    from diffscale.bench.papers import page
    from diffscale.bench.papers.plan import check
    from diffscale.bench.papers.points import GIVEN
    from diffscale.bench.papers.session import CACHE, Session, discard, run

    if holds_others(output, (*recipes.names(), CACHE, "speeds.json", "verdicts.json")):
        raise DiffscaleError(f"{output} exists and holds something else than papers' items: choose another --output.")
    console = quiet_console()
    if wrong := config.suites.keys() - set(GIVEN):
        raise unknown("suite", min(wrong), GIVEN)
    options = config.model_dump(include={"setting", "limit", "quick", "suites", "reference", "data"})
    settings = {name: recipes.resolved(recipe, **options) for name, recipe in loaded.items()}
    for each in settings.values():
        check(each)
    left = {name: each for name, each in settings.items() if not (resume and _done(console, name, each, output))}
    for name in left if not estimate else ():
        page.check(output, name, options)
    where = worker_options(config.device, config.workers, config.verifier_workers)  # told of before anything is deleted
    if not resume and not estimate:
        discard(output, settings)
    loading = LoadOptions(device=config.device, offload=config.offload)
    with Crew(where) as crew:
        session = Session(output, loading, config.batch_size, None if where.is_inline else crew)
        if left:
            settled = {name: session.settle(each) for name, each in left.items()}
            for choice in {choice.why: choice for choice in session.dtypes.values()}.values():
                print_dtype(console, choice)
            _print_estimate(console, settled, session)
        if estimate:
            return
        for name, each in settings.items():
            with progress_bars(console) as progress:
                run(name, each, session, progress)
            # Also of what is done: a run may have been killed before this.
            page.write_recipe(output, name, loaded[name], each, options)
    path = page.build(output)
    told = json.loads(read_text(output / "verdicts.json"))
    heads = ("item", "headline", "verdict", "p")
    verdicts = (row for row in told["headlines"] if row["item"] in settings)
    rows = (
        (row["item"], row["says"], row["verdict"], "" if row["p"] is None else f"{row['p']:.2g}") for row in verdicts
    )
    print_table(console, heads, rows, ("p",))
    estimates = ((row["item"], row["claim"], row["found"]) for row in told["estimates"] if row["item"] in settings)
    print_table(console, ("item", "estimate of", "found"), estimates)
    console.print(f"{path} has all of it")


def _print_plan(pilots: Path, config: ReproduceConfig) -> None:
    """The test, size and power of each headline, from the numbers in the folder `pilots`; then what its items take."""
    from diffscale.bench.papers import headlines, planned
    from diffscale.bench.papers.session import Session

    console = quiet_console()
    found = planned.rows(pilots, headlines.papers())
    rows = [(row.item, row.name, row.claim.says, row.sizes, row.needed, f"{row.power:.0%}") for row in found]
    print_table(console, ("item", "headline", "test", "planned", "80% need", "power"), rows, ("power",))
    loading = LoadOptions(device=config.device, offload=config.offload)
    with tempfile.TemporaryDirectory() as folder:
        _print_estimate(console, planned.settings(), Session(Path(folder), loading, config.batch_size))


def _done(console: Console, name: str, setting: Setting, folder: Path) -> bool:
    """Whether an item's numbers are there; says so where they are stale."""
    from diffscale.bench.papers.session import made_of, read

    raw = read(folder, name)
    if raw is None:
        return False
    if raw["made_of"] == made_of(setting):
        console.print(f"{name} is done")
        return True
    more = "its recipe, what it was asked for or the weights changed since; what changed is run again"
    print_warning(console, more, f"{name} is stale")
    return False


def _print_estimate(console: Console, settings: dict[str, Setting], session: Session) -> None:
    """NFE first, which needs no model; then what a second or two of each model says."""
    from diffscale.bench.papers.plan import plan

    plans: dict[str, Plan] = {name: plan([setting]) for name, setting in settings.items()}
    if len(plans) > 1:
        plans["together, shared once"] = plan(settings.values())
    whole = plans[next(reversed(plans))]
    training = f" and {len(whole.trainings)} trainings" if whole.trainings else ""
    console.print(f"{sum(whole.nfe().values()):,} NFE{training} from a cold start; measuring the models...")
    estimates = {name: session.speeds.estimate(each) for name, each in plans.items()}
    rows = [
        (name, f"{each.nfe:,}", f"{each.flops / 1e12:,.1f}", f"{each.seconds / 60:,.1f}", f"{each.memory / 1e9:.1f}")
        for name, each in estimates.items()
    ]
    print_table(console, ("item", "NFE", "TFLOPs", "minutes", "GB"), rows, ("NFE", "TFLOPs", "minutes", "GB"))
