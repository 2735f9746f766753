"""Fixtures of many tests."""

import os
import signal
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

# Before torch is there, and for processes that tests start: to networks so small more threads only cost, most of all
# beside other work on few cores.
os.environ["OMP_NUM_THREADS"] = "1"

import pytest
import torch
from diffusers import DDIMScheduler
from pipelines import Brightness, tiny_sd

from diffscale.models import dtypes


@pytest.fixture(scope="session", autouse=True)
def _signals_are_heard() -> None:
    """A suite that runs in the background is started with signals ignored, which tests send to themselves."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)


@pytest.fixture(scope="session", autouse=True)
def _float32() -> Iterator[None]:
    """What `auto` stands for is float32 on any machine; tests of `auto` say what the machine can do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(dtypes, "fast_bfloat16", lambda: False)
        patched.setattr(dtypes, "published_dtype", lambda *_: "float32")
        yield


@pytest.fixture
def verifier() -> Brightness:
    return Brightness()


@pytest.fixture
def sd() -> SimpleNamespace:
    return tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))


@pytest.fixture
def rows_of() -> Callable[[torch.nn.Module], list[int]]:
    """Hooks a network and returns the list that its calls append their rows to."""

    def watch(network: torch.nn.Module) -> list[int]:
        rows: list[int] = []

        def note(_: Any, args: Any, kwargs: Any) -> None:
            first = next(v for v in [*args, *kwargs.values()] if torch.is_tensor(v))
            rows.append(len(first))

        network.register_forward_pre_hook(note, with_kwargs=True)
        return rows

    return watch
