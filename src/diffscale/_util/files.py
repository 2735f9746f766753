"""Small files: what is wrong with them is told in one sentence."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError

Kind = TypeVar("Kind")


def read_config(path: Path) -> dict[str, Any]:
    """A JSON file with one object; raises DiffscaleError if it is not one."""
    with suppress(OSError, ValueError):
        config = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(config, dict):
            return config
    raise DiffscaleError(f"The file {path} must hold one JSON object.")


def read_lines(path: str, what: str) -> list[str]:
    """The lines of a text file that are not empty; raises DiffscaleError if there are none. `what`: what they are."""
    try:
        lines = [line.strip() for line in Path(path).expanduser().read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise DiffscaleError(f"The file {path!r} of {what}, one a line, could not be read.") from error
    if not any(lines):
        raise DiffscaleError(f"The file {path!r} must have {what}, one a line, but it is empty.")
    return [line for line in lines if line]


def checked(kind: type[Kind], content: Mapping[str, Any], path: Path) -> Kind:
    """The content of the file `path` as `kind`; raises DiffscaleError that names the first field that is wrong."""
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise DiffscaleError(f"Mend {where} in {path}: {first['msg']}.") from error
