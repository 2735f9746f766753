"""The flags of loading a model: one for each field of `LoadOptions`, on every command that loads one."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, get_args, get_origin

import typer

from diffscale.models.options import LoadOptions


def loads(command: Callable[..., None]) -> Callable[..., None]:
    """Gives `command` the flags; what was given of them comes to it as the dictionary `loading`."""
    own = inspect.signature(command, eval_str=True)
    flags = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[
                _plain(field.annotation) | None, typer.Option(help=field.description, rich_help_panel="Loading")
            ],
        )
        for name, field in LoadOptions.model_fields.items()
    ]

    @functools.wraps(command)
    def with_flags(**given: Any) -> None:
        loading = {flag.name: given.pop(flag.name) for flag in flags}
        command(**given, loading={name: value for name, value in loading.items() if value not in (None, [])})

    kept = [parameter for name, parameter in own.parameters.items() if name != "loading"]
    signature = own.replace(parameters=[*kept, *flags])
    with_flags.__signature__ = signature  # type: ignore[attr-defined]
    with_flags.__annotations__ = {name: p.annotation for name, p in signature.parameters.items()}
    return with_flags


def _plain(annotation: Any) -> Any:
    """The type that the command line reads; what is allowed in it is LoadOptions' business."""
    inner = next((each for each in get_args(annotation) if each is not type(None)), annotation)
    if get_origin(annotation) is list:
        return annotation
    return str if inner not in (bool, int, float) else inner
