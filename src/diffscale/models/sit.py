"""SiT (Ma et al. 2024, arXiv 2401.08740): a transformer over patches of latents, told the time and a class.

Layout and names of the published weights: `models.py` of github.com/willisma/SiT (the network of DiT, Peebles and Xie
2023, arXiv 2212.09748, with timm's PatchEmbed, Attention and Mlp). Time runs the other way than elsewhere in this
library: t = 0 is noise, t = 1 is clean, and the output is the velocity dx/dt = x0 - eps.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError, explained
from diffscale.samplers.denoiser import Prediction
from diffscale.samplers.noise_schedules import LinearFlow

_FREQUENCIES: Final = 256  # numbers that tell the time
_MAX_PERIOD: Final = 10_000.0


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
        for name in ("input_size", "patch_size", "in_channels", "hidden_size", "depth", "num_heads", "num_classes"):
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
    with explained("These weights are not those of a SiT: {why} is missing or of another shape.", KeyError, ValueError):
        width, channels, patch, _ = state["x_embedder.proj.weight"].shape
        tokens, classes = state["pos_embed"].shape[1], len(state["y_embedder.embedding_table.weight"]) - 1
        outputs = len(state["final_layer.linear.bias"])
        hidden = len(state["blocks.0.mlp.fc1.bias"])
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


class SiT(nn.Module):
    """The network, made as it starts training: every block is the identity and the output 0 (adaLN-Zero)."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.hidden_size, config.input_size // config.patch_size
        outputs = config.in_channels * (1 + config.learn_sigma)
        self.x_embedder = _named(proj=nn.Conv2d(config.in_channels, width, config.patch_size, config.patch_size))
        self.t_embedder = _Time(width)
        classes = config.num_classes + (config.class_dropout_prob > 0)
        self.y_embedder = _named(embedding_table=nn.Embedding(classes, width))
        self.pos_embed = nn.Parameter(positions(side, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.final_layer = _Final(width, config.patch_size**2 * outputs)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity [B, C, S, S] at latents `x` [B, C, S, S], times `t` [B] in [0, 1] and classes `y` int64 [B]."""
        patch, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        condition = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x).flatten(2).transpose(1, 2) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, condition)
        tokens = self.final_layer(tokens, condition)
        pixels = tokens.view(len(x), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(len(x), -1, side * patch, side * patch)[:, : self.config.in_channels]

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear | nn.Conv2d):
                assert module.bias is not None
                nn.init.zeros_(module.bias)
                if name.startswith("t_embedder."):
                    nn.init.normal_(module.weight, std=0.02)
                elif name.endswith("adaLN_modulation.1") or name == "final_layer.linear":
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight.flatten(1))


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        exponent = torch.arange(half, device=t.device, dtype=t.dtype) / half
        angle = t[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponent)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(next(self.parameters()).dtype))


class _Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(rows, tokens, width))


class _Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by the condition."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        hidden = int(width * ratio)
        self.mlp = _named(fc1=nn.Linear(width, hidden), act=nn.GELU("tanh"), fc2=nn.Linear(hidden, width))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        x = x + gate * self.attn(_normed(x) * (1 + scale) + shift)
        return x + gate_mlp * self.mlp(_normed(x) * (1 + scale_mlp) + shift_mlp)


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(condition)[:, None].chunk(2, -1)
        return self.linear(_normed(x) * (1 + scale) + shift)


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row, float32 [side^2, width]: the first half of a token tells its column."""
    rate = _MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    angle = torch.arange(side, dtype=torch.float64)[:, None] * rate
    one = torch.cat([angle.sin(), angle.cos()], -1)
    return torch.cat([one.repeat(side, 1), one.repeat_interleave(side, 0)], -1).float()


def _named(**modules: nn.Module) -> nn.Sequential:
    """Modules one after the other, under the names that published weights have."""
    return nn.Sequential(OrderedDict(modules))


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


class SiTDenoiser:
    """SiT on the linear flow, with its own time and velocity.

    Guidance acts on the first 3 of 4 channels, as in the authors' `forward_with_cfg` (github.com/willisma/SiT,
    models.py); of latents with more channels, which they have none of, on all.
    """

    schedule = LinearFlow(data_time=1)
    prediction: Prediction = "velocity"

    def __init__(self, network: SiT) -> None:
        self.network = network
        config = network.config
        self.shape: tuple[int, ...] = config.in_channels, config.input_size, config.input_size
        self.guided = 3 if config.in_channels == 4 else config.in_channels
        self.classes = config.num_classes
        self.null: int | None = config.num_classes if config.class_dropout_prob > 0 else None

    def __call__(self, x: Tensor, times: Tensor, ids: Tensor) -> Tensor:
        return self.network(x.to(dtype_of(self.network)), times, ids)


def dtype_of(network: nn.Module) -> torch.dtype:
    """In which a network computes."""
    return next(p.dtype for p in network.parameters() if p.is_floating_point())
