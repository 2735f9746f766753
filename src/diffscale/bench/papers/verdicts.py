"""Verdicts on claims: tests of paired differences, of equivalence, their conjunctions, and Holm's correction.

Every test gives two one-sided p-values, one for the claim and one against it, so that a claim holds, does not hold, or
is not decided at this sample size. A claim of superiority fails where the opposite is significant; one of no effect
(equivalence by two one-sided tests, TOST; non-inferiority) fails where an effect beyond the margin is.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t as student

Verdict = Literal["holds", "does not hold", "not decided"]
LEVEL: Final = 0.05


@dataclass(frozen=True)
class Contrast:
    """An `estimate` with its standard error and degrees of freedom, to be compared with Student's t."""

    estimate: float
    error: float
    freedom: float

    def above(self, value: float) -> float:
        """p-value of the hypothesis that the truth is at most `value`: small where it lies above."""
        if not self.error > 0:
            return float(not self.estimate > value)  # also of what is not a number
        return float(student.sf((self.estimate - value) / self.error, self.freedom))

    def below(self, value: float) -> float:
        """p-value of the hypothesis that the truth is at least `value`."""
        return Contrast(-self.estimate, self.error, self.freedom).above(-value)

    def interval(self, share: float = 0.95) -> tuple[float, float]:
        """The interval of that confidence."""
        half = float(student.ppf((1 + share) / 2, self.freedom)) * self.error
        return self.estimate - half, self.estimate + half


@dataclass(frozen=True)
class Effect:
    """One comparison of a claim: its `name`, what was found, and the value `base` that it is a difference to.

    `holds` and `fails` are its own p-values.
    """

    name: str
    contrast: Contrast
    base: float
    holds: float
    fails: float


@dataclass(frozen=True)
class Evidence:
    """One-sided p-values `holds` for a claim and `fails` against it; what was `found`, in words and as effects."""

    holds: float
    fails: float
    found: str = ""
    effects: tuple[Effect, ...] = ()


def paired(differences: ArrayLike) -> Contrast:
    """The mean of differences [n] of independent pairs: the paired t-test. Fewer than 2 decide nothing."""
    values = np.asarray(differences, float)
    if len(values) < 2:
        return Contrast(float(values.sum()), math.inf, 1)
    return Contrast(float(values.mean()), float(values.std(ddof=1) / math.sqrt(len(values))), len(values) - 1)


def stratified(differences: ArrayLike) -> Contrast:
    """The mean of differences [strata, n], where strata are all that there are and chance is within them."""
    values = np.asarray(differences, float)
    strata, count = values.shape
    if count < 2:
        return Contrast(float(values.mean()), math.inf, 1)
    error = math.sqrt(float(values.var(1, ddof=1).mean()) / values.size)
    return Contrast(float(values.mean()), error, strata * (count - 1))


def jackknife(whole: float, without: ArrayLike) -> Contrast:
    """An estimate with what it is `without` each of the groups [S, G] of S strata, all of one size: the delete-a-group
    jackknife (Efron and Stein 1981), S (G - 1) degrees of freedom.

    What differs between strata is no chance. Those left whole lessen the weight of the one that a group is missing of,
    which the factor makes up for (ours: exact for means, and with one stratum the plain jackknife's).
    """
    values = np.asarray(without, float)
    strata, count = values.shape if values.ndim == 2 else (1, 0)
    if count < 2:
        return Contrast(whole, math.inf, 1)
    factor = count / (count - 1) * (1 - 1 / values.size) ** 2
    squares = float(np.square(values - values.mean(1, keepdims=True)).sum())
    return Contrast(whole, math.sqrt(factor * squares), strata * (count - 1))


def crossed(differences: ArrayLike) -> Contrast:
    """The mean of differences [seeds, prompts], where both seeds (of trainings) and prompts are by chance.

    A mixed model with two crossed random effects, balanced, so that mean squares give its error.
    """
    values = np.asarray(differences, float)
    seeds, prompts = values.shape
    if min(seeds, prompts) < 2:
        return Contrast(float(values.mean()), math.inf, 1)
    by_seed, by_prompt, mean = values.mean(1), values.mean(0), float(values.mean())
    rest = values - by_seed[:, None] - by_prompt + mean
    squares = (
        prompts * float(by_seed.var(ddof=1)),
        seeds * float(by_prompt.var(ddof=1)),
        float(np.square(rest).sum()) / ((seeds - 1) * (prompts - 1)),
    )
    return Contrast(mean, *satterthwaite(squares, seeds, prompts))


def satterthwaite(squares: tuple[float, float, float], seeds: int, prompts: int) -> tuple[float, float]:
    """Standard error and degrees of freedom of a mean over seeds x prompts, both random (Satterthwaite 1946).

    `squares`: the mean squares of seeds, of prompts and of the rest. Fewer than 2 of either decide nothing.
    """
    of_seeds, of_prompts, rest = squares
    total = max(of_seeds + of_prompts - rest, of_seeds, of_prompts)
    if seeds < 2 or prompts < 2:
        return math.inf, 1
    if not total > 0:
        return 0.0, 1
    parts = of_seeds**2 / (seeds - 1) + of_prompts**2 / (prompts - 1) + rest**2 / ((seeds - 1) * (prompts - 1))
    return math.sqrt(total / (seeds * prompts)), float(np.clip(total**2 / parts, 1, seeds * prompts - 1))


def superior(contrast: Contrast, by: float = 0.0, matters: float = 0.0) -> Evidence:
    """The difference is over `by`; refuted where it is significantly under it, or under `by` and what `matters`.

    With an effect that matters either verdict can be reached wherever the truth lies; where both tests come out, as the
    difference lies between, the nearer of the two decides.
    """
    return Evidence(contrast.above(by), contrast.below(by + matters))


def equivalent(contrast: Contrast, margin: float) -> Evidence:
    """The difference lies within `margin` (TOST, Schuirmann 1987); refuted where it lies beyond, on either side."""
    inside = max(contrast.above(-margin), contrast.below(margin))
    return Evidence(inside, min(1.0, 2 * min(contrast.above(margin), contrast.below(-margin))))


def not_superior(contrast: Contrast, margin: float) -> Evidence:
    """The difference is under `margin` (non-inferiority of the other); refuted where it is over it."""
    return Evidence(contrast.below(margin), contrast.above(margin))


def every(evidence: Sequence[Evidence]) -> Evidence:
    """All of them: holds at the largest p-value (intersection-union); refuted by any, at the smallest times their
    number (Bonferroni)."""
    found = "; ".join(each.found for each in evidence if each.found)
    fails = min(1.0, len(evidence) * min(each.fails for each in evidence))
    effects = tuple(effect for each in evidence for effect in each.effects)
    return Evidence(max(each.holds for each in evidence), fails, found, effects)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjusted p-values (1979), in the order given; their level bounds the family-wise error."""
    order = np.argsort(p_values)
    adjusted = np.empty(len(p_values))
    running = 0.0
    for rank, i in enumerate(order):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = running
    return adjusted.tolist()


def decide(evidence: Sequence[Evidence], level: float = LEVEL) -> list[tuple[Verdict, float]]:
    """The verdict on each claim of a page with its adjusted p-value.

    Both directions of a claim are tested, so each counts with twice its smaller p-value; these are Holm-corrected, and
    the chance of one wrong verdict of either kind on the whole page is at most `level`.
    """
    adjusted = holm([min(1.0, 2 * min(each.holds, each.fails)) for each in evidence])
    found: list[tuple[Verdict, float]] = []
    for each, p in zip(evidence, adjusted, strict=True):
        side: Verdict = "holds" if each.holds <= each.fails else "does not hold"
        found.append((side if p <= level else "not decided", p))
    return found
