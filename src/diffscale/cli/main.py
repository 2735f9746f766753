"""`diffscale`: the commands together, and what an error looks like."""

import os
import sys
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale._util.signals import Stopped, signals_raised
from diffscale.cli import tape, tune
from diffscale.cli.bench import bench
from diffscale.cli.evaluate import evaluate
from diffscale.cli.flags import ModelCommand
from diffscale.cli.generate import generate
from diffscale.cli.list import list_names
from diffscale.cli.report import report
from diffscale.cli.reproduce import reproduce
from diffscale.cli.terminal import plain_console
from diffscale.cli.train import declared, train
from diffscale.cli.ui import ui
from diffscale.registry import plugins

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
app.command(cls=ModelCommand)(generate)
app.command(cls=ModelCommand)(bench)
app.command()(evaluate)
app.command(context_settings={"token_normalize_func": declared})(train)
app.command()(reproduce)
app.command()(report)
app.add_typer(tape.app, name="tape")
app.add_typer(tune.app, name="tune")
app.command()(ui)
app.command("list")(list_names)
for _name in plugins("commands"):
    try:
        app.add_typer(plugins("commands")[_name], name=_name)
    except DiffscaleError as _error:
        # The other commands are none the worse for it.
        print(f"warning: the command {_error}", file=sys.stderr)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"diffscale {diffscale.__version__}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Spend compute at inference, get better samples."""


_usual_format: Final = warnings.formatwarning


def _format_warning(message: Warning | str, category: type[Warning], filename: str, *where: Any, **line: Any) -> str:
    """A warning of ours is a sentence for users, without the line of ours that it is from; others stay as they are."""
    if Path(filename).is_relative_to(Path(diffscale.__file__).parent):
        return f"warning: {message}\n"
    return _usual_format(message, category, filename, *where, **line)


def _end(sentence: str) -> NoReturn:
    plain_console(stderr=True).print("error:", sentence, style="red")
    sys.exit(2)


def spin_shortly() -> None:
    """Let threads of OpenMP, which torch computes with on a CPU, sleep soon while they wait for each other.

    By default they spin for milliseconds, and keep the core from the thread that they wait for: beside another process
    on two cores a search took 100 times as long. So short a spin costs nothing on a machine that is idle. What the user
    has set stays. This takes effect where torch is not imported yet.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "3000")


def run() -> None:
    """Entry point: errors a user can mend are one sentence and exit code 2.

    A signal that ends a process is one too, which says how to go on; the exit code is 128 and the signal's number.
    """
    warnings.formatwarning = _format_warning
    spin_shortly()
    try:
        with signals_raised():
            app()
    except DiffscaleError as error:
        _end(str(error))
    except Stopped as stopped:
        with suppress(OSError):  # the terminal may be gone
            plain_console(stderr=True).print(str(stopped))
        sys.exit(128 + stopped.number)
    except OSError as error:
        # Of files and disks, in whatever place: names that are too long, folders that cannot be read, a full disk.
        if error.filename is None or error.strerror is None:
            raise
        _end(f"{error.filename} cannot be used ({error.strerror}): mend that, or name another place, and run it again.")
