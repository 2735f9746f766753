"""Every bad input of the table ends with exit code 2 and one sentence, and loses nothing."""

import hashlib
import os
import random
import resource
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import bad_files
import bad_inputs
import pytest

from diffscale.cli.main import run

CASES = bad_inputs.every_case()
PARTS = 12  # so that several workers share them
MOST = 1000  # characters of a sentence, which may hold a long path twice


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bad")
    bad_files.make_files(folder)
    return folder


def contents(folder: Path) -> dict[str, str]:
    """Digests of all files that a user has."""
    files = [path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def fault(code: object, said: str) -> str:
    """What is wrong with how a command ended; empty if nothing is."""
    if code != 2:
        return f"exit code {code}"
    if "Traceback" in said:
        return "a traceback"
    if "Usage: diffscale" in said or "╭─ Error" in said:
        return ""  # what the parser of flags refuses
    sentence = said.partition("error: ")[2].strip()
    if not sentence or "\n" in sentence or not sentence.endswith((".", "?")):
        return "no sentence"
    return "a long sentence" if len(sentence) > MOST else ""


def test_there_are_many_bad_inputs():
    assert len(CASES) >= 500 and len({tuple(case) for case in CASES}) > 0.95 * len(CASES)


@pytest.mark.parametrize("part", range(PARTS))
def test_every_bad_input_is_told_in_a_sentence(part, home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # or each would wait for the network
    before, faults = contents(home), []
    for case in CASES[part::PARTS]:
        monkeypatch.setattr(sys, "argv", ["diffscale", *case])
        code: object = 0
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                run()
            except SystemExit as end:
                code = end.code
            except Exception as error:
                code = f"{type(error).__name__}: {error}"
        if found := fault(code, capsys.readouterr().err):
            faults.append((" ".join(case)[:200], found))
        for made in ("out", "outputs"):
            shutil.rmtree(home / made, ignore_errors=True)
    assert not faults
    assert contents(home) == before


@pytest.mark.slow
def test_some_of_them_as_real_processes(home):
    for case in random.Random(0).sample(CASES, 20):
        began = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(
            [sys.executable, "-m", "diffscale", *case], cwd=home, capture_output=True, text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False,
        )  # fmt: skip
        ended = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert not fault(done.returncode, done.stderr), (case, done.stderr)
        assert ended.ru_utime + ended.ru_stime - began.ru_utime - began.ru_stime < 15, case
        shutil.rmtree(home / "out", ignore_errors=True)
