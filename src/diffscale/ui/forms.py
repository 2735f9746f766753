"""The form of the page: settings of what was filled in, and a folder for the run; what is wrong is one sentence."""

import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import yaml

from diffscale._util import config
from diffscale._util.errors import DiffscaleError
from diffscale.bench.config import GenerateConfig, check_names

FIELDS: Final = ("prompt", "model", "search", "verifier", "budget", "seed")
"""Settings with a place of their own on the page."""


def settings_of(form: Mapping[str, Any], more: str) -> GenerateConfig:
    """The settings of `form`, by the names of FIELDS, and of `more`, which is YAML of any others.

    Raises DiffscaleError that says what is wrong; names of searches and verifiers are checked, nothing is loaded.
    """
    others = config.parse_yaml(more, "The further settings cannot be read, as YAML: {why}.") or {}
    if not isinstance(others, dict):
        raise DiffscaleError("Write the further settings as `name: value` lines, such as `steps: 20`.")
    if twice := [name for name in FIELDS if name in others]:
        raise DiffscaleError(f"Leave {twice[0]} out of the further settings: the form has a place for it.")
    if empty := [name for name in FIELDS if form.get(name) in (None, "")]:
        raise DiffscaleError(f"Fill in the {empty[0]}: it is empty.")
    settings = config.validated(GenerateConfig, {**form, **others})
    check_names([settings.search], settings.verifiers)
    return settings


def form_of(settings: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """What the form shows of the settings of a run, so that it can be started again with changes; of none the defaults.

    Settings at their defaults are left out of the YAML, and so is the dtype, which is that of one model and machine.
    """
    usual = config.resolve(GenerateConfig, None).model_dump(mode="json")
    others = {
        name: value
        for name, value in settings.items()
        if name not in (*FIELDS, "dtype") and value != usual.get(name, value)
    }
    shown = yaml.safe_dump(others, sort_keys=False, allow_unicode=True) if others else ""
    return {name: settings.get(name, usual[name]) for name in FIELDS}, shown


def new_folder(root: Path, settings: GenerateConfig) -> Path:
    """A new run folder in `root`, with the settings in it, named by the time and the first words of the prompt.

    Raises DiffscaleError if it cannot be made.
    """
    words = "-".join(re.findall(r"[a-z0-9]+", settings.prompt.lower()))[:40].strip("-") or "search"
    name, number = f"{time.strftime('%Y%m%d-%H%M%S')}-{words}", 1
    while True:
        folder = root / (name if number == 1 else f"{name}-{number}")
        try:
            folder.mkdir(parents=True)
            config.save(settings, folder / "config.yaml")
            return folder
        except FileExistsError:
            number += 1
        except OSError as error:
            raise DiffscaleError(
                f"{folder} cannot be written to ({error.strerror}): make room, or start `diffscale ui` with another "
                "folder."
            ) from error
