"""Floating-point operations of a block of code."""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count


def _cpu_attention_flops(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


# FlopCounterMode knows the attention kernels of GPUs only.
_CPU_ATTENTION: Final = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _cpu_attention_flops}


@dataclass
class Flops:
    """What a `count_flops` block did, known when it ends."""

    total: int = 0
    uncounted: int = 0


class _Open(threading.local):
    """Blocks of this thread that count, the innermost last."""

    def __init__(self) -> None:
        self.blocks: list[Flops] = []


_open = _Open()


class _NoModules(AbstractContextManager["_NoModules"]):
    """In the place of the counter's tracker of modules, which would see those that other threads call."""

    parents: Final = ("Global",)

    def __exit__(self, *_: Any) -> None: ...


class _Eager:
    """A stance of torch.compile that threads share, of which the last one out gives back what was there before.

    Compiled code cannot be counted; met under the counter, torch.compile would give it up for good.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._stance = threading.Lock(), 0, ExitStack()

    @contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._inside:
                self._stance.enter_context(torch.compiler.set_stance("force_eager"))
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._stance.close()


_eager = _Eager()


@contextmanager
def count_flops() -> Iterator[Flops]:
    """Counts a block's operations (a multiply-add is 2), less those that ran `uncounted`."""
    flops = Flops()
    _open.blocks.append(flops)
    counter = FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    try:
        with _eager(), counter:
            yield flops
        flops.total = counter.get_total_flops() - flops.uncounted
    finally:
        _open.blocks.pop()


@contextmanager
def uncounted() -> Iterator[None]:
    """A block that runs once and is kept, such as the features of a prompt: no candidate pays for it.

    Who pays would depend on which candidate came first, and so on batch size and restarts.
    """
    if not _open.blocks:
        yield
        return
    outer = list(_open.blocks)
    with count_flops() as flops:
        yield
    for each in outer:
        each.uncounted += flops.total
