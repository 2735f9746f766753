"""Running `diffscale ...` as the command line does, in the test's own process or in one that has its imports."""

import os
import sys
from typing import Any

import pytest
from accelerate.state import AcceleratorState, GradientState

from diffscale.cli.main import run


def run_diffscale(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """The exit code of `diffscale ...`."""
    monkeypatch.setattr(sys, "argv", ["diffscale", *map(str, arguments)])
    try:
        run()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def forked(*arguments: Any, **environment: str) -> int:
    """`diffscale ...` in a process of its own, which has all imports already; its number."""
    process = os.fork()
    if process == 0:
        code = 1
        try:
            reset_accelerate()
            os.environ.update(environment)
            sys.argv = ["diffscale", *map(str, arguments)]
            run()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        finally:
            os._exit(code)
    return process


def reset_accelerate() -> None:
    """Forget what accelerate keeps for the whole process."""
    AcceleratorState._reset_state(True)
    GradientState._reset_state()
