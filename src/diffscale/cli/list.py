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
    from diffscale.models.files import shipped

    return ["model", "what it is (any Hub id or folder works too)"], shipped().items()


def _searches() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.searches import SEARCHES, describe

    return ["search", "what it does", "price in NFE"], [(name, *describe(name)) for name in SEARCHES]


def _verifiers() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.verifiers import VERIFIERS, describe, shipped_verifiers

    return ["verifier", "what it scores"], [
        (name, describe(name)) for name in sorted({*VERIFIERS, *shipped_verifiers()})
    ]


def _suites() -> tuple[list[str], Iterable[tuple[str, ...]]]:
    from diffscale.registry import plugins

    return ["suite", "prompts"], [(name, str(len(prompts()))) for name, prompts in plugins("suites").items()]
