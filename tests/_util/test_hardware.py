"""Which processors compute bfloat16 quickly."""

import pytest
import torch

from diffscale._util import hardware


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
