"""What README and documentation say of files and messages is there; neither Sphinx nor a model is needed for it."""

from __future__ import annotations

import ast
import re
import tomllib
from functools import cache
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
OFFERED = PROJECT["entry-points"]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_is_short() -> None:
    assert len(README.encode()) <= 7168


def test_the_readme_links_to_files_that_are_there() -> None:
    links = {link for link in re.findall(r"\]\(([^)#]+)", README) if "://" not in link}
    assert len(links) > 15
    assert not [link for link in links if not (ROOT / link).is_file()]


def test_both_commands_of_the_readme_are_found_by_ci() -> None:
    for mark, end in (("main", "--output outputs/first"), ("tests", ".venv/bin/pytest")):
        (command,) = re.findall(rf"<!-- {mark} -->\n```bash\n(.*)\n```", README)
        assert command.startswith("python3 -m venv .venv") and command.endswith(end)


def test_the_readme_counts_the_searches() -> None:
    assert f"{len(OFFERED['diffscale.searches'])}, from papers and ours" in README


def test_advice_is_of_searches_and_verifiers_that_there_are() -> None:
    advice = yaml.safe_load((ROOT / "docs" / "_ext" / "advice.yaml").read_text(encoding="utf-8"))
    for kind in ("searches", "verifiers"):
        assert set(advice[kind]) <= set(OFFERED[f"diffscale.{kind}"])


@cache
def messages() -> list[str]:
    """All texts that stand in the code, pieces of f-strings one by one."""
    found = []
    for path in (ROOT / "src" / "diffscale").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                # What is put in by str.replace or a format is as a value of an f-string.
                found += [" ".join(piece.split()) for piece in re.split(r"\{\w*\}", node.value)]
    return found


TOLD = re.findall(r"```text\n(.*)\n```", (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8"))


@pytest.mark.parametrize("told", TOLD)
def test_errors_that_are_explained_are_those_of_the_code(told: str) -> None:
    pieces = [piece.strip() for piece in told.split("...") if len(piece.strip()) > 3]
    assert pieces and all(any(piece in message for message in messages()) for piece in pieces), pieces


def test_many_errors_are_explained() -> None:
    assert len(TOLD) >= 20
