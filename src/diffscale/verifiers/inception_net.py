"""InceptionV3 as FID and IS use it: the network of 2015-12-05 in the layout of torchvision's, at any width."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

Kernel = int | tuple[int, int]
Branch = dict[str, tuple[int, Kernel]]
"""Convolutions of a branch in order, by name: channels at full width, and the kernel.

A kernel of 0 halves the picture with 3 x 3. Names that end in a and b both read what is before them.
"""


class InceptionConfig(BaseModel):
    """The sizes of an `InceptionV3`, and what its outputs mean.

    `width`: all channels times this; `outputs`: of the classifier; `side`: pixels that pictures are stretched to;
    `order`: which output is which class, `ilsvrc2012` (see `imagenet.inception_order`) or `plain`, output i is class i.
    """

    width: float = Field(gt=0)
    outputs: int = Field(gt=0)
    side: int = Field(ge=75)
    order: Literal["plain", "ilsvrc2012"]


PUBLISHED = InceptionConfig(width=1.0, outputs=1008, side=299, order="ilsvrc2012")


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU. The picture keeps its size if it is `padded`."""

    def __init__(self, before: int, after: int, kernel: Kernel = 1, stride: int = 1, padded: bool = False) -> None:
        super().__init__()
        rows, columns = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (rows // 2, columns // 2) if padded else 0
        self.conv = nn.Conv2d(before, after, (rows, columns), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their channels joined in order.

    `pool`: `mean` and `max` go before `branch_pool` and leave zeros of the border out, `half` is a last branch of its
    own that halves the picture. `self.width`: channels out, where all channels are times `width`.
    """

    def __init__(self, before: int, branches: list[Branch], pool: str, width: float) -> None:
        super().__init__()
        self.pool = pool
        self.branches = [list(branch) for branch in branches]
        self.width = before if pool == "half" else 0
        for branch in branches:
            channels = before
            for name, (full, kernel) in branch.items():
                after = _scaled(full, width)
                self.add_module(
                    name, Conv(channels, after, kernel, padded=True) if kernel else Conv(channels, after, 3, 2)
                )
                forked = name.endswith("a")
                channels = channels if forked else after
                self.width += after if forked or name == list(branch)[-1] else 0

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        for names in self.branches:
            y = self._pooled(x) if names == ["branch_pool"] else x
            for name in names:
                z = self.get_submodule(name)(y)
                if name.endswith("a"):
                    joined.append(z)
                else:
                    y = z
            joined.append(y)
        if self.pool == "half":
            joined.append(F.max_pool2d(x, 3, 2))
        return torch.cat(joined, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionV3(nn.Module):
    """Pixels to pooled features and logits.

    Mixed_7c pools by the maximum, and averages leave the border's zeros out: the network of 2015 does so, torchvision's
    does not. Source: github.com/mseitzer/pytorch-fid, src/pytorch_fid/inception.py.
    """

    def __init__(self, width: float = 1.0, outputs: int = 1008) -> None:
        super().__init__()
        a, b, c, d, e = (_scaled(channels, width) for channels in (32, 32, 64, 80, 192))
        self.Conv2d_1a_3x3 = Conv(3, a, 3, 2)
        self.Conv2d_2a_3x3 = Conv(a, b, 3)
        self.Conv2d_2b_3x3 = Conv(b, c, 3, padded=True)
        self.Conv2d_3b_1x1 = Conv(c, d)
        self.Conv2d_4a_3x3 = Conv(d, e, 3)
        channels = e
        for name, (branches, pool) in _blocks().items():
            block = Mixed(channels, branches, pool, width)
            self.add_module(name, block)
            channels = block.width
        self.fc = nn.Linear(channels, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features [B, D], 2048 at full width, of `pixels` [B, 3, side, side] in [-1, 1]."""
        x = pixels
        for name, block in self.named_children():
            if name in ("Conv2d_3b_1x1", "Mixed_5b"):
                x = F.max_pool2d(x, 3, 2)
            if name != "fc":
                x = block(x)
        return x.mean((2, 3))


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def _blocks() -> dict[str, tuple[list[Branch], str]]:
    """Branches and pooling of each Mixed, by name and in order."""
    return {
        "Mixed_5b": (_a(32), "mean"),
        "Mixed_5c": (_a(64), "mean"),
        "Mixed_5d": (_a(64), "mean"),
        "Mixed_6a": (_b(), "half"),
        "Mixed_6b": (_c(128), "mean"),
        "Mixed_6c": (_c(160), "mean"),
        "Mixed_6d": (_c(160), "mean"),
        "Mixed_6e": (_c(192), "mean"),
        "Mixed_7a": (_d(), "half"),
        "Mixed_7b": (_e(), "mean"),
        "Mixed_7c": (_e(), "max"),
    }


def _a(pooled: int) -> list[Branch]:
    return [
        {"branch1x1": (64, 1)},
        {"branch5x5_1": (48, 1), "branch5x5_2": (64, 5)},
        {"branch3x3dbl_1": (64, 1), "branch3x3dbl_2": (96, 3), "branch3x3dbl_3": (96, 3)},
        {"branch_pool": (pooled, 1)},
    ]


def _b() -> list[Branch]:
    double: Branch = {"branch3x3dbl_1": (64, 1), "branch3x3dbl_2": (96, 3), "branch3x3dbl_3": (96, 0)}
    return [{"branch3x3": (384, 0)}, double]


def _c(inner: int) -> list[Branch]:
    kernels: list[Kernel] = [1, (7, 1), (1, 7), (7, 1), (1, 7)]
    double = {f"branch7x7dbl_{i}": (192 if i == 5 else inner, kernel) for i, kernel in enumerate(kernels, start=1)}
    single: Branch = {"branch7x7_1": (inner, 1), "branch7x7_2": (inner, (1, 7)), "branch7x7_3": (192, (7, 1))}
    return [{"branch1x1": (192, 1)}, single, double, {"branch_pool": (192, 1)}]


def _d() -> list[Branch]:
    kernels: list[Kernel] = [1, (1, 7), (7, 1), 0]
    double = {f"branch7x7x3_{i}": (192, kernel) for i, kernel in enumerate(kernels, start=1)}
    return [{"branch3x3_1": (192, 1), "branch3x3_2": (320, 0)}, double]


def _e() -> list[Branch]:
    single: Branch = {"branch3x3_1": (384, 1), "branch3x3_2a": (384, (1, 3)), "branch3x3_2b": (384, (3, 1))}
    double: Branch = {
        **{"branch3x3dbl_1": (448, 1), "branch3x3dbl_2": (384, 3)},
        **{"branch3x3dbl_3a": (384, (1, 3)), "branch3x3dbl_3b": (384, (3, 1))},
    }
    return [{"branch1x1": (320, 1)}, single, double, {"branch_pool": (192, 1)}]
