"""Orthonormal subspaces of noises, in which optimisers search: directions by chance, and low frequencies."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from diffscale.types import Environment, State

_WITHOUT_GRID: Final = 64  # directions by chance where there are no frequencies


@dataclass(frozen=True)
class Subspace:
    """d orthonormal directions of flat latents [B, D], float64 on the CPU.

    `project`: the coordinates [B, d] of latents [B, D]. `lift`: the latents [B, D] within the subspace that have
    coordinates [B, d]. Coordinates of white noise are white noise.
    """

    project: Callable[[Tensor], Tensor]
    lift: Callable[[Tensor], Tensor]


def random_subspace(env: Environment, first: State, dimensions: int) -> Subspace:
    """`dimensions` directions by chance, all that there are if these are fewer, of latents like those of `first`."""
    size = first.x[0].numel()
    drawn = torch.cat([env.noise(first).flatten(1) for _ in range(min(dimensions, size))]).double().cpu()
    basis = torch.linalg.qr(drawn.T).Q
    return Subspace(lambda x: x @ basis, lambda u: u @ basis.T)


def low_band(env: Environment, first: State, levels: int) -> Subspace:
    """The low band of an orthonormal Haar transform of latents like those of `first`, of `levels` levels.

    Its coordinates are the sums over blocks of 2^levels by 2^levels, divided by 2^levels. Axes are halved as often as
    they can be without a rest, at most `levels` times. Latents [B, ..., H, W] of three axes or more are transformed
    over the last two. Of two axes [B, tokens, channels] the tokens are taken for a square picture, row by row, where
    their number is a square. All others have no frequencies that could be known, and get 64 directions by chance.
    """
    shape = first.x.shape[1:]
    side = math.isqrt(shape[0])
    if len(shape) > 2:
        outer, height, width, inner = math.prod(shape[:-2]), shape[-2], shape[-1], 1
    elif len(shape) == 2 and 1 < side**2 == shape[0]:
        outer, height, width, inner = 1, side, side, shape[1]
    else:
        return random_subspace(env, first, _WITHOUT_GRID)
    block = math.gcd(2**levels, height, width)
    rows, columns = height // block, width // block

    def project(x: Tensor) -> Tensor:
        return x.view(-1, outer, rows, block, columns, block, inner).sum((3, 5)).flatten(1) / block

    def lift(u: Tensor) -> Tensor:
        blocks = u.view(-1, outer, rows, 1, columns, 1, inner).expand(-1, -1, -1, block, -1, block, -1)
        return blocks.flatten(1) / block

    return Subspace(project, lift)
