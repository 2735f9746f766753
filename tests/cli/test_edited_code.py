"""Searches and verifiers, and files which these read, that users edit between two runs of one command."""

from __future__ import annotations

import inspect
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

import diffscale
from diffscale import DiffscaleError
from diffscale.cli.main import run
from diffscale.registry import plugins
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
    assert list(sources(f"{__name__}:redder by=2")) == [f"code of module {__name__}"]
    assert list(sources(partial(redder), redder)) == [f"code of {__name__}:redder"]


@pytest.mark.parametrize("kind", [GENERATE, BENCH], ids=["generate", "bench"])
@pytest.mark.parametrize(
    "asked", [("--search", "edited:count file=a.txt"), ("--verifier", "ensemble of=judged:told:file=a.txt,judged:v")]
)
def test_a_file_that_is_edited_makes_another_run(
    kind: tuple[str, ...], asked: tuple[str, ...], command: Callable[..., str]
) -> None:
    Path("edited.py").write_text(
        "def count(env, file=''):\n    yield from env.evaluate(env.prior(int(open(file).read())))"
    )
    told = "\n\ndef told(images, prompts, file=''):\n    return [float(open(file).read())] * len(images)"
    Path("judged.py").write_text(VERIFIER.format(how=GOOD) + told)
    file = Path("a.txt")
    file.write_text("1")
    assert command(*kind, *asked).startswith("0")
    file.write_text("2")
    said = command(*kind, *asked)
    why = "The file a.txt has changed since this run began: choose another --output, or remove the folder."
    assert said.startswith("2") and why in " ".join(said.split())
    file.write_text("1")
    assert command(*kind, *asked).startswith("0")


def test_every_option_that_names_a_file_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of all searches and verifiers that are registered, of members of ensembles, and of partial functions."""
    monkeypatch.chdir(tmp_path)
    file, weights, pictures = Path("a b,c.json"), Path("weights"), Path("pictures")
    weights.mkdir()
    pictures.mkdir()

    def edited(given: str | Callable[..., object], part: Path) -> bool:
        """Whether another content of a file makes other sources."""
        part.write_text("1")
        before = sources(given)
        part.write_text("2")
        return sources(given) != before

    options = []
    for kind in ("searches", "verifiers"):
        for name, thing in plugins(kind).items():
            for key, parameter in inspect.signature(thing).parameters.items():
                if parameter.kind is not parameter.KEYWORD_ONLY and "str" in str(parameter.annotation):
                    options.append(f"{name} {key}")
                    assert edited(f'{name} {key}="{file}"', file)
                    assert edited(f"ensemble of='clip:model=x,{name}:{key}={file}:n=1,aesthetic'", file)
                    assert edited(f"{name} {key}=weights", weights / "config.json")
                    assert edited(f"{name} {key}=weights", weights / "network.safetensors")
                    assert edited(partial(thing, **{key: str(file)}), file)
    assert {"auto profile", "oracle_fid reference", "clip_zeroshot classes", "aesthetic model"} <= {*options}
    assert edited(partial(redder, prompts=file), file) and edited(partial(partial(redder, str(file)), n=2), file)
    assert not edited("clip model=weights", weights / "diffscale.json")
    assert not edited("clip model=pictures", pictures / "1.png")
