"""Names with arguments as users type them, such as `random n=8`."""

import inspect
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import FunctionType, NoneType, UnionType
from typing import Annotated, Any, Final, TypeVar, Union, get_args, get_origin

from pydantic import ConfigDict, PydanticUserError, TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError, UnknownName, check_name, explained, unknown

T = TypeVar("T")
_FINITE: Final = ConfigDict(allow_inf_nan=False, arbitrary_types_allowed=True)
_OF_RANGES: Final = (
    "finite_number", "greater_than", "greater_than_equal", "less_than", "less_than_equal", "too_short", "too_long",
)  # fmt: skip
_LISTED: Final = {"search": "searches", "verifier": "verifiers"}
_OF_YOUR_OWN: Final = "says what each does; one of your own is module:function, as mine:best for `best` in mine.py."
CONTEXT: Final = ("device", "image_model")
"""Arguments that a program gives by their names: where to run, and the model whose pictures will come."""


def parse(
    text: str, kind: str, factories: Mapping[str, Callable[..., Any]], inputs: int | None = None
) -> tuple[str, dict[str, Any]]:
    """Split "name key=value ..." and coerce the values by the factory's signature.

    Where it has no annotation for an argument, that is by the kind of the default (a text, a switch or a float), else
    by what the value looks like: 3 is an int, 3.0 a float, true and false are bools, all else is a text. The items of a
    list, a tuple or a set, by its annotation, stand between commas, as in sizes=1,2,3.

    `inputs`: how many of its arguments a program gives to a function, before all others; None: all without a default.

    Raises UnknownName for a name or an argument that does not exist, DiffscaleError for a value of the wrong type.
    """
    name, *pairs = words(text) or [""]
    if name not in factories:
        more = f" `diffscale list {_LISTED[kind]}` {_OF_YOUR_OWN}" if kind in _LISTED else ""
        raise UnknownName(f"{unknown(kind, name, factories)}{more}")
    factory = factories[name]
    needed = required(factory)
    given_by_program = needed if inputs is None else needed[: inputs if takes_inputs(factory, inputs) else 0]
    parameters = {
        p.name: p
        for p in signature(factory).parameters.values()
        # Keyword-only parameters with a default are for the program.
        if (p.kind is p.POSITIONAL_OR_KEYWORD or (p.kind is p.KEYWORD_ONLY and p.default is p.empty))
        and p.name not in (*CONTEXT, *given_by_program)
    }
    given: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise DiffscaleError(f"Write the arguments of {kind} {name} as key=value, not {pair!r}.")
        check_name(f"argument of {kind} {name}", key, parameters)
        if key in given:
            raise DiffscaleError(f"{key} of {kind} {name} is given twice: leave one out.")
        wanted = _kind(parameters[key], factory)
        if wanted is None:
            given[key] = _literal(value)
        elif value.lower() == "null" and NoneType in get_args(wanted):
            given[key] = None
        else:
            items = value.split(",") if _is_collection(wanted) else value
            with explained(f"No text gives {key} of {kind} {name}: give it in Python.", PydanticUserError):
                given[key] = _validated(items, wanted, f"{kind} {name}", key, value)
    return name, given


def made(given: str | T | None, kind: str, factories: Mapping[str, type[T]]) -> T | None:
    """What a text makes by one of `factories`, see `parse`; what one of them made already, and None, as they are.

    Raises DiffscaleError for what is nothing of these.
    """
    if isinstance(given, str):
        name, arguments = parse(given, kind, factories)
        return factories[name](**arguments)
    if given is not None and not isinstance(given, tuple(factories.values())):
        names = " or ".join(each.__name__ for each in factories.values())
        raise DiffscaleError(
            f"Give the {kind} as a text, such as {next(iter(factories))!r}, or as a {names}, not {given!r}."
        )
    return given


def check_keywords(thing: Callable[..., Any], kind: str) -> None:
    """Raise DiffscaleError for a keyword of a partial function that its annotation, such as a range, does not allow."""
    if isinstance(thing, partial):
        parameters = signature(thing.func).parameters
        for key, value in thing.keywords.items():
            wanted = _kind(parameters[key], thing.func) if key in parameters else None
            if wanted is not None:
                with suppress(PydanticUserError):
                    _validated(value, wanted, f"{kind} {thing.func.__name__}", key, str(value))


def _validated(value: Any, wanted: Any, who: str, key: str, text: str) -> Any:
    """`value` as `wanted`; numbers must be finite. `who` takes it as `key`, and it was given as `text`."""
    try:
        return TypeAdapter(wanted, config=_FINITE).validate_python(value)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] in _OF_RANGES:
            must = first["msg"].replace("Input should", "it should")
            raise DiffscaleError(f"{who} cannot take {key}={text}: {must}.") from error
        raise DiffscaleError(f"{who} takes {key} as {_described(wanted)}, but got {text!r}.") from error


def _described(wanted: Any) -> str:
    """A type as messages tell it, without what Annotated adds to it."""
    if get_origin(wanted) is Annotated:
        return _described(get_args(wanted)[0])
    if _is_union(wanted):
        return " | ".join(map(_described, get_args(wanted)))
    return "None" if wanted is NoneType else inspect.formatannotation(wanted)


def words(text: str) -> list[str]:
    """The words of `text`, in which quotation marks keep spaces together, as in a shell; backslashes are themselves.

    Raises DiffscaleError for a quotation mark that is not closed.
    """
    reader = shlex.shlex(text, posix=True, punctuation_chars=False)
    reader.whitespace_split, reader.escape, reader.commenters = True, "", ""
    with explained(f"A quotation mark is not closed in {text}: close it, or leave it out.", ValueError):
        return list(reader)


def rejoined(pieces: Iterable[str], is_name: Callable[[str], bool]) -> list[str]:
    """Names with arguments that were split at commas, put together again where a comma was in a value.

    `is_name`: whether a piece begins with a name, so that it does not go on with the value before it.
    """
    texts: list[str] = []
    for piece in pieces:
        if texts and "=" in texts[-1] and not is_name(piece):
            texts[-1] += f",{piece}"
        else:
            texts.append(piece)
    return texts


def signature(factory: Callable[..., Any]) -> inspect.Signature:
    """The signature of a callable; empty for what is written in C and tells nothing."""
    try:
        return inspect.signature(factory)
    except ValueError:
        return inspect.Signature()


def required(factory: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a callable needs, in order, but for `CONTEXT`."""
    parameters = signature(factory).parameters.values()
    named = [p for p in parameters if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    return [p.name for p in named if p.name not in CONTEXT]


def takes_inputs(thing: Callable[..., Any], inputs: int) -> bool:
    """Whether `thing` is itself what is called with that many `inputs`; else it is called to make that.

    Classes are called to make it, and so are functions that need fewer arguments.
    """
    if isinstance(thing, type):
        return False
    parameters = signature(thing).parameters.values()
    # What is written in C may not tell its parameters; a function of Python does, even that it has none.
    unknown = not parameters and not isinstance(innermost(thing), FunctionType)
    return len(required(thing)) >= inputs or any(p.kind is p.VAR_POSITIONAL for p in parameters) or unknown


def _kind(parameter: inspect.Parameter, factory: Callable[..., Any]) -> Any:
    """What the values of `parameter` are to be; None if that is not said."""
    annotation = parameter.annotation
    if isinstance(annotation, str):
        try:
            # One by one: others may name what is imported for type checkers only.
            annotation = eval(annotation, vars(sys.modules[innermost(factory).__module__]))
        except (NameError, AttributeError, KeyError, SyntaxError, TypeError):
            annotation = inspect.Parameter.empty
    if annotation is not inspect.Parameter.empty:
        return annotation
    # An int may be the default of a float.
    return type(parameter.default) if type(parameter.default) in (bool, float, str) else None


def _is_collection(wanted: Any) -> bool:
    """Whether an annotation, or one of its alternatives, is of a list or the like, and no text."""
    kinds = [get_origin(each) or each for each in (get_args(wanted) if _is_union(wanted) else (wanted,))]
    kinds = [each for each in kinds if isinstance(each, type)]
    return str not in kinds and any(issubclass(each, Collection) and not issubclass(each, Mapping) for each in kinds)


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, UnionType)


def innermost(factory: Callable[..., Any]) -> Callable[..., Any]:
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
