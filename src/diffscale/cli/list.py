"""`diffscale list`: what there is by name."""

from collections.abc import Callable, Iterable
from typing import Annotated

import typer
from rich.console import Console

from diffscale._util.errors import check_name
from diffscale.cli.terminal import print_table


def list_names(
    what: Annotated[str, typer.Argument(metavar="models|searches|verifiers|suites", help="What to list.")],
) -> None:
    """List the models, searches, verifiers or suites that can be named."""
    kinds: dict[str, Callable[[], tuple[list[str], Iterable[tuple[str, ...]]]]] = {
        "models": _models,
        "searches": _searches,
        "verifiers": _verifiers,
        "suites": _suites,
    }
    check_name("list", what, kinds)
    print_table(Console(), *kinds[what]())


def _models() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.models.files import shipped, source

    rows = [(name, description, source(name)) for name, description in shipped().items()]
    return ["model", "what it is (any Hub id or folder works too)", "from"], rows


def _searches() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.searches import SEARCHES, describe

    rows = [(name, *describe(name), SEARCHES.source(name)) for name in SEARCHES]
    return ["search", "what it does", "price in NFE", "from"], rows


def _verifiers() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.verifiers import describe, names, source

    return ["verifier", "what it scores", "from"], [(name, describe(name), source(name)) for name in names()]


def _suites() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.registry import plugins

    suites = plugins("suites")
    return ["suite", "prompts", "from"], [(name, str(len(suites[name]())), suites.source(name)) for name in suites]
