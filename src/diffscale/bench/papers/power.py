"""How likely a planned test is to decide: the power of t-tests and of equivalence, and the size that it takes.

A comparison is told by its `Spread`: how its standard error and degrees of freedom go with its size.
"""

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from scipy.integrate import quad
from scipy.stats import chi, nct, norm
from scipy.stats import t as student

from diffscale.bench.papers.verdicts import satterthwaite

WANTED: Final = 0.8
"""Power that a plan must have."""
_MOST: Final = 100_000

Spread = Callable[[int], tuple[float, float]]
"""From a size (prompts, repeats or seeds) to the standard error and its degrees of freedom."""


@dataclass(frozen=True)
class Need:
    """A comparison as planned: the effect that it must find (of equivalence, its margin), how its error goes, and the
    `size` that it has."""

    effect: float
    spread: Spread
    size: int
    equal: bool = False

    def power(self, level: float) -> float:
        """Power at a one-sided `level`: to find `effect`, and as well to rule it out where there is none.

        Of equivalence, to find it where there is no difference.
        """
        error, freedom = self.spread(self.size)
        return (to_be_within if self.equal else to_exceed)(self.effect, error, freedom, level)


def to_exceed(effect: float, error: float, freedom: float, level: float) -> float:
    """Power of a one-sided t-test against 0 where the truth is `effect`: the noncentral t distribution."""
    if not error > 0:
        return float(effect > 0)
    return float(nct.sf(student.isf(level, freedom), freedom, effect / error))


def to_be_within(margin: float, error: float, freedom: float, level: float) -> float:
    """Power of two one-sided t-tests (TOST) with `margin` where there is no difference: Phillips 1990.

    Given the estimated error, s times the true one, the estimate must lie within margin - t s error of 0; s is chi with
    `freedom` degrees, over the root of these.
    """
    if not error > 0:
        return float(margin > 0)
    bound, root = student.isf(level, freedom), math.sqrt(freedom)

    def inside(s: float) -> float:
        half = margin / error - bound * s
        return float((2 * norm.cdf(half) - 1) * chi.pdf(s * root, freedom) * root)

    last = margin / error / bound
    return (
        float(quad(inside, max(0.0, 1 - 8 / root), min(last, 1 + 8 / root))[0]) if last > max(0, 1 - 8 / root) else 0.0
    )


def of_all(needs: Sequence[Need], level: float) -> float:
    """Power of a claim whose comparisons must all come out, at least: Boole's inequality, whatever they share."""
    return max(0.0, 1 - sum(1 - need.power(level) for need in needs))


def enough(needs: Sequence[Need], level: float, wanted: float = WANTED) -> list[int] | None:
    """The smallest sizes that have that power together, in the proportions that they are given in, but 2 at least.

    None if no sizes up to 100,000 have it.
    """
    largest = max(need.size for need in needs)

    def sizes(k: int) -> list[int]:
        return [max(2, math.ceil(need.size * k / largest)) for need in needs]

    def suffice(k: int) -> bool:
        return of_all([replace(need, size=size) for need, size in zip(needs, sizes(k), strict=True)], level) >= wanted

    k = bisect.bisect_left(range(1, _MOST), True, key=suffice) + 1
    return sizes(k) if k < _MOST else None


def over_prompts(deviation: float) -> Spread:
    """Of differences between prompts with that standard deviation: size is prompts."""
    return lambda size: (deviation / math.sqrt(size), max(1, size - 1))


def over_repeats(prompts: int, between: float, within: float) -> Spread:
    """Of as many prompts as there are: size is repeats of each; deviations between prompts and within one."""
    return lambda size: (math.sqrt((between**2 + within**2 / size) / prompts), prompts - 1)


def within_prompts(prompts: int, deviation: float) -> Spread:
    """Of prompts that are all there are, with that deviation within each: size is repeats (`verdicts.stratified`)."""
    return lambda size: (deviation / math.sqrt(prompts * size), max(1, prompts * (size - 1)))


def of_groups(error: float, repeats: int, freedom: Callable[[int], int]) -> Spread:
    """Of a jackknife over pictures, with that `error` at `repeats` of each prompt: size is repeats."""
    return lambda size: (error * math.sqrt(repeats / size), max(1, freedom(size)))


def over_seeds(prompts: int, seed: float, prompt: float, rest: float) -> Spread:
    """Of trainings: size is seeds; deviations of differences between seeds, between prompts, and of what is left.

    The degrees of freedom are Satterthwaite's, as `verdicts.crossed` has them.
    """

    def spread(size: int) -> tuple[float, float]:
        squares = prompts * seed**2 + rest**2, size * prompt**2 + rest**2, rest**2
        return satterthwaite(squares, size, prompts)

    return spread
