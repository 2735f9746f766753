"""Flags derived from models: every kind of field, what the help says, and what a file says against flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import pytest
import typer
from pydantic import BaseModel, ConfigDict, Field
from typer.testing import CliRunner

from diffscale._util import config
from diffscale._util.config import Flag, parse_yaml
from diffscale._util.errors import DiffscaleError
from diffscale.cli.flags import settings_from_flags


class _Loading(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)
    panel: ClassVar[str] = "Loading"

    half: bool = Field(True, description="Half precision.")
    lora: list[str] = Field(default_factory=list, description="Repeatable.")
    size: Literal["small", "large"] | None = Field(None, description="Of the network.")


class _Settings(_Loading):
    word: Annotated[str, Flag(argument="WORD")] = Field(description="To draw.")
    rate: Annotated[float, Field(gt=0)] | None = Field(None, description="Of learning. Default: the model's own.")
    budgets: Annotated[list[int], Flag(("budget", "nfe"))] = Field([3, 4], description="In NFE.")
    pairs: Annotated[dict[str, Any], Flag(("pair",))] = Field(default_factory=dict, description="name=value.")
    data: dict[str, str] = Field(default_factory=dict, description="name=file.")
    metrics: Annotated[list[str], Flag(commas=True)] = Field(default_factory=list, description="By commas.")
    some_file: Path | None = Field(None, description="A file.")


def _run(*arguments: str, separator: str = "-") -> Any:
    """The settings that a command gets, or what it prints."""
    seen: list[Any] = []

    @settings_from_flags(_Settings, separator=separator)
    def command(settings: _Settings, output: Annotated[Path, typer.Option()] = Path("out")) -> None:
        """What it does."""
        seen.append((settings, output))

    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, arguments, env={"COLUMNS": "150"})
    if isinstance(result.exception, DiffscaleError):
        raise result.exception
    return seen[0] if seen else result.output


def test_every_kind_of_field_has_its_flag() -> None:
    settings, output = _run(
        "star", "--no-half", "--lora", "a", "--lora", "b", "--size", "large", "--rate", "0.5", "--budget", "1", "--nfe",
        "2", "--pair", "a=1", "--pair", "b=[x, y]", "--pair", "c=", "--data", "d=1", "--metrics", "fid, is",
        "--some-file", "f.txt", "--output", "there",
    )  # fmt: skip
    assert output == Path("there") and settings == _Settings(
        word="star", half=False, lora=["a", "b"], size="large", rate=0.5, budgets=[1, 2],
        pairs={"a": 1, "b": ["x", "y"], "c": None}, data={"d": "1"}, metrics=["fid", "is"], some_file=Path("f.txt"),
    )  # fmt: skip
    assert _run("star") == (_Settings(word="star"), Path("out"))
    assert _run("star", "--some_file", "f", "--no_half", separator="_")[0].some_file == Path("f")


def test_flags_override_a_file_which_repeats_the_run(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    settings = _Settings(word="star", half=False, budgets=[7], some_file=Path("f"))
    config.save(settings, file)
    assert config.resolve(_Settings, file) == settings
    # What is a class's own comes first, where people look.
    assert file.read_text().startswith("word: star")
    assert _run("square", "--config", str(file), "--half")[0] == settings.model_copy(
        update={"word": "square", "half": True}
    )


def test_aliases_are_read_and_bombs_of_them_are_not(tmp_path: Path) -> None:
    assert parse_yaml("a: &a [1]\nb: *a\nc: [*a, *a]", "{why}") == {"a": [1], "b": [1], "c": [[1], [1]]}
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
    for text, said in (
        (bomb, "stand for too much"),
        ("a: &a {b: [*a]}", "refers to what it is in"),
        ("[" * 5000, "deeply"),
    ):
        with pytest.raises(DiffscaleError, match=f"^Bad: .*{said}"):
            parse_yaml(text, "Bad: {why}.")


def test_help_says_defaults_once_and_groups_by_the_class_that_declares_a_field() -> None:
    page = " ".join(_run("--help").split())
    own, loading = page.split(" Loading ")
    assert "What it does." in own and "WORD" in own and "[required]" in own and "--budget,--nfe" in own
    assert "--half" in loading and "--no-half" in loading and "--half" not in own
    assert "In NFE. Default: 3, 4." in own and "Half precision. Default: True." in loading
    assert own.count("Default:") == 2  # of the rate as it is described, and of the budgets


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--pair", "a"], "Write --pair as name=value, not 'a'."),
        (["--data", "a="], "Write --data as name=value, not 'a='."),
        (["--rate", "-1"], "The setting rate is not right: Input should be greater than 0."),
        (["--size", "big"], "The setting size is not right: Input should be 'small' or 'large'."),
    ],
)
def test_what_is_wrong_is_said(arguments: list[str], said: str) -> None:
    with pytest.raises(DiffscaleError) as error:
        _run("star", *arguments)
    assert str(error.value) == said
