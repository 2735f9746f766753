"""Oracle Inception Score (Ma et al. 2025): the probability that InceptionV3 gives to the conditioning class."""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import transformers
from pydantic import BaseModel, Field
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale._util.files import checked
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import download, fetch, load_into, load_state, saved_config
from diffscale.suites.imagenet import inception_order
from diffscale.types import Verifier
from diffscale.verifiers.classes import Classifier, ClassVerifier, Output, PretrainedClassifier
from diffscale.verifiers.preprocess import resize_like_tensorflow

FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
URL: Final = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256: Final = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


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

Kernel = int | tuple[int, int]
Branches = dict[str, list[tuple[int, *tuple[Kernel, ...]]]]
"""Convolutions in order, by the name of their branch: channels at full width, and the kernel.

A kernel of 0 halves the picture with 3 x 3. Two kernels are two convolutions side by side that read the same.
"""


def _a(pooled: int) -> Branches:
    double: Branches = {"branch3x3dbl": [(64, 1), (96, 3), (96, 3)]}
    return {"branch1x1": [(64, 1)], "branch5x5": [(48, 1), (64, 5)], **double, "branch_pool": [(pooled, 1)]}


def _c(inner: int) -> Branches:
    return {
        "branch1x1": [(192, 1)],
        "branch7x7": [(inner, 1), (inner, (1, 7)), (192, (7, 1))],
        "branch7x7dbl": [(inner, 1), (inner, (7, 1)), (inner, (1, 7)), (inner, (7, 1)), (192, (1, 7))],
        "branch_pool": [(192, 1)],
    }


_E: Final[Branches] = {
    "branch1x1": [(320, 1)],
    "branch3x3": [(384, 1), (384, (1, 3), (3, 1))],
    "branch3x3dbl": [(448, 1), (384, 3), (384, (1, 3), (3, 1))],
    "branch_pool": [(192, 1)],
}
BLOCKS: Final[dict[str, tuple[Branches, str]]] = {
    "Mixed_5b": (_a(32), "mean"),
    "Mixed_5c": (_a(64), "mean"),
    "Mixed_5d": (_a(64), "mean"),
    "Mixed_6a": ({"branch3x3": [(384, 0)], "branch3x3dbl": [(64, 1), (96, 3), (96, 0)]}, "half"),
    **{f"Mixed_6{letter}": (_c(inner), "mean") for letter, inner in zip("bcde", (128, 160, 160, 192), strict=True)},
    "Mixed_7a": (
        {"branch3x3": [(192, 1), (320, 0)], "branch7x7x3": [(192, 1), (192, (1, 7)), (192, (7, 1)), (192, 0)]},
        "half",
    ),
    "Mixed_7b": (_E, "mean"),
    "Mixed_7c": (_E, "max"),
}
"""Branches and pooling of each `Mixed`, in order."""


def _scaled(channels: int, width: float) -> int:
    return max(1, round(channels * width))


def conv(before: int, after: int, kernel: Kernel, stride: int = 1, padded: bool = False) -> nn.Module:
    """Convolution without bias, batch norm, ReLU. The picture keeps its size if it is `padded`."""
    convolution = nn.Conv2d(before, after, kernel, stride, "same" if padded else "valid", bias=False)
    norm = nn.BatchNorm2d(after, eps=0.001)
    return nn.Sequential(OrderedDict(conv=convolution, bn=norm, relu=nn.ReLU(inplace=True)))


class Mixed(nn.Module):
    """Branches side by side, their channels joined in order.

    `pool`: `mean` and `max` go before `branch_pool` and leave zeros of the border out, `half` is a last branch of its
    own that halves the picture. `self.width`: channels out, where all channels are times `width`.
    """

    def __init__(self, before: int, branches: Branches, pool: str, width: float) -> None:
        super().__init__()
        self.pool, self.width = pool, before if pool == "half" else 0
        self.branches: list[list[list[str]]] = []  # names of modules: those of a step read what the step before made
        for branch, steps in branches.items():
            names, channels = [], before
            for number, (full, *kernels) in enumerate(steps, start=1):
                name, after = f"{branch}_{number}" if len(steps) > 1 else branch, _scaled(full, width)
                names.append([name] if len(kernels) == 1 else [f"{name}a", f"{name}b"])
                for each, kernel in zip(names[-1], kernels, strict=True):
                    made = conv(channels, after, kernel, padded=True) if kernel else conv(channels, after, 3, 2)
                    self.add_module(each, made)
                channels = after
            self.width += channels * len(names[-1])
            self.branches.append(names)

    def forward(self, x: Tensor) -> Tensor:
        joined = []
        for *steps, last in self.branches:
            y = self._pooled(x) if last == ["branch_pool"] else x
            for (name,) in steps:
                y = self.get_submodule(name)(y)
            joined += [self.get_submodule(name)(y) for name in last]
        if self.pool == "half":
            joined.append(F.max_pool2d(x, 3, 2))
        return torch.cat(joined, 1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.pool == "max":
            return F.max_pool2d(x, 3, 1, 1)
        return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


class InceptionV3(nn.Module):
    """Pixels to pooled features and logits, as FID and IS use it: the network of 2015-12-05, in torchvision's layout.

    Mixed_7c pools by the maximum, and averages leave the border's zeros out: the network of 2015 does so, torchvision's
    does not. Source: github.com/mseitzer/pytorch-fid, src/pytorch_fid/inception.py.
    """

    def __init__(self, width: float = 1.0, outputs: int = 1008) -> None:
        super().__init__()
        a, b, c, d, channels = (_scaled(each, width) for each in (32, 32, 64, 80, 192))
        self.Conv2d_1a_3x3 = conv(3, a, 3, 2)
        self.Conv2d_2a_3x3 = conv(a, b, 3)
        self.Conv2d_2b_3x3 = conv(b, c, 3, padded=True)
        self.Conv2d_3b_1x1 = conv(c, d, 1)
        self.Conv2d_4a_3x3 = conv(d, channels, 3)
        for name, (branches, pool) in BLOCKS.items():
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


@dataclass
class Inception(Classifier):
    """An `InceptionV3`, for FID, IS and the oracle.

    Pictures of any shape are stretched to `side` as in TensorFlow 1. Its pooled features have 2048 numbers in the
    published network.
    """

    side: int

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.net.fc.weight.device, torch.float32)
        # The network was trained on bytes, minus 128, divided by 128.
        return self.net((resize_like_tensorflow(images, self.side, self.side) * 255 - 128) / 128)

    def logits(self, images: Tensor) -> Tensor:
        return self.net.fc(self(images))


def load_inception(model: str | None = None, sha256: str = SHA256, *, device: Any = "cpu") -> Classifier:
    """An InceptionV3 by file, folder, Hub id or name; by default the published network of FID.

    A folder with config.json is read from safetensors: an InceptionV3 of any width, see `InceptionConfig`, or
    any image classifier of transformers. Other files are pickles in the layout of pt_inception-2015-12-05, held to
    `sha256` or the published digest. Raises DiffscaleError for weights that cannot be loaded.
    """
    saved = None if model is None else saved_config(model)
    if model is not None and saved is not None and "model_type" in saved:
        family, what = transformers.AutoModelForImageClassification, "image classifier"
        return PretrainedClassifier.load(family, model, what, device, "inception")
    path = download(URL, SHA256) if model is None else fetch(model, FILE if saved is None else "model.safetensors")
    config = PUBLISHED if saved is None else checked(InceptionConfig, saved, path.with_name("config.json"))
    net = InceptionV3(config.width, config.outputs)
    load_into(net, load_state(path, sha256), path)
    net.to(device).eval().requires_grad_(False)
    order = torch.arange(config.outputs) if config.order == "plain" else torch.tensor(inception_order())
    return Inception(net, order, f"inception {network_digest(net)}", config.side)


def inception(
    model: str | None = None, output: Output = "probability", sha256: str = SHA256, *, device: Any = "cpu"
) -> Verifier:
    """Oracle Inception Score: probability of the class, in [0, 1]; `model` is a file, folder, Hub id or name.

    The Inception Score of a set rises with it, so that it is an oracle where that is the judge. Raises DiffscaleError
    for weights that cannot be loaded.
    """
    return ClassVerifier(load_inception(model, sha256, device=device), output, "inception")
