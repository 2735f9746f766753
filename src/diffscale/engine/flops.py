"""Floating-point operations of a block of code."""

from collections.abc import Iterator
from contextlib import contextmanager
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


_open: list[Flops] = []


@contextmanager
def count_flops() -> Iterator[Flops]:
    """Counts a block's operations (a multiply-add is 2), less those that ran `uncounted`."""
    flops = Flops()
    _open.append(flops)
    try:
        # Compiled code cannot be counted; met under the counter, torch.compile would give it up for good.
        with (
            torch.compiler.set_stance("force_eager"),
            FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter,
        ):
            yield flops
        flops.total = counter.get_total_flops() - flops.uncounted
    finally:
        _open.pop()


@contextmanager
def uncounted() -> Iterator[None]:
    """A block that runs once and is kept, such as the features of a prompt: no candidate pays for it.

    Who pays would depend on which candidate came first, and so on batch size and restarts.
    """
    if not _open:
        yield
        return
    outer = list(_open)
    with count_flops() as flops:
        yield
    for each in outer:
        each.uncounted += flops.total
