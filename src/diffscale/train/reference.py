"""The frozen network that training starts from, while its other self is trained: a LoRA switched off, or a copy."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

from torch import nn

from diffscale._util.errors import DiffscaleError, first_line

ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that diffusers' training scripts put a LoRA on."""


def add_lora(
    networks: Iterable[nn.Module], rank: int, alpha: int | None = None, targets: Sequence[str] = ATTENTION,
    name: str = "default",
) -> None:  # fmt: skip
    """Freeze diffusers `networks` and give each a LoRA called `name`, which alone is trained; it starts as no change.

    `alpha`: by default the rank, for a scale of 1. Raises DiffscaleError if peft is not installed, and for networks
    that have none of the layers `targets`.
    """
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise DiffscaleError('LoRA training needs the library peft: pip install "diffscale[lora]".') from error
    for network in networks:
        network.requires_grad_(False)
        lora = LoraConfig(
            r=rank, lora_alpha=alpha or rank, init_lora_weights="gaussian", target_modules=list(targets)
        )  # fmt: skip
        try:
            network.add_adapter(lora, adapter_name=name)  # type: ignore[operator]
        except ValueError as error:
            raise DiffscaleError(
                f"{type(network).__name__} takes no LoRA on {', '.join(targets)} ({first_line(error)}): train all "
                "weights with --full."
            ) from error


@contextmanager
def lora_off(networks: Iterable[nn.Module], name: str) -> Iterator[None]:
    """Within it the LoRA `name` adds nothing; others, that the base came with, stay. Raises DiffscaleError if none."""
    layers = [layer for network in networks for layer in _layers(network, name)]
    if not layers:
        raise DiffscaleError(f"The network has no LoRA called {name!r}: add it before training.")
    own = [layer.scaling[name] for layer in layers]
    for layer in layers:
        layer.scaling[name] = 0.0
    try:
        yield
    finally:
        for layer, scale in zip(layers, own, strict=True):
            layer.scaling[name] = scale


def frozen(networks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
    """Copies that no training reaches."""
    return {name: copy.deepcopy(network).requires_grad_(False).eval() for name, network in networks.items()}


def _layers(network: nn.Module, name: str) -> list[Any]:
    return [layer for layer in network.modules() if name in (getattr(layer, "scaling", None) or {})]
