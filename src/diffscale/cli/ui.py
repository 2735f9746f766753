"""`diffscale ui`: a page in the browser that starts searches, watches them and compares them."""

import getpass
import ipaddress
import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Final

import typer

from diffscale._util.errors import DiffscaleError
from diffscale.cli.terminal import plain_console

_VARIABLE: Final = "DIFFSCALE_UI_PASSWORD"


def ui(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(metavar="[FOLDER...]", help="Where runs are, and new ones go: to the first. Default: outputs."),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that other machines reach needs a password.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 7860,
) -> None:
    """Start searches on a page in the browser, watch them, and compare two of them.

    The password is asked for, or read from the environment variable DIFFSCALE_UI_PASSWORD. Who has it can run code on
    this machine as you can.
    """
    password = _password(host)
    if find_spec("gradio") is None:
        raise DiffscaleError(
            'The page needs gradio: in an environment of its own, `pip install -c constraints-ui.txt "diffscale[ui]"`.'
        )
    roots = folders or [Path("outputs")]
    if missing := [root for root in roots[1:] if not root.is_dir()]:
        raise DiffscaleError(f"There is no folder {missing[0]}: name one with runs in it.")
    roots[0].mkdir(parents=True, exist_ok=True)
    # Imported late: gradio takes seconds, and what is wrong should be told at once.
    from diffscale.ui.server import serve

    console = plain_console()
    for folder in serve(roots, host, port, password, console.print):
        console.print(f"{folder} was stopped: it can go on when the page is started again.")


def _password(host: str) -> str | None:
    """The password of the environment, or that is typed where one is needed; None where none is.

    Raises DiffscaleError where one is needed and there is none.
    """
    if password := os.environ.get(_VARIABLE):
        return password
    if _is_loopback(host):
        return None
    if sys.stdin.isatty() and (password := getpass.getpass(f"Password for the page on {host}: ")):
        return password
    raise DiffscaleError(
        f"Other machines reach {host}, so the page needs a password: set {_VARIABLE}, or leave --host out."
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
