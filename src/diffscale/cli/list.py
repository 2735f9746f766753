"""`diffscale list`: what there is by name, and which package each comes from; nothing is imported for it."""

from collections.abc import Callable
from typing import Annotated, Final

import typer

import diffscale
from diffscale._util.errors import check_name
from diffscale.cli.terminal import plain_console, print_table
from diffscale.models import shipped
from diffscale.registry import plugins

Rows = list[tuple[str, ...]]
_OWN: Final = f"diffscale {diffscale.__version__}"


def list_names(
    what: Annotated[
        str, typer.Argument(metavar="models|searches|verifiers|suites|metrics|datasets", help="What to list.")
    ],
) -> None:
    """List the models, searches, verifiers, suites, metrics or data sets that can be named."""
    kinds: dict[str, tuple[tuple[str, ...], Callable[[], Rows]]] = {
        "models": (("model", "what it is (any Hub id or folder works too)", "package"), models),
        "searches": (("search", "what it does", "price in NFE", "package"), searches),
        "verifiers": (("verifier", "what it scores", "package"), verifiers),
        "suites": (("suite", "its prompts", "package"), lambda: _offered("suites")),
        "metrics": (("metric", "what it measures", "package"), lambda: _offered("metrics")),
        "datasets": (("data set", "what it is", "package"), lambda: _offered("datasets")),
    }
    check_name("list", what, kinds)
    header, list_rows = kinds[what]
    rows = list_rows()
    if all(row[-1] == _OWN for row in rows):  # a column that says nothing would take its width from the others
        header, rows = header[:-1], [row[:-1] for row in rows]
    print_table(plain_console(), header, rows)


def models() -> Rows:
    """Name, description and package of every shipped model."""
    return [(name, description, shipped.source(name)) for name, description in shipped.shipped().items()]


def searches() -> Rows:
    """Name, description, price in NFE and package of every search, as its docstring states them."""
    rows: Rows = []
    for name, line, source in _offered("searches"):
        description, _, price = line.partition(" Price: ")
        rows.append((name, description, price.rstrip("."), source))
    return rows


def verifiers() -> Rows:
    """Name, description and package of every verifier."""
    networks = shipped.shipped()
    rows: Rows = [(name, networks[name], shipped.source(name)) for name in shipped.verifier_networks()]
    return sorted(_offered("verifiers") + rows)


def _offered(kind: str) -> Rows:
    things = plugins(kind)
    return [(name, things.summary(name), things.source(name)) for name in things]
