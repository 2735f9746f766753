"""SiT (Ma et al. 2024, arXiv 2401.08740): a transformer over patches of latents, told the time and a class.

Layout and names of the published weights: `models.py` of github.com/willisma/SiT (the network of DiT, Peebles and Xie
2023, arXiv 2212.09748, with timm's PatchEmbed, Attention and Mlp). Time runs the other way than elsewhere in this
library: t = 0 is noise, t = 1 is clean, and the output is the velocity dx/dt = x0 - eps.
"""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale.models.sit_config import SiTConfig

_FREQUENCIES: Final = 256  # numbers that tell the time
_MAX_PERIOD: Final = 10_000.0


class SiT(nn.Module):
    """The network, made as it starts training: every block is the identity and the output 0 (adaLN-Zero)."""

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        self.config = config
        width, side = config.hidden_size, config.input_size // config.patch_size
        outputs = config.in_channels * (1 + config.learn_sigma)
        self.x_embedder = _Patches(config.in_channels, width, config.patch_size)
        self.t_embedder = _Time(width)
        self.y_embedder = _Label(config.num_classes + (config.class_dropout_prob > 0), width)
        self.pos_embed = nn.Parameter(positions(side, width)[None], requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, config.num_heads, config.mlp_ratio) for _ in range(config.depth))
        self.final_layer = _Final(width, config.patch_size**2 * outputs)
        self._initialise()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The velocity [B, C, S, S] at latents `x` [B, C, S, S], times `t` [B] in [0, 1] and classes `y` int64 [B]."""
        patch, side = self.config.patch_size, self.config.input_size // self.config.patch_size
        told = self.t_embedder(t) + self.y_embedder(y)
        tokens = self.x_embedder(x) + self.pos_embed
        for block in self.blocks:
            tokens = block(tokens, told)
        tokens = self.final_layer(tokens, told)
        pixels = tokens.view(len(x), side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        return pixels.reshape(len(x), -1, side * patch, side * patch)[:, : self.config.in_channels]

    def _initialise(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, nn.Conv2d):
                nn.init.xavier_uniform_(module.weight.view(len(module.weight), -1))
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
            elif isinstance(module, nn.Linear):
                if name.startswith("t_embedder."):
                    nn.init.normal_(module.weight, std=0.02)
                elif name.endswith("adaLN_modulation.1") or name == "final_layer.linear":
                    nn.init.zeros_(module.weight)
                else:
                    nn.init.xavier_uniform_(module.weight)
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                nn.init.zeros_(module.bias)


class _Patches(nn.Module):
    def __init__(self, channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels, width, patch, stride=patch)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class _Time(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))

    def forward(self, t: Tensor) -> Tensor:
        half = _FREQUENCIES // 2
        exponent = torch.arange(half, device=t.device, dtype=t.dtype) / half
        angle = t[:, None] * torch.exp(-math.log(_MAX_PERIOD) * exponent)
        return self.mlp(torch.cat([angle.cos(), angle.sin()], -1).to(next(self.parameters()).dtype))


class _Label(nn.Module):
    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        self.embedding_table = nn.Embedding(rows, width)

    def forward(self, y: Tensor) -> Tensor:
        return self.embedding_table(y)


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


class _Mlp(nn.Module):
    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class _Block(nn.Module):
    """Attention and MLP, each shifted, scaled and gated by what the network is told."""

    def __init__(self, width: int, heads: int, ratio: float) -> None:
        super().__init__()
        self.attn = _Attention(width, heads)
        self.mlp = _Mlp(width, int(width * ratio))
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = self.adaLN_modulation(told)[:, None].chunk(6, -1)
        x = x + gate * self.attn(_normed(x) * (1 + scale) + shift)
        return x + gate_mlp * self.mlp(_normed(x) * (1 + scale_mlp) + shift_mlp)


class _Final(nn.Module):
    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, outputs)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(width, 2 * width))

    def forward(self, x: Tensor, told: Tensor) -> Tensor:
        shift, scale = self.adaLN_modulation(told)[:, None].chunk(2, -1)
        return self.linear(_normed(x) * (1 + scale) + shift)


def positions(side: int, width: int) -> Tensor:
    """Sines and cosines of column and row, float32 [side^2, width]: the first half of a token tells its column."""
    rate = _MAX_PERIOD ** -(torch.arange(width // 4, dtype=torch.float64) / (width // 4))
    at = torch.arange(side, dtype=torch.float64)[:, None] * rate
    one = torch.cat([at.sin(), at.cos()], -1)
    return torch.cat([one.repeat(side, 1), one.repeat_interleave(side, 0)], -1).float()


def _normed(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)
