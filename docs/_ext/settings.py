"""The settings of a search or verifier as a table: name, what it takes, default."""

import inspect
from collections.abc import Callable, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}


def settings(thing: Callable[..., Any], skip: Sequence[str]) -> list[str]:
    """Lines of Markdown; none for a thing without settings."""
    hints = get_type_hints(thing, include_extras=True) if not isinstance(thing, type) else {}
    rows = []
    for parameter in inspect.signature(thing).parameters.values():
        if parameter.name not in skip and parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            takes = allowed(hints.get(parameter.name, parameter.annotation))
            rows.append(f"| `{parameter.name}` | {takes} | {_default(parameter.default)} |")
    if not rows:
        return []
    return ["## Settings", "", "| setting | takes | default |", "|---|---|---|", *rows, ""]


def _default(value: Any) -> str:
    if value is inspect.Parameter.empty:
        return "must be given"
    if value is None:
        return "by itself, see above"
    if value in ("", ()):
        return "none"
    if isinstance(value, tuple):
        value = ",".join(map(str, value))
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def allowed(kind: Any) -> str:
    """A type with its range, in words."""
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return ", ".join([allowed(inner[0]), *_bounds(inner[1:])])
    if origin in (Union, UnionType):
        named = [allowed(each) for each in inner if each is not NoneType]
        return " or ".join(dict.fromkeys(named))
    if origin is Literal:
        return ", ".join(f"`{each}`" for each in inner)
    if origin in (tuple, list):
        return f"{allowed(inner[0])}; several by commas"
    names = {int: "whole number", float: "number", str: "text", bool: "`true` or `false`"}
    return names.get(kind, getattr(kind, "__name__", str(kind)))


def _bounds(marks: Sequence[Any]) -> list[str]:
    found = []
    for mark in marks:
        for each in [mark, *getattr(mark, "metadata", ())]:
            found += [
                f"{word} {getattr(each, key):g}" for key, word in BOUNDS.items() if getattr(each, key, None) is not None
            ]
    return list(dict.fromkeys(found))
