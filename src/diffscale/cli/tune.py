"""`diffscale tune`: measure on a model what searches choose by, and learn what they judge by."""

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from diffscale._util.files import check_writable
from diffscale._util.numbers import rounded
from diffscale.bench.config import check_names
from diffscale.bench.tape_config import TuneConfig, ValueConfig
from diffscale.cli.flags import settings_from_flags
from diffscale.cli.terminal import plain_console, print_dtype, print_table, progress_bars, quiet_console

app = typer.Typer(
    no_args_is_help=True, help="Measure on a model what searches choose by, and learn what they judge by."
)


@app.command()
@settings_from_flags(TuneConfig)
def auto(
    settings: TuneConfig,
    output: Annotated[Path, typer.Option(help="JSON file of the profile.")] = Path("outputs/profile.json"),
) -> None:
    """Measure how looks at candidates agree with finished samples, and what both cost, for the search auto."""
    check_names([], [] if settings.tape else settings.verifiers)
    # Imported late: diffusers takes seconds, and what is wrong should be told at once.
    from diffscale.bench import tapes
    from diffscale.suites import prompts as prompt_files
    from diffscale.tape.profile import measured, write_profile
    from diffscale.tape.tape import load_tape

    check_writable(output)
    console = quiet_console()
    if settings.tape is None:
        prompts = prompt_files.load(settings.suite, settings.limit)
        with progress_bars(console, "prompts") as progress:
            tape = tapes.make(
                settings, prompts, output.with_name(f"{output.name}.tape"), partial(progress, "recording"),
                partial(print_dtype, console),
            )  # fmt: skip
    else:
        tape = load_tape(settings.tape)
    verifier = next(iter(tape.scores)) if settings.verifier is None else settings.verifier
    profile = measured(tape, verifier)
    write_profile(profile, output, dict(tape.about) | {"verifier": verifier, "prompts": len(tape.prompts)})
    last = [row[-1] for row in profile.agreement.matrix]
    rows = [(str(look), rounded(each, 2)) for look, each in zip(profile.agreement.looks, last, strict=False)]
    print_table(console, ("look", "agreement"), rows, ("agreement",))
    console.print(f"rank correlations of {verifier} with the finished samples; the profile is in {output}")


@app.command()
@settings_from_flags(ValueConfig)
def value(
    settings: ValueConfig,
    output: Annotated[Path, typer.Option(help="File of the value model.")] = Path("outputs/clip.value"),
) -> None:
    """Learn from a tape what unfinished candidates will score, for the verifier "valued file=..."."""
    # Imported late: torch takes seconds.
    from diffscale.tape.tape import load_tape
    from diffscale.tape.value import learn

    check_writable(output)
    console, tape = plain_console(), load_tape(settings.tape)
    verifier = next(iter(tape.scores)) if settings.verifier is None else settings.verifier
    model, learned = learn(tape, verifier)
    model.save(output)
    rows = [(str(each.look), rounded(each.plain, 2), rounded(each.valued, 2)) for each in learned]
    print_table(console, ("look", verifier, "value"), rows, (verifier, "value"))
    console.print("rank correlations with the finished samples, on a quarter of the prompts that was not learned from")
    console.print(f'the value model is in {output}: search by --verifier "valued file={output} of={verifier}"')
