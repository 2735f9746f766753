"""The reference: public names with their docstrings, rooms that users extend, and the commands with their flags."""

from pathlib import Path
from typing import Any

import click
import typer

import diffscale
from diffscale.cli.main import app

TITLES = {
    "diffscale.api": "Search a model",
    "diffscale.api.searched": "Searched: in the place of a pipeline",
    "diffscale.engine.results": "Results",
    "diffscale.types": "Vocabulary: states, requests, interfaces",
    "diffscale.samplers.denoiser": "Networks of your own",
    "diffscale.samplers.noise_schedules": "Noise schedules",
    "diffscale.models.options": "How models are loaded",
    "diffscale.verifiers": "Load a verifier",
    "diffscale.engine.driver": "Run many searches",
    "diffscale.engine.task": "Tasks",
    "diffscale.engine.allocation": "One budget for many prompts",
    "diffscale.engine.journal": "Journal",
    "diffscale.registry": "Plug-ins",
    "diffscale._util.errors": "Errors",
}
ROOMS = {
    "diffscale.testing": "Checks for searches and verifiers of your own",
    "diffscale.metrics.compared": "Metrics",
    "diffscale.models.class_conditional": "Class-conditional models",
    "diffscale.tape.tape": "Tapes",
    "diffscale.tape.replay": "Replay of tapes",
    "diffscale.samplers.formulas": "Formulas of noise levels",
    "diffscale.samplers.windowed": "Windowed pipelines",
}


def write_reference(folder: Path) -> None:
    """A page for each module that public names are of, and one for each room that users extend."""
    homes = {**TITLES, **{home: home for home in diffscale._HOMES if home not in TITLES}}
    for home, title in homes.items():
        lines = [f"# {title}", "", "```{eval-rst}"]
        for name in sorted(diffscale._HOMES[home]):
            lines += [*_documented(name), ""]
        (folder / f"{home}.md").write_text("\n".join([*lines, "```", ""]))
    for room, title in ROOMS.items():
        text = f"# {title}\n\n```{{eval-rst}}\n.. automodule:: {room}\n   :members:\n```\n"
        (folder / f"{room}.md").write_text(text)
    listed = [*homes, *ROOMS]
    text = "# Python reference\n\nAll of `diffscale.NAME`, and the modules that people extend.\n\n```{toctree}\n"
    (folder / "index.md").write_text(text + "\n".join(listed) + "\n```\n")


def _documented(name: str) -> list[str]:
    thing = getattr(diffscale, name)
    if isinstance(thing, type):
        return [f".. autoclass:: diffscale.{name}", "   :members:", "   :undoc-members:"]
    kind = "autofunction" if callable(thing) and hasattr(thing, "__code__") else "autodata"
    return [f".. {kind}:: diffscale.{name}"]


def write_commands(path: Path) -> None:
    """All commands with their flags, as `--help` tells them."""
    lines = ["# Commands", "", "As `diffscale COMMAND --help` tells them; flags may have `_` or `-`.", ""]
    path.write_text("\n".join([*lines, *_command(typer.main.get_command(app), "diffscale", 2)]), encoding="utf-8")


def _command(command: Any, name: str, depth: int) -> list[str]:
    context = click.Context(command, info_name=name)
    if (names := getattr(command, "list_commands", None)) is not None:
        lines: list[str] = []
        for each in names(context):
            lines += _command(command.get_command(context, each), f"{name} {each}", depth)
        return lines
    lines = [f"{'#' * depth} {name}", "", _cell(command.help or "").strip(), "", "| | |", "|---|---|"]
    for parameter in command.params:
        if parameter.name != "help":
            flags = parameter.opts if parameter.param_type_name == "option" else [parameter.name.upper()]
            lines.append(f"| `{'`, `'.join(flags)}` | {_cell(getattr(parameter, 'help', '') or '')} |")
    return [*lines, ""]


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")
