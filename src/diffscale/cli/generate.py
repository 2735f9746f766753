"""`diffscale generate`: search for the best sample of one prompt."""

from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console

from diffscale._util.errors import AnotherRun
from diffscale._util.files import check_writable
from diffscale._util.numbers import rounded
from diffscale.bench.config import GenerateConfig, check_names
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import print_dtype, print_warning, progress_bars, quiet_console

_DEFAULT: Final = Path("outputs/generate")


@settings_from_flags(GenerateConfig)
def generate(
    settings: GenerateConfig,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Folder for the results. Default: outputs/generate, or outputs/generate-2 and so on where that holds "
            "another run; of --from, the picture's own folder."
        ),
    ] = None,
    picture: Annotated[
        Path | None,
        typer.Option("--from", help="Make this PNG of an earlier run again, by what it says of its origin."),
    ] = None,
) -> None:
    """Search over the noise of PROMPT for the sample that the verifier likes best."""
    if picture is not None:
        _print_again(settings, picture, output)
        return
    check_names([settings.search], settings.verifiers)
    # Imported late: diffusers takes seconds, and what is wrong should be told at once.
    from diffscale.bench import generate as job

    console = quiet_console()
    output, settings, summary = _prepared(settings, output, partial(print_dtype, console))
    if summary is not None:
        console.print(f"{output} already holds this run; nothing was computed.")
    else:
        with progress_bars(console, "NFE") as progress:
            summary = job.run(settings, output, progress)
    _print_summary(console, summary, output)


def _prepared(
    settings: GenerateConfig, output: Path | None, say: Callable[[Any], None]
) -> tuple[Path, GenerateConfig, dict[str, Any] | None]:
    """Where the run goes, its settings with the dtype that is used, and its result if it is done already.

    Without an `output` that is the first folder that is free or holds this very run, so that nobody who gives a second
    command has to think of a name. Raises AnotherRun for an `output` that holds another run.
    """
    from diffscale.bench import generate as job

    said: list[Any] = []  # by folders that turn out to hold another run, and once in the end
    for number in count(1):
        folder = output or _DEFAULT.with_name(_DEFAULT.name + (f"-{number}" if number > 1 else ""))
        said.clear()
        try:
            settled = job.settle(folder, settings, said.append)
            summary = job.prepare(folder, settled)
        except AnotherRun:
            if output is not None:
                raise
        else:
            for choice in said:
                say(choice)
            return folder, settled, summary
    raise AssertionError  # numbers do not end


def _print_summary(console: Console, summary: dict[str, Any], output: Path) -> None:
    from diffscale.bench.hacking import sentence_of_alike, sentence_of_one

    best, first = summary["best"]["score"], summary["baseline"]["score"]
    verifier = summary["verifier"].split()[0]
    choose = summary.get("choose")
    what = f"best of {summary['candidates']}" if choose is None else f"chosen of {summary['candidates']}"
    highest = "" if choose is None else f", highest {rounded(summary['trace'][-1][1], 4)}"
    console.print(
        f"{verifier}: first sample {rounded(first, 4)}, {what} {rounded(best, 4)} "
        f"({rounded(best - first, 4, sign=True)}{highest}) for {summary['nfe']:,} NFE in {summary['seconds']:.1f} s"
    )
    if choose is not None:
        before, after = summary["baseline"]["value"], summary["best"]["value"]
        gain = f"{rounded(after, 4)} ({rounded(after - before, 4, sign=True)})"
        console.print(f"{choose.split()[0]}, which chose: first sample {rounded(before, 4)}, chosen {gain}")
    for decision in summary.get("decisions", []):
        console.print(decision)
    if "wording" in summary:
        console.print(f"the best was asked for as {summary['wording']!r}", markup=False)
    if summary["dropped"]:
        print_warning(console, f"{summary['dropped']} of {summary['candidates']} candidates could not be scored")
    if compared := summary["compared"]:
        tied = len({number for *pair, _ in compared for number in pair})
        console.print(f"{tied} candidates shared the best score; chosen by {len(compared)} comparisons")
    for name, scores in summary["judges"].items():
        held_out = not (scores["searched_with"] or scores.get("chosen_by"))
        how = "not searched with" if held_out else "the oracle searched with"
        how = "the oracle that chose" if scores.get("chosen_by") else how
        before, after = scores["baseline"]["score"], scores["best"]["score"]
        console.print(f"{name} ({how}): first sample {before:.2f}, best {after:.2f} ({after - before:+.2f})")
    for sentence in filter(None, (sentence_of_one(summary), sentence_of_alike(summary))):
        print_warning(console, sentence)
    console.print(f"pictures, plot, figures and report.html are in {output}")


def _print_again(settings: GenerateConfig, picture: Path, output: Path | None) -> None:
    """Make `picture` again, by its origin, beside it or in the folder `output`, and say how that went."""
    from diffscale.bench import again
    from diffscale.bench.origin import read_origin

    origin, pixels = read_origin(picture)
    place = (output or picture.parent) / f"{picture.stem}-again.png"
    asked = again.settings_of(origin, settings, picture)
    check_writable(place)
    console = quiet_console()
    if others := origin.other_versions():
        print_warning(console, f"{picture} was made with other versions, which may round otherwise: {others}")
    console.print(f"{asked.model}, {asked.steps or 'its own'} steps, key {origin.key}: {asked.prompt}")
    with progress_bars(console, "NFE", transient=True) as progress:
        made = again.make_again(origin, asked, pixels, sorted(settings.model_fields_set), progress)
    made.save(place, origin)
    took = f"made {made.how}, for {made.nfe:,} NFE"
    if made.is_same:
        console.print(f"{place} is {picture} to the bit, {took}")
        return
    mean, most = made.off or (255.0, 255)
    told = f"values differ by {mean:.2g} of 255 in the mean and by {most} at most"
    if made.is_close:
        print_warning(console, f"{place} is {picture} but for rounding ({took}): {told}")
    else:
        print_warning(console, f"{place} is another picture than {picture} ({took}): {told}")
