"""Searches and verifiers that users edit between two runs of one command."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import diffscale
from diffscale import DiffscaleError
from diffscale.cli.main import run
from diffscale.registry.sources import sources
from diffscale.samplers.toy import ToySampler

SEARCH = """
def climb(env):
    for _ in range({n}):
        yield from env.evaluate(env.prior(1))
    {more}
"""
VERIFIER = """
def v(images, prompts):
    {how}
"""
GOOD, OTHER, BAD = "return images.mean((1, 2, 3))", "return -images.mean((1, 2, 3))", "raise ValueError('not yet')"
CHANGED = "The code of module {} has changed since this run began: choose another --output, or remove the folder."


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a command as a new process would; gives what it said, which begins with its exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> str:
        for name in ("edited", "judged"):
            sys.modules.pop(name, None)
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
        monkeypatch.setattr(sys, "path", [*sys.path])
        monkeypatch.setattr(sys, "argv", ["diffscale", *arguments, "--steps", "2", "--output", "out"])
        with pytest.raises(SystemExit) as stopped:
            run()
        said = capsys.readouterr()
        return f"{stopped.value.code or 0} {said.out}{said.err}"

    return call


GENERATE = ("generate", "a red circle", "--budget", "4", "--dtype", "float32")
BENCH = ("bench", "shapes-mini", "--limit", "1", "--budget", "4", "--dtype", "float32")


@pytest.mark.parametrize("kind", [GENERATE, BENCH], ids=["generate", "bench"])
@pytest.mark.parametrize("verifier", ["judged:v", "ensemble of=clip,judged:v"])
def test_an_edited_verifier_is_another_run(kind: tuple[str, ...], verifier: str, command: Callable[..., str]) -> None:
    file = Path("judged.py")
    file.write_text(VERIFIER.format(how=GOOD))
    asked = (*kind, "--verifier", verifier)
    assert command(*asked).startswith("0")
    assert command(*asked).startswith("0")
    file.write_text(VERIFIER.format(how=OTHER))
    said = command(*asked)
    assert said.startswith("2") and CHANGED.format("judged") in said
    file.write_text(VERIFIER.format(how=GOOD))
    assert command(*asked).startswith("0")


@pytest.mark.parametrize("kind", [GENERATE, BENCH], ids=["generate", "bench"])
def test_a_verifier_that_failed_is_mended_and_run_again(kind: tuple[str, ...], command: Callable[..., str]) -> None:
    file = Path("judged.py")
    file.write_text(VERIFIER.format(how=BAD))
    asked = (*kind, "--verifier", "judged:v")
    assert "None of the 2 candidates" in command(*asked)
    file.write_text(VERIFIER.format(how=GOOD))
    said = command(*asked)
    assert said.startswith("0") and "None of the" not in said


def test_a_search_that_failed_is_mended_and_run_again(command: Callable[..., str]) -> None:
    file = Path("edited.py")
    asked = (*GENERATE, "--search", "edited:climb")
    file.write_text(SEARCH.format(n=2, more="raise ValueError('not yet')"))
    assert "ValueError: not yet, in line 5 of" in command(*asked)
    file.write_text(SEARCH.format(n=1, more="return"))
    assert command(*asked).startswith("0")
    assert json.loads(Path("out", "result.json").read_text())["nfe"] == 2
    file.write_text(SEARCH.format(n=2, more="return"))
    assert CHANGED.format("edited") in command(*asked)


def redder(images, prompts):  # type: ignore[no-untyped-def]
    return images[:, 0].mean((1, 2))


def test_functions_of_python_are_known_by_their_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    search = partial(diffscale.search, ToySampler(steps=2), "a point", nfe=4, journal=tmp_path / "journal.sqlite")
    first = search(verifier=redder)
    assert search(verifier=redder).best.score == first.best.score
    monkeypatch.setattr("inspect.getsource", lambda thing: "def redder(images, prompts): ...")
    with pytest.raises(DiffscaleError, match=r"code of .*test_edited_code:redder has changed since this run began"):
        search(verifier=redder)


def test_only_what_users_wrote_is_looked_at() -> None:
    assert (
        sources("random n=2", "clip", "ensemble of=clip:model=x,aesthetic", "llm_grader base_url=http://sys:80") == {}
    )
    assert sources(diffscale.load_verifier("clip", image_model="shapes-flux"), len) == {}
    assert list(sources(f"{__name__}:redder by=2")) == [f"module {__name__}"]
    assert list(sources(partial(redder), redder)) == [f"{__name__}:redder"]
