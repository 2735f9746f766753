"""InceptionV3 as FID and IS use it: the network of 2015-12-05 in the layout of torchvision's, at any width."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError

PUBLISHED: Final[dict[str, Any]] = {"width": 1.0, "outputs": 1008, "side": 299, "order": "ilsvrc2012"}
"""The published network.

`width`: all channels times this; `outputs`: of the classifier; `side`: pixels that pictures are stretched to, at least
75; `order`: which output is which class, `ilsvrc2012` (see `imagenet.inception_order`) or `plain`, output i is class i.
"""

Kernel = int | tuple[int, int]


class Conv(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(self, before: int, after: int, kernel: Kernel = 1, stride: int = 1, padding: Kernel = 0) -> None:
        super().__init__()
        self.conv = nn.Conv2d(before, after, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(after, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


class Mixed(nn.Module):
    """Branches side by side, their channels joined in order.

    `spec`: for each branch its convolutions (name, channels, kernel); a kernel of None halves the picture with 3 x 3;
    names that end in a and b both read what is before them. `pool`: `mean` and `max` go before `branch_pool` and leave
    zeros of the border out, `half` is a last branch of its own that halves the picture. `self.width`: channels out.
    """

    def __init__(self, before: int, spec: list[list[tuple[str, int, Kernel | None]]], pool: str) -> None:
        super().__init__()
        self.pool = pool
        self.branches = [[name for name, _, _ in branch] for branch in spec]
        self.width = before if pool == "half" else 0
        for branch in spec:
            channels = before
            for name, after, kernel in branch:
                self.add_module(name, _conv(channels, after, kernel))
                forked = name.endswith("a")
                channels = channels if forked else after
                self.width += after if forked or name == branch[-1][0] else 0

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

        def c(channels: int) -> int:
            return max(1, round(channels * width))

        self.Conv2d_1a_3x3 = Conv(3, c(32), 3, 2)
        self.Conv2d_2a_3x3 = Conv(c(32), c(32), 3)
        self.Conv2d_2b_3x3 = Conv(c(32), c(64), 3, padding=1)
        self.Conv2d_3b_1x1 = Conv(c(64), c(80))
        self.Conv2d_4a_3x3 = Conv(c(80), c(192), 3)
        channels = c(192)
        for name, spec, pool in _blocks():
            scaled = [[(part, c(after), kernel) for part, after, kernel in branch] for branch in spec]
            block = Mixed(channels, scaled, pool)
            self.add_module(name, block)
            channels = block.width
        self.fc = nn.Linear(channels, outputs)

    def forward(self, pixels: Tensor) -> Tensor:
        """Pooled features [B, D], 2048 at full width, of `pixels` [B, 3, side, side] in [-1, 1]."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(pixels)))
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(F.max_pool2d(x, 3, 2)))
        x = F.max_pool2d(x, 3, 2)
        for name, _, _ in _blocks():
            x = self.get_submodule(name)(x)
        return x.mean((2, 3))


def build(config: dict[str, Any]) -> InceptionV3:
    """The network of a config with the keys of `PUBLISHED`; raises DiffscaleError for a wrong one."""
    missing = sorted(PUBLISHED.keys() - config.keys())
    if missing:
        raise DiffscaleError(f"The config of an Inception network lacks {', '.join(missing)}.")
    if not (config["width"] > 0 and config["outputs"] > 0 and config["side"] >= 75):
        raise DiffscaleError("An Inception network needs a width and outputs above 0 and a side of at least 75.")
    if config["order"] not in ("plain", "ilsvrc2012"):
        raise DiffscaleError(f"The order of an Inception network is plain or ilsvrc2012, not {config['order']!r}.")
    return InceptionV3(config["width"], config["outputs"])


def save_inception(net: InceptionV3, config: dict[str, Any], folder: str | Path) -> None:
    """Write config.json and model.safetensors, from which `inception` loads the network again."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file(
        {name: value.contiguous().cpu() for name, value in net.state_dict().items()}, folder / "model.safetensors"
    )


def _conv(before: int, after: int, kernel: Kernel | None) -> Conv:
    if kernel is None:
        return Conv(before, after, 3, 2)
    return Conv(before, after, kernel, 1, kernel // 2 if isinstance(kernel, int) else (kernel[0] // 2, kernel[1] // 2))


def _blocks() -> list[tuple[str, list[list[tuple[str, int, Kernel | None]]], str]]:
    """Name, branches and pooling of each Mixed, in order; channels at full width."""
    return [
        ("Mixed_5b", _a(32), "mean"),
        ("Mixed_5c", _a(64), "mean"),
        ("Mixed_5d", _a(64), "mean"),
        ("Mixed_6a", _b(), "half"),
        ("Mixed_6b", _c(128), "mean"),
        ("Mixed_6c", _c(160), "mean"),
        ("Mixed_6d", _c(160), "mean"),
        ("Mixed_6e", _c(192), "mean"),
        ("Mixed_7a", _d(), "half"),
        ("Mixed_7b", _e(), "mean"),
        ("Mixed_7c", _e(), "max"),
    ]


def _a(pooled: int) -> list[list[tuple[str, int, Kernel | None]]]:
    return [
        [("branch1x1", 64, 1)],
        [("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)],
        [("branch_pool", pooled, 1)],
    ]


def _b() -> list[list[tuple[str, int, Kernel | None]]]:
    return [
        [("branch3x3", 384, None)],
        [("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, None)],
    ]


def _c(inner: int) -> list[list[tuple[str, int, Kernel | None]]]:
    twice: list[tuple[str, int, Kernel | None]] = [("branch7x7dbl_1", inner, 1)]
    for at, kernel in enumerate(((7, 1), (1, 7), (7, 1), (1, 7)), start=2):
        twice.append((f"branch7x7dbl_{at}", 192 if at == 5 else inner, kernel))
    return [
        [("branch1x1", 192, 1)],
        [("branch7x7_1", inner, 1), ("branch7x7_2", inner, (1, 7)), ("branch7x7_3", 192, (7, 1))],
        twice,
        [("branch_pool", 192, 1)],
    ]


def _d() -> list[list[tuple[str, int, Kernel | None]]]:
    return [
        [("branch3x3_1", 192, 1), ("branch3x3_2", 320, None)],
        [
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, None),
        ],
    ]


def _e() -> list[list[tuple[str, int, Kernel | None]]]:
    return [
        [("branch1x1", 320, 1)],
        [("branch3x3_1", 384, 1), ("branch3x3_2a", 384, (1, 3)), ("branch3x3_2b", 384, (3, 1))],
        [
            ("branch3x3dbl_1", 448, 1),
            ("branch3x3dbl_2", 384, 3),
            ("branch3x3dbl_3a", 384, (1, 3)),
            ("branch3x3dbl_3b", 384, (3, 1)),
        ],
        [("branch_pool", 192, 1)],
    ]
