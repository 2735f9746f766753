"""What the machine computes quickly: the one place that asks."""

from __future__ import annotations

import torch


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware.

    Where it does not (x86 with AVX2 alone), bfloat16 is thirty times slower than float32.
    """
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def auto_dtype(device: str | torch.device) -> torch.dtype:
    """The dtype that a device computes quickly without loss of range.

    bfloat16 where the device has it; else float32 on a processor, and float16 on a GPU.
    """
    kind = torch.device(device).type
    if kind == "cpu":
        return torch.bfloat16 if fast_bfloat16() else torch.float32
    if kind == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float16
