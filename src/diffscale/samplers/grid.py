"""Where moves between noise levels may go, and where on a grid they end: what all samplers check alike."""

from __future__ import annotations

from collections.abc import Sequence

from diffscale._util.errors import DiffscaleError


def check_renoising(here: float, level: float, top: float) -> None:
    """Raises DiffscaleError unless `level` is from `here` to `top`."""
    if not here - 1e-9 <= level <= top + 1e-9:
        raise DiffscaleError(f"Renoising goes from level {here:.3g} up to {top:.3g} at most, not to {level:.3g}.")


def stops(here: float, level: float, steps: int) -> list[float]:
    """The levels of `steps` equal steps from `here` down to `level`, both included; raises DiffscaleError for none."""
    if not 0 <= level < here or steps < 1:
        raise DiffscaleError(f"Solving goes from level {here:.3g} down in 1 step or more, not to {level:.3g}.")
    return [here + (level - here) * i / steps for i in range(steps)] + [level]


def place(levels: Sequence[float], level: float) -> tuple[int, bool]:
    """The last step of a grid that is not below `level`, and whether it is at it."""
    step = max(i for i, grid in enumerate(levels) if grid >= level - 1e-9)
    return step, abs(levels[step] - level) < 1e-9
