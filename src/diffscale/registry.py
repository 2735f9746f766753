"""Things by name: what installed packages offer, and names with arguments as users type them, such as `random n=8`.

A package offers a thing of some kind by an entry point in the group `diffscale.KIND`: its name is the thing's name, its
value `module:attribute`. The groups are `models` (a folder with a folder for each model), `suites` (a function that
gives the prompts), `verifiers` (a factory, see `diffscale.verifiers`), `worlds` (a `types.World`), `metrics` (see
`bench.evaluation`), `datasets` (see `DataSet`) and `commands` (a Typer app).
"""

import inspect
import sys
from collections import UserDict
from collections.abc import Callable, Mapping
from functools import cache, partial
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError, check_name, explained


class DataSet(Protocol):
    """A data set that is made instead of fetched."""

    def __call__(self, folder: Path, size: int | None, cache: Path) -> int:
        """Write pictures and `metadata.jsonl` to the new `folder`; returns the number of its rows.

        `size`: rows, None for the usual number. `cache`: where pictures that networks make are kept between calls.
        """


class Plugins(UserDict[str, Any]):
    """The things of one kind that installed packages offer, by name; a thing is imported when it is looked up."""

    def __getitem__(self, name: str) -> Any:
        return super().__getitem__(name).load()


@cache
def plugins(kind: str) -> Plugins:
    """What installed packages offer of `kind`, see above."""
    return Plugins({entry.name: entry for entry in entry_points(group=f"diffscale.{kind}")})


def parse(text: str, kind: str, factories: Mapping[str, Callable[..., Any]]) -> tuple[str, dict[str, Any]]:
    """Split "name key=value ..." and coerce the values by the factory's signature.

    Where it has no annotation for an argument, that is by the kind of the default (a text, a switch or a float), else
    by what the value looks like: 3 is an int, 3.0 a float, true and false are bools, all else is a text.

    Raises UnknownName for a name or an argument that does not exist, DiffscaleError for a value of the wrong type.
    """
    name, *pairs = text.split() or [""]
    check_name(kind, name, factories)
    parameters = {
        p.name: p
        for p in _signature(factories[name]).parameters.values()
        # Keyword-only parameters are for the program: where to run, what pictures will come.
        if p.default is not inspect.Parameter.empty and p.kind is not inspect.Parameter.KEYWORD_ONLY
    }
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise DiffscaleError(f"Write the arguments of {kind} {name} as key=value, not {pair!r}.")
        check_name(f"argument of {kind} {name}", key, parameters)
        wanted = _kind(parameters[key], factories[name])
        wrong = f"{kind} {name} takes {key} as {inspect.formatannotation(wanted)}, but got {value!r}."
        with explained(wrong, ValidationError, PydanticUserError):
            given[key] = _literal(value) if wanted is None else TypeAdapter(wanted).validate_python(value)
    return name, given


def _signature(factory: Callable[..., Any]) -> inspect.Signature:
    """Empty for what is written in C and tells nothing."""
    try:
        return inspect.signature(factory)
    except ValueError:
        return inspect.Signature()


def _kind(parameter: inspect.Parameter, factory: Callable[..., Any]) -> Any:
    """What the values of `parameter` are to be; None if that is not said."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            # One by one: others may name what is imported for type checkers only.
            annotation = eval(annotation, vars(sys.modules[_innermost(factory).__module__]))
        except (NameError, AttributeError, KeyError, SyntaxError, TypeError):
            annotation = inspect.Parameter.empty
    if annotation is not inspect.Parameter.empty:
        return annotation
    # An int may be the default of a float.
    return type(parameter.default) if type(parameter.default) in (bool, float, str) else None


def _innermost(factory: Callable[..., Any]) -> Callable[..., Any]:
    """The function that a partial one, or a wrapper, calls."""
    while isinstance(factory, partial):
        factory = factory.func
    return inspect.unwrap(factory)


def _literal(text: str) -> bool | int | float | str:
    if text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
