"""Every code block of the README and of the documentation runs, from the top of a page to its end, in one folder.

What cannot run here is marked in a comment before the block: `<!-- gpu -->`, `<!-- network -->`, `<!-- long -->` or
`<!-- install -->`; flags of its `diffscale` commands are looked up all the same. `<!-- file: NAME -->`: the block is
a file. `<!-- stand-in: MODEL -->`: it is run with that model in the place of FLUX.1-dev. `<!-- hidden: bash` or
`<!-- hidden: python` begins a comment with what is run there and not shown.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from commands import run_diffscale

from diffscale.cli.main import app

ROOT = Path(__file__).parents[2]
REAL = "black-forest-labs/FLUX.1-dev"
NOT_RUN = ("gpu", "network", "long", "install", "main", "tests")
BLOCK = re.compile(
    r"<!-- hidden: (?P<hidden>\w+)\n(?P<unseen>.*?)^-->$"
    r"|(?:^<!-- (?P<mark>[^\n]*?) -->\n)?^```(?P<language>bash|python|text|json|toml)\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)
PAGES = [
    path
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
    if path.relative_to(ROOT).parts[1:2] not in (("generated",), ("reproduction",))
    and BLOCK.search(path.read_text("utf-8"))
]


@dataclass(frozen=True)
class Block:
    """`mark`: the comment before it. `language`: what it is written in. `line`: where it begins."""

    mark: str
    language: str
    code: str
    line: int


def blocks(page: Path) -> Iterator[Block]:
    text = page.read_text(encoding="utf-8")
    for found in BLOCK.finditer(text):
        line = text[: found.start()].count("\n") + 1
        if found["hidden"]:
            yield Block("", found["hidden"], found["unseen"], line)
        else:
            yield Block(found["mark"] or "", found["language"], found["code"], line)


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def flags_of(words: list[str]) -> tuple[list[str], set[str]]:
    """The flags that a `diffscale` command is given, and those that it takes."""
    command: Any = typer.main.get_command(app)
    context = click.Context(command)
    while words and getattr(command, "list_commands", None) is not None:
        command = command.get_command(context, words.pop(0))
        assert command is not None, words
    known = {flag for each in command.params for flag in [*each.opts, *each.secondary_opts]}
    return [word.partition("=")[0].replace("_", "-") for word in words if word.startswith("--")], {
        flag.replace("_", "-") for flag in known
    }


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_that_are_not_run_have_flags_that_exist(page: Path) -> None:
    for block in blocks(page):
        if block.language == "bash":
            for line in block.code.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words[:1] == ["diffscale"] and "train" not in words:  # each method of train has flags of its own
                    given, known = flags_of(words[1:])
                    assert set(given) <= known, (block.line, line)


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to be in, whose modules are forgotten."""
    monkeypatch.chdir(tmp_path)
    path, modules = list(sys.path), set(sys.modules)
    yield tmp_path
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_code_of_a_page_runs(page: Path, fresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names: dict[str, Any] = {"__name__": "__page__"}
    for block in blocks(page):
        mark, _, more = block.mark.partition(": ")
        code = block.code.replace(REAL, more) if mark == "stand-in" else block.code
        if mark == "file":
            (fresh / more).write_text(code, encoding="utf-8")
        elif mark in NOT_RUN:
            continue
        elif block.language == "bash":
            for line in code.replace("\\\n", " ").splitlines():
                where = f"{named(page)}:{block.line}: {line}"
                if line.startswith("diffscale "):
                    assert run_diffscale(monkeypatch, *shlex.split(line, comments=True)[1:]) == 0, where
                else:
                    assert subprocess.run(["bash", "-c", line], check=False).returncode == 0, where
        elif block.language == "python":
            exec(compile(code, f"{named(page)}:{block.line}", "exec"), names)
