"""Keyed noise: every draw is a pure function of a 64-bit key, never of batch, order or device.

A counter-based generator of our own, since torch's CPU generator keeps only the low 32 bits of its
seed, so that two of 100,000 candidates would likely be the same picture.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

_BLOCK = 2**18  # numbers drawn at once
_GOLDEN = 0x9E3779B97F4A7C15
_MIX = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB))


def root(seed: int) -> int:
    """The signed 64-bit key that all keys of a run with `seed` (any integer) descend from."""
    return fold(0, "seed", seed)


def fold(key: int, *path: int | str) -> int:
    """The descendant of `key` along `path`; different paths give unrelated signed 64-bit keys."""
    digest = hashlib.blake2b(repr((key, *path)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def fold_rows(keys: Tensor, *path: int | str) -> Tensor:
    """`fold` of every key in `keys`, int64 [B]."""
    return torch.tensor([fold(key, *path) for key in keys.tolist()], dtype=torch.int64)


def normal(keys: Tensor, shape: Sequence[int]) -> Tensor:
    """Standard normal noise, float32 [B, *shape] on the CPU, row i from `keys[i]` (int64 [B]) only.

    SplitMix64 (Steele, Lea, Flood 2014) on key and counter, then Box-Muller in float64.
    """
    size = math.prod(shape)
    counter = _splitmix(torch.arange(2 * ((size + 1) // 2)) * _signed(_GOLDEN))
    # A few rows at a time: small noises at once, large ones without large intermediates.
    blocks = keys.cpu().split(max(1, _BLOCK // max(1, len(counter))))
    rows = [_normal_rows(block, counter)[:, :size] for block in blocks]
    return torch.cat(rows).view(len(keys), *shape)


def uniform(keys: Tensor) -> Tensor:
    """Uniform draws in (0, 1), float64 [B], one from each key."""
    return (_shift(_splitmix(_splitmix(keys) ^ _signed(_GOLDEN)), 11).double() + 0.5) * 2.0**-53


def permutation(key: int, count: int) -> Tensor:
    """The numbers 0 to count - 1 in an order that `key` decides alone: int64 [count]."""
    return uniform(torch.arange(count) ^ key).argsort(stable=True)


def neighbours(x: Tensor, keys: Tensor, cosine: float) -> Tensor:
    """Noises [B, ...] near those of `x`: each at that cosine similarity to its row of `x` and of the same norm.

    y = |x| (c u + sqrt(1 - c^2) w), u = x / |x|, w the unit vector of v - <v, u> u for normal v from `keys`: zero-order
    search of paper A (Ma et al. 2025, arXiv 2501.09732, section 3.2), as its authors write it.
    """
    flat = x.cpu().flatten(1).double()  # not every device has float64
    norm = flat.norm(dim=1, keepdim=True)
    u = flat / norm
    v = normal(keys, x.shape[1:]).flatten(1).double()
    w = v - (v * u).sum(1, keepdim=True) * u
    w = w / w.norm(dim=1, keepdim=True)
    return (norm * (cosine * u + (1 - cosine**2) ** 0.5 * w)).view(x.shape).to(x)


def _normal_rows(keys: Tensor, counter: Tensor) -> Tensor:
    uniform = (_shift(_splitmix(counter ^ keys[:, None]), 11).double() + 0.5) * 2.0**-53
    radius, angle = uniform.chunk(2, dim=1)
    radius = (-2 * radius.log()).sqrt()
    angle = 2 * math.pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten(1).float()


def _splitmix(bits: Tensor) -> Tensor:
    for shift, factor in _MIX:
        bits = (bits ^ _shift(bits, shift)) * _signed(factor)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's own drags the sign of int64 along."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
