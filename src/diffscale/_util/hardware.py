"""What the machine computes quickly: the one place that asks."""

import platform

import torch


def fast_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 matrices in hardware.

    An x86 processor without AVX512_BF16 or AMX emulates it: four times slower than float32 with AVX-512 (measured),
    thirty times with AVX2 alone, although oneDNN says of the former that bfloat16 is supported.
    """
    able = torch.cpu.get_capabilities()
    if able["architecture"] == "x86_64":
        return bool(able["avx512_bf16"] or able["amx_bf16"])
    return torch.backends.mkldnn.is_available() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # type: ignore[no-untyped-call]


def device_name(device: str) -> str:
    """What people call the device, such as "NVIDIA H200", or "cpu, x86_64, 2 threads" of a processor."""
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.cuda.get_device_name(torch.device(device))
    return f"{device}, {platform.machine()}, {torch.get_num_threads()} threads"
