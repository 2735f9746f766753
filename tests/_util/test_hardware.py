"""The dtype that a machine computes quickly, of both kinds of processor."""

import pytest
import torch

from diffscale._util import hardware


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_a_processor_computes_in_bfloat16_where_it_has_it(
    monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(hardware, "fast_bfloat16", lambda: fast)
    assert hardware.auto_dtype("cpu") == hardware.auto_dtype(torch.device("cpu")) == dtype


@pytest.mark.parametrize(
    ("architecture", "able", "fast"),
    [
        ("x86_64", (), False),
        ("x86_64", ("avx512_bf16",), True),
        ("x86_64", ("amx_bf16",), True),
        ("aarch64", (), False),
    ],
)
def test_a_processor_that_emulates_bfloat16_is_slow(
    monkeypatch: pytest.MonkeyPatch, architecture: str, able: tuple[str, ...], fast: bool
) -> None:
    names = ("avx512_bf16", "amx_bf16")
    capabilities = {"architecture": architecture, **{name: name in able for name in names}}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert hardware.fast_bfloat16() is fast


@pytest.mark.parametrize(("native", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_a_gpu_without_bfloat16_computes_in_float16(
    monkeypatch: pytest.MonkeyPatch, native: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert hardware.auto_dtype("cuda:1") == dtype
    assert hardware.auto_dtype("mps") == torch.float16
