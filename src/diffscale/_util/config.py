"""Settings from YAML files and flags, checked by pydantic; what is wrong is told in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from diffscale._util.errors import DiffscaleError

Settings = TypeVar("Settings", bound=BaseModel)


def read(file: Path) -> dict[str, Any]:
    """The settings in a YAML file; raises DiffscaleError if there are none."""
    try:
        settings = yaml.safe_load(file.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise DiffscaleError(f"The configuration {file} cannot be read; mend or remove it ({reason}).") from error
    if not isinstance(settings, dict):
        raise DiffscaleError(f"The configuration {file} must hold `name: value` lines, such as `budget: 1280`.")
    return settings


def validated(kind: type[Settings], settings: dict[str, Any]) -> Settings:
    """The settings as `kind`; raises DiffscaleError that names the first wrong one."""
    try:
        return kind(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        allowed = ", ".join(kind.model_fields)
        hint = f" (settings are: {allowed})" if first["type"] == "extra_forbidden" else ""
        raise DiffscaleError(f"The setting {where} is not right: {first['msg']}{hint}.") from error
    except TypeError as error:
        raise DiffscaleError(f"The configuration has a setting without a proper name: {error}.") from error
