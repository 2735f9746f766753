"""
A network of your own
=====================

Any callable that denoises becomes a sampler. Here it is the exact denoiser of a small data set, written by hand:
sixteen pictures of bars, of which each sample becomes one, or a mixture where the noise does not decide. No file, no
training.
"""

import matplotlib.pyplot as plt
import torch

import diffscale
from diffscale import DenoiserSampler, LinearFlow

data = torch.full((16, 1, 16, 16), -1.0)
for i in range(8):
    data[i, :, 2 * i : 2 * i + 2] = 1
    data[8 + i, :, :, 2 * i : 2 * i + 2] = 1


def network(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
    """The mean of the data given ``x = (1 - t) data + t noise``, shaped like ``x`` [B, 1, 16, 16]; ``t`` is [B]."""
    t = t.view(-1, 1).clamp(min=1e-3)
    distance = (x.flatten(1)[:, None] - (1 - t[..., None]) * data.flatten(1)).square().sum(-1)
    weights = (-distance / (2 * t**2)).softmax(1)
    return (weights @ data.flatten(1)).view_as(x)


sampler = DenoiserSampler(network, LinearFlow(), prediction="data", shape=(1, 16, 16), steps=20, prompts=["a bar"])


def low(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """How far down the light is, 0 to 1."""
    rows = torch.linspace(0, 1, images.shape[2])
    weight = images.mean((1, 3))
    return (weight * rows).sum(1) / weight.sum(1).clamp(min=1e-6)


# %%
# Every search runs on it, those with stochastic steps between noise levels too.

names = ["random n=1", "random", "zero_order n=4", "fk k=8", "svdd"]
figure, axes = plt.subplots(1, len(names), figsize=(10, 2.6))
for ax, name in zip(axes, names, strict=True):
    result = diffscale.search(sampler, "a bar", search=name, verifier=low, nfe=160)
    ax.imshow(result.best.image[0], cmap="viridis")
    ax.set_title(f"{name}\n{result.best.score:.2f}", fontsize=9)
    ax.axis("off")
figure.tight_layout()
