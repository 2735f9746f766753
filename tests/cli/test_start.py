"""The command line starts without the libraries of networks, which take seconds."""

from __future__ import annotations

import subprocess
import sys

import pytest

import diffscale


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["generate", "--help"], ["bench", "--budget", "x"]])
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


def test_the_package_offers_its_names() -> None:
    assert all(getattr(diffscale, name) is not None for name in diffscale.__all__)
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = diffscale.serach  # type: ignore[attr-defined]
