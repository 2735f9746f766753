"""Command-line flags derived from pydantic models: the models' fields alone decide which settings exist."""

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from types import GenericAlias, NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from typer.core import TyperCommand

from diffscale._util import config
from diffscale._util.errors import DiffscaleError

_CONFIG = typer.Option("--config", help="YAML with these settings; flags override it.")
_KEYWORD = inspect.Parameter.KEYWORD_ONLY


class ModelCommand(TyperCommand):
    """A command that calls a pipeline: of an option that there is none of, it says how the pipeline's own are given."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Read `args`; what is wrong with them is raised by Typer, and ends in its usage and exit code 2."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            option = getattr(error, "option_name", "")  # Typer exports no class for this error
            if option.startswith("--") and not getattr(error, "possibilities", None):
                name = option.removeprefix("--").replace("-", "_")
                error.message += f". Arguments of the pipeline's own call are given as --pipe-arg {name}=VALUE."  # type: ignore[attr-defined]
            raise


def settings_from_flags(
    *models: type[BaseModel],
    resolve: Callable[[Path | None, dict[str, Any]], Any] | None = None,
    separator: str = "-",
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator that gives a command a flag for each field of `models`, and `--config FILE`, which flags override.

    The command takes the settings as its first argument, and the options that are its own after it. A flag has its
    name, type, help and default from its field, and its panel from the class attribute `panel` of the model that first
    declares the field. Lists are repeatable, mappings too (`name=value`), booleans are pairs on and off; a `Flag` in
    the field's metadata says what is otherwise. Which values are allowed is the model's business.

    `resolve(file, flags)` makes the settings of the flags, None where one was not given; by default those of the first
    model. `separator` stands between the words of a flag.
    """
    fields = {name: field for model in reversed(models) for name, field in config.fields(model).items()}
    panels = {name: config.panel(model, name) for model in models for name in config.fields(model)}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(command)
        def with_flags(config_file: Path | None, **given: Any) -> None:
            flags = {name: _value(name, field, given.pop(name)) for name, field in fields.items()}
            make = resolve or functools.partial(config.resolve, models[0])
            command(make(config_file, flags), **given)

        derived = [_parameter(name, field, panels[name], separator) for name, field in fields.items()]
        file = inspect.Parameter("config_file", _KEYWORD, default=None, annotation=Annotated[Path | None, _CONFIG])
        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        # Typer reads both, the signature and the annotations.
        signature = inspect.Signature([*derived, file, *(each.replace(kind=_KEYWORD) for each in own)])
        with_flags.__signature__ = signature  # type: ignore[attr-defined]
        with_flags.__annotations__ = {name: each.annotation for name, each in signature.parameters.items()}
        return with_flags

    return decorate


def _parameter(name: str, field: FieldInfo, panel: str | None, separator: str) -> inspect.Parameter:
    flag, kind = config.flag(field), _type(field)
    option: Any
    if flag.argument:
        option = typer.Argument(metavar=flag.argument, help=_help(field))
    else:
        spelt = config.flag_names(name, field, separator)
        names = [f"--{each}/--no{separator}{each}" if kind is bool else f"--{each}" for each in spelt]
        option = typer.Option(*names, help=_help(field), rich_help_panel=panel, show_default=False)
    if flag.argument and field.is_required():
        return inspect.Parameter(name, _KEYWORD, annotation=Annotated[kind, option])
    return inspect.Parameter(name, _KEYWORD, default=None, annotation=Annotated[kind | None, option])


def _type(field: FieldInfo) -> Any:
    """The type that the command line reads."""
    if config.flag(field).commas:
        return str

    def plain(annotation: Any) -> Any:
        if annotation in (bool, int, float, str, Path):
            return annotation
        origin, inner = get_origin(annotation), get_args(annotation)
        if origin is Literal:
            return str
        if origin is dict:
            return list[str]
        first = plain(next(each for each in inner if each is not NoneType))
        return GenericAlias(list, (first,)) if origin is list else first

    return plain(field.annotation)


def _help(field: FieldInfo) -> str:
    """The field's description, and its default where that is a value and the description does not tell it."""
    text, default = " ".join((field.description or "").split()), field.get_default(call_default_factory=True)
    if "Default:" in text or default in (None, PydanticUndefined, [], {}) or default is False:
        return text
    return f"{text} Default: {', '.join(map(str, default)) if isinstance(default, list) else default}."


def _value(name: str, field: FieldInfo, given: Any) -> Any:
    """The setting that a flag says, None if it was not given.

    Raises DiffscaleError for a text of a mapping that is not name=value.
    """
    flag = config.flag(field)
    if given is None or given == []:
        return None
    if flag.commas:
        return [each.strip() for each in given.split(",")]
    if get_origin(field.annotation) is dict:
        return dict(_pair((flag.names or (name,))[0], text, get_args(field.annotation)[1]) for text in given)
    return given


def _pair(flag: str, text: str, kind: Any) -> tuple[str, Any]:
    """Name and value of `--flag name=value`; the value is YAML unless it is a string."""
    name, equals, value = text.partition("=")
    if not (name and equals) or (kind is str and not value):
        raise DiffscaleError(f"Write --{flag} as name=value, not {text!r}.")
    unreadable = f"The value of --{flag} {name} cannot be read, as YAML: {{why}}."
    return name, value if kind is str else config.parse_yaml(value, unreadable)
