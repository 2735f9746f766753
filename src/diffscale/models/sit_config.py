"""The sizes of SiT, as its `config.json` and the shapes of its published weights state them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError


@dataclass(frozen=True)
class SiTConfig:
    """Arguments as the original calls them. `input_size`: side of the latents, `depth`: blocks.

    `class_dropout_prob`: not 0 where the network also knows the null class, number `num_classes`, as guidance needs.
    `learn_sigma`: whether it has twice the channels, of which the second half is not used.
    """

    input_size: int = 32
    patch_size: int = 2
    in_channels: int = 4
    hidden_size: int = 1152
    depth: int = 28
    num_heads: int = 16
    mlp_ratio: float = 4.0
    class_dropout_prob: float = 0.1
    num_classes: int = 1000
    learn_sigma: bool = True

    def __post_init__(self) -> None:
        counts = ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes")
        for name in counts:
            if getattr(self, name) < 1:
                raise DiffscaleError(f"A SiT's {name} must be 1 or more, not {getattr(self, name)}.")
        if not (self.mlp_ratio > 0 and 0 <= self.class_dropout_prob <= 1):
            raise DiffscaleError(
                "A SiT's mlp_ratio must be above 0 and its class_dropout_prob from 0 to 1, not "
                f"{self.mlp_ratio} and {self.class_dropout_prob}."
            )
        if self.input_size % self.patch_size or self.hidden_size % self.num_heads or self.hidden_size % 4:
            raise DiffscaleError(
                "A SiT's input_size must be a multiple of its patch_size, and its hidden_size one of num_heads and of "
                f"4, but {self} was given."
            )


SIZES: Final = {
    "SiT-S/2": SiTConfig(hidden_size=384, depth=12, num_heads=6),
    "SiT-B/2": SiTConfig(hidden_size=768, depth=12, num_heads=12),
    "SiT-L/2": SiTConfig(hidden_size=1024, depth=24, num_heads=16),
    "SiT-XL/2": SiTConfig(),
}
"""The published sizes, for 256x256 pixels as latents 32x32x4."""


def config_of(state: Mapping[str, Tensor]) -> SiTConfig:
    """The configuration of published weights, read off their shapes; raises DiffscaleError for none of `SIZES`' widths.

    Shapes do not tell the number of heads; it goes by the width. The last class is taken for the null class.
    """
    try:
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens, classes = state["pos_embed"].shape[1], len(state["y_embedder.embedding_table.weight"]) - 1
        outputs = len(state["final_layer.linear.bias"])
        hidden = len(state["blocks.0.mlp.fc1.bias"])
    except (KeyError, ValueError) as error:
        raise DiffscaleError(
            f"These weights are not those of a SiT: {error} is missing or of another shape."
        ) from error
    heads = {config.hidden_size: config.num_heads for config in SIZES.values()}
    if width not in heads:
        raise DiffscaleError(
            f"A SiT of width {width} is none of {', '.join(SIZES)}: write its config.json, see "
            "diffscale.models.class_conditional."
        )
    return SiTConfig(
        input_size=math.isqrt(tokens) * patch,
        patch_size=patch,
        in_channels=channels,
        hidden_size=width,
        depth=len({name.split(".")[1] for name in state if name.startswith("blocks.")}),
        num_heads=heads[width],
        mlp_ratio=hidden / width,
        num_classes=classes,
        learn_sigma=outputs == 2 * channels * patch**2,
    )
