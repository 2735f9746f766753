"""The two networks of the example: a flow on handwritten digits, and a classifier of them.

Their layouts are those of the published weights, see `mnist.py`.
"""

import math
from collections import OrderedDict
from pathlib import Path
from typing import Self

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

NO_CLASS = 10
"""The class that means none, for guidance."""

_WIDTH, _PATCH, _SIDE = 64, 7, 4


class DigitFlow(nn.Module):
    """A class-conditional flow on pictures of 28x28 pixels, from noise at t = 0 to data at t = 1.

    x_t = (1 - t) noise + t data. A transformer reads 16 patches, two tokens of the time and two of the class.
    """

    def __init__(self) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(1, _WIDTH, _PATCH, _PATCH)
        self.pos_embed = nn.Parameter(torch.zeros(1, _SIDE**2, _WIDTH))
        self.y_encoder = nn.Embedding(NO_CLASS + 1, 2 * _WIDTH)
        self.transformer = nn.Sequential(
            *(nn.TransformerEncoderLayer(_WIDTH, 4, 4 * _WIDTH, 0.0, "gelu", batch_first=True) for _ in range(4))
        )
        self.unpatch = nn.ConvTranspose2d(_WIDTH, 1, _PATCH, _PATCH)

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The clean pictures [B, 1, 28, 28] that it predicts from `x` at times `t` [B] for classes `y` int64 [B]."""
        patches = self.patch_embed(x).flatten(2).transpose(1, 2) + self.pos_embed
        rates = torch.exp(-math.log(10_000) / 63 * torch.arange(64, device=t.device))
        angles = t[:, None] * rates
        time = torch.stack([angles.sin(), angles.cos()], 1)
        digit = self.y_encoder(y).view(-1, 2, _WIDTH)
        tokens = self.transformer(torch.cat([patches, time, digit], 1))
        return self.unpatch(tokens[:, : _SIDE**2].transpose(1, 2).unflatten(2, (_SIDE, _SIDE)))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The network with the weights `diffusion_vit.safetensors` of `folder`."""
        return _loaded(cls(), folder / "diffusion_vit.safetensors")


class LeNet(nn.Module):
    """A classifier of digits, 99.1% right on the test set of MNIST."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = {"c1": nn.Conv2d(1, 6, 5), "c3": nn.Conv2d(6, 16, 5), "c5": nn.Conv2d(16, 120, 5)}
        self.convnet = nn.ModuleDict(convolutions)
        self.fc = nn.Sequential(OrderedDict(f6=nn.Linear(120, 84), relu=nn.ReLU(), f7=nn.Linear(84, 10)))

    def forward(self, x: Tensor) -> Tensor:
        """Log probabilities [B, 10] of pictures [B, 1, 28, 28] in [0, 1]."""
        x = F.pad(x, (2, 2, 2, 2))
        for name in ("c1", "c3"):
            x = F.max_pool2d(self.convnet[name](x).relu(), 2)
        return self.fc(self.convnet["c5"](x).relu().flatten(1)).log_softmax(-1)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """The network with the weights `lenet.safetensors` of `folder`."""
        return _loaded(cls(), folder / "lenet.safetensors")


def _loaded(network: nn.Module, path: Path) -> nn.Module:
    network.load_state_dict(load_file(path))
    return network.eval().requires_grad_(False)
