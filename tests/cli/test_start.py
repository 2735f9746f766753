"""The command line starts without the libraries of networks, which take seconds."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import diffscale
from diffscale.cli.main import spin_shortly

COMPUTES_NOTHING = [["--version"], ["--help"], ["generate", "--help"], ["bench", "--budget", "x"]]
COMPUTES_NOTHING += [["list", what] for what in ("models", "searches", "verifiers", "suites")]


@pytest.mark.parametrize("arguments", COMPUTES_NOTHING)
def test_what_computes_nothing_imports_no_networks(arguments: list[str]) -> None:
    code = f"""
import sys
from diffscale.cli.main import run
sys.argv = ["diffscale", *{arguments!r}]
try:
    run()
except SystemExit:
    print("heavy:", sorted({{"torch", "diffusers", "transformers", "scipy", "matplotlib"}} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "heavy: []", done


@pytest.mark.parametrize("wrong", [["--search", "zero_order m=3"], ["--verifier", "clip modle=x"]])
def test_what_is_wrong_with_a_search_or_a_verifier_is_told_before_networks_are_imported(wrong: list[str]) -> None:
    code = f"""
import sys
from diffscale.cli.main import run
sys.argv = ["diffscale", "generate", *{wrong!r}]
try:
    run()
except SystemExit as end:
    print(end.code, "diffusers" in sys.modules, any(".modeling_" in name for name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "2 False False", done


def test_importing_the_package_imports_no_library() -> None:
    code = "import sys, diffscale; print(sorted({'torch', 'numpy', 'diffusers', 'pydantic'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_the_package_offers_its_names() -> None:
    assert sorted(diffscale._HOME_OF) == sorted(diffscale.__all__)
    assert all(getattr(diffscale, name) is not None for name in diffscale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = diffscale.serach  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("given", "spins"),
    [({}, "3000"), ({"GOMP_SPINCOUNT": "7"}, "7"), ({"OMP_WAIT_POLICY": "active"}, None)],
)
def test_threads_that_wait_sleep_soon_unless_the_user_says_otherwise(
    given: dict[str, str], spins: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    spin_shortly()
    assert os.environ.get("GOMP_SPINCOUNT") == spins
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
