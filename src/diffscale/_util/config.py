"""Settings from YAML files and flags, checked by pydantic; what is wrong is told in one sentence."""

import inspect
import os
import shlex
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import read_text, write_text

Settings = TypeVar("Settings", bound=BaseModel)
_ONE_LINE: Final = 10**6  # characters
_MOST_ITEMS: Final = 100_000  # of a configuration, its aliases written out


@dataclass(frozen=True)
class Flag:
    """What a field's metadata may say of its flag on the command line, where that is not just `--the-field`.

    `names`: of the flag, without dashes, all of them. `argument`: the metavar of a positional argument, which has no
    flag. `commas`: a list is given as one text with commas, and not by repeating the flag.
    """

    names: tuple[str, ...] = ()
    argument: str = ""
    commas: bool = False


def flag(field: FieldInfo) -> Flag:
    """The field's `Flag`, or the usual one."""
    return next((each for each in field.metadata if isinstance(each, Flag)), Flag())


def flag_names(name: str, field: FieldInfo, separator: str = "-") -> list[str]:
    """The names of a field's flag, without the dashes before them."""
    return [each.replace("_", separator) for each in flag(field).names or (name,)]


def command_line(settings: BaseModel, separator: str = "-", leave: Collection[str] = ()) -> str:
    """The arguments, quoted for a POSIX shell, that say `settings` to a command that takes them.

    What is at its default is left out, and so are the fields that `leave` names.
    """
    options: list[str] = []
    arguments: list[str] = []
    for name, field in fields(type(settings)).items():
        value = getattr(settings, name)
        if flag(field).argument:
            arguments += map(str, value) if isinstance(value, list) else [str(value)]
        elif name not in leave and value != field.get_default(call_default_factory=True):
            option = flag_names(name, field, separator)[0]
            if isinstance(value, bool):
                options.append(f"--{option}" if value else f"--no{separator}{option}")
                continue
            if isinstance(value, dict):  # read as YAML, or as a text where it can be none else
                written = str if get_args(field.annotation)[1] is str else _in_yaml
                value = [f"{key}={written(each)}" for key, each in value.items()]
            for each in value if isinstance(value, list) else [value]:
                options += [f"--{option}", str(each)]
    return shlex.join([*arguments, *options])


def _in_yaml(value: Any) -> str:
    """A value in one line of YAML."""
    text = yaml.safe_dump(value, default_flow_style=True, width=_ONE_LINE, allow_unicode=True)
    return text.removesuffix("...\n").strip()  # which ends a document that is a mere scalar


def fields(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """All fields of `model`: its own before those that it inherits, and these in the order of its bases."""
    names = dict.fromkeys(name for base in model.__mro__ for name in inspect.get_annotations(base))
    return {name: model.model_fields[name] for name in names if name in model.model_fields}


def panel(model: type[BaseModel], name: str) -> str | None:
    """The class attribute `panel` of the class that first declares the field: where help shows its flag."""
    first = next(base for base in reversed(model.__mro__) if name in inspect.get_annotations(base))
    return vars(first).get("panel")


def read(file: Path) -> dict[str, Any]:
    """The settings in a YAML file; raises DiffscaleError if there are none."""
    if not os.path.exists(file):
        raise DiffscaleError(
            f"There is no configuration {file}: give the path of one, such as the config.yaml of a run."
        )
    unreadable = f"The configuration {file} cannot be read; mend or remove it ({{why}})."
    with explained(unreadable, OSError, UnicodeDecodeError):
        text = read_text(file)
    settings = parse_yaml(text, unreadable)
    if not isinstance(settings, dict):
        raise DiffscaleError(f"The configuration {file} must hold `name: value` lines, such as `budget: 1280`.")
    return settings


def parse_yaml(text: str, sentence: str) -> Any:
    """What `text` says in YAML; raises DiffscaleError of that `sentence`, whose "{why}" becomes the reason."""
    try:
        content = yaml.safe_load(text)
        if _written_out(content, {}) > _MOST_ITEMS:
            raise ValueError("its aliases stand for too much")
        return content
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        # The latter three: numbers, dates and keys that cannot be, and too many brackets.
        deep = isinstance(error, RecursionError)
        why = "it is nested too deeply" if deep else " ".join(str(error).split())
        raise DiffscaleError(sentence.replace("{why}", why)) from error


def _written_out(content: Any, known: dict[int, int]) -> int:
    """How many items there are, aliases written out: a few of them can stand for more than any memory holds.

    `known`: the numbers of what was counted before, by its id. Raises ValueError for what is in itself.
    """
    if not isinstance(content, dict | list):
        return 1
    if id(content) not in known:
        known[id(content)] = 0  # on its way
        inner = content.values() if isinstance(content, dict) else content
        known[id(content)] = 1 + sum(_written_out(each, known) for each in inner)
    elif not known[id(content)]:
        raise ValueError("an alias refers to what it is in")
    return known[id(content)]


def validated(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    """The settings as `kind`; raises DiffscaleError that names the first wrong one."""
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(fields(kind))
        hint = f" (settings are: {allowed})" if first["type"] == "extra_forbidden" else ""
        raise DiffscaleError(f"The setting {where} is not right: {first['msg']}{hint}.") from error
    except TypeError as error:
        raise DiffscaleError(f"The configuration has a setting without a proper name: {error}.") from error


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """Which settings differ, as in "seed was 0, now 7"; empty if none does."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)


def resolve(kind: type[Settings], file: Path | None, flags: Mapping[str, Any] | None = None) -> Settings:
    """The settings of `file`, if there is one, overridden by the flags that were given (those not None).

    Raises DiffscaleError for a file that cannot be read and for values out of range, naming them.
    """
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    return validated(kind, ({} if file is None else read(file)) | given)


def save(settings: BaseModel, file: Path) -> None:
    """Write the settings, own ones before inherited ones, so that `--config FILE` repeats the run."""
    values = settings.model_dump(mode="json")
    ordered = {name: values[name] for name in fields(type(settings))}
    write_text(file, yaml.safe_dump(ordered, sort_keys=False, allow_unicode=True))
