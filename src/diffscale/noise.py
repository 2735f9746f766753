"""Keyed noise: every draw is a pure function of a 64-bit key, never of batch, order or device.

A counter-based generator of our own, since torch's CPU generator keeps only the low 32 bits of its
seed, so that two of 100,000 candidates would likely be the same picture.
"""

import hashlib
import math
from collections.abc import Sequence

import torch
from torch import Tensor

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
    rows = [_normal_row(key, counter)[:size] for key in keys.cpu()]
    return torch.stack(rows).view(len(rows), *shape) if rows else torch.empty(0, *shape)


def _normal_row(key: Tensor, counter: Tensor) -> Tensor:
    uniform = (_shift(_splitmix(counter ^ key), 11).double() + 0.5) * 2.0**-53
    radius, angle = uniform.chunk(2)
    radius = (-2 * radius.log()).sqrt()
    angle = 2 * math.pi * angle
    return torch.stack([radius * angle.cos(), radius * angle.sin()], -1).flatten().float()


def _splitmix(bits: Tensor) -> Tensor:
    for shift, factor in _MIX:
        bits = (bits ^ _shift(bits, shift)) * _signed(factor)
    return bits ^ _shift(bits, 31)


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical right shift: torch's own drags the sign of int64 along."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value
