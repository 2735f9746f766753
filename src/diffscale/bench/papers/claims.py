"""The tests that recipes name: each a function from an item's raw numbers to the evidence for a claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import chain, permutations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError, unknown
from diffscale.bench.papers import numbers
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.recipe import Claim
from diffscale.bench.papers.verdicts import Contrast, Evidence, equivalent, every, not_superior, paired, superior

At = Sequence[Any]
"""[part, series] or [part, series, point], see `numbers.point`."""


def compare(raw: Raw, all_of: Sequence[dict[str, Any]]) -> Evidence:
    """Comparisons that must all come out: each has `measure`, points `a` and `b`, and `is`: better (by more than
    `margin`, by default 0), equal (within `margin`) or not_better (by `margin` at most); these two need one."""
    return every([_comparison(raw, how=each["is"], **{k: v for k, v in each.items() if k != "is"}) for each in all_of])


def _comparison(raw: Raw, a: At, b: At, measure: str, how: str, margin: float = 0.0) -> Evidence:
    kinds: dict[str, Callable[[Contrast, float], Evidence]]
    kinds = {"better": superior, "equal": equivalent, "not_better": not_superior}
    if how not in kinds:
        raise unknown("comparison", how, kinds)
    if how != "better" and margin <= 0:
        raise DiffscaleError(f"That a point is {how} is tested with a margin over 0: mend the recipe.")
    if a[0] != b[0]:
        raise DiffscaleError("A comparison is within one part: mend the recipe.")
    contrast = numbers.difference(raw, a[0], numbers.point(raw, *a), numbers.point(raw, *b), measure)
    evidence = kinds[how](contrast, margin)
    return Evidence(evidence.holds, evidence.fails, _said(_name(a), _name(b), measure, contrast))


def sweet_spot(raw: Raw, part: str, series: Sequence[str], measure: str, budget: int | str = "last") -> Evidence:
    """`series` in order of a setting: one between the ends is better than both ends.

    Which one is chosen on every other prompt, and tested on the rest. Refuted where each of them is worse than an end.
    """
    points = [numbers.point(raw, part, name, budget) for name in series]
    values = np.array([numbers.by_prompt(raw, part, at, measure) for at in points])

    def over_ends(middle: int, first: int, step: int) -> Evidence:
        parts = []
        for end in (0, -1):
            contrast = paired((values[middle] - values[end])[first::step])
            evidence = superior(contrast)
            said = _said(series[middle], series[end], measure, contrast)
            parts.append(Evidence(evidence.holds, evidence.fails, said))
        return every(parts)

    best = 1 + int(values[1:-1, ::2].mean(1).argmax())
    found = over_ends(best, 1, 2)
    return Evidence(found.holds, _by_all(over_ends(middle, 0, 1) for middle in range(1, len(series) - 1)), found.found)


def disagree(raw: Raw, part: str, series: Sequence[str], measure: str, categories: Sequence[str]) -> Evidence:
    """One verifier is best in one category and another in another: some pair changes places.

    The pair and the categories with the largest change are chosen on every other prompt, and tested on the rest; there
    each must be better than the other in its category. Refuted where every such change of places is.
    """
    values = {
        (name, category): numbers.by_prompt(raw, part, numbers.point(raw, part, name), f"{measure}@{category}")
        for name in series
        for category in categories
    }

    def crossed(a: str, b: str, here: str, there: str, first: int, step: int) -> Evidence:
        parts = []
        for one, other, category in ((a, b, here), (b, a, there)):
            contrast = paired((values[one, category] - values[other, category])[first::step])
            evidence = superior(contrast)
            said = _said(one, other, f"{measure} on {category}", contrast)
            parts.append(Evidence(evidence.holds, evidence.fails, said))
        return every(parts)

    def change(a: str, b: str, here: str, there: str) -> float:
        return min(
            _mean((values[one, category] - values[other, category])[::2])
            for one, other, category in ((a, b, here), (b, a, there))
        )

    crossings = [(*pair, *places) for pair in permutations(series, 2) for places in permutations(categories, 2)]
    found = crossed(*max(crossings, key=lambda crossing: change(*crossing)), 1, 2)
    return Evidence(found.holds, _by_all(crossed(*crossing, 0, 1) for crossing in crossings), found.found)


def never_worst(
    raw: Raw, part: str, one: str, others: Sequence[str], measure: str, categories: Sequence[str], margin: float
) -> Evidence:
    """In every category `one` is not worse by `margin` than the worst of `others`, chosen on every other prompt.

    Refuted where in some category it is worse by `margin` than each of them.
    """
    parts = []
    for category in categories:
        name = f"{measure}@{category}"
        mine = numbers.by_prompt(raw, part, numbers.point(raw, part, one), name)
        theirs = {each: numbers.by_prompt(raw, part, numbers.point(raw, part, each), name) for each in others}
        worst = min(theirs, key=lambda each: _mean(theirs[each][::2]))
        contrast = paired((theirs[worst] - mine)[1::2])
        said = _said(worst, one, f"{measure} on {category}", contrast)
        fails = _by_all(not_superior(paired(each - mine), margin) for each in theirs.values())
        parts.append(Evidence(not_superior(contrast, margin).holds, fails, said))
    return every(parts)


def _by_all(evidence: Iterable[Evidence]) -> float:
    """The p-value against a claim that something exists: of all that it may be, each must be refuted."""
    return max(each.fails for each in evidence)


def correlated(raw: Raw, part: str, of: Sequence[str], over: float = 0.0) -> Evidence:
    """Two verifiers rank candidates alike: the mean over prompts of Spearman's correlation within one is above."""
    contrast, said = _correlation(raw, part, of)
    evidence = superior(contrast, over)
    return Evidence(evidence.holds, evidence.fails, said)


def uncorrelated(raw: Raw, part: str, of: Sequence[str], margin: float) -> Evidence:
    """The mean rank correlation of two verifiers within prompts is under `margin`."""
    contrast, said = _correlation(raw, part, of)
    evidence = not_superior(contrast, margin)
    return Evidence(evidence.holds, evidence.fails, said)


def _correlation(raw: Raw, part: str, of: Sequence[str]) -> tuple[Contrast, str]:
    of_part = raw["parts"][part]
    pairs = of_part["pairs"]
    repeats = of_part["repeats"]
    # One value a prompt: of repeats, all candidates together.
    one, other = (
        [list(chain(*rows[start : start + repeats])) for start in range(0, len(rows), repeats)]
        for rows in (pairs[name] for name in of)
    )
    values = numbers.within(one, other)
    if not len(values):
        return Contrast(0.0, float("inf"), 1), f"{of[0]} or {of[1]} is constant"
    contrast = paired(values)
    return contrast, f"{of[0]} and {of[1]}: rank correlation {contrast.estimate:.2f}{_bounds(contrast)}"


def cheaper(raw: Raw, a: At, b: At, measure: str) -> Evidence:
    """`a` is better than `b` at a lower cost in FLOPs, which is counted and needs no test."""
    one, other = numbers.point(raw, *a), numbers.point(raw, *b)
    contrast = numbers.difference(raw, a[0], one, other, measure)
    evidence = superior(contrast)
    ratio = one["flops"] / other["flops"]
    said = f"{_said(_name(a), _name(b), measure, contrast)}, at {ratio:.2f} times the FLOPs"
    if ratio >= 1:
        return Evidence(1.0, 0.0, said)
    return Evidence(evidence.holds, evidence.fails, said)


def trend(raw: Raw, of: Sequence[str], y: str, way: Literal["falls", "rises"]) -> Evidence:
    """In each of these trainings `y`, of its log, falls or rises: the slope over the means of blocks of steps."""
    parts = []
    for name in of:
        if name not in raw["logs"]:
            raise DiffscaleError(f"{raw['item']} has no training {name!r}: mend its recipe.")
        change = numbers.change(raw["logs"][name], y)
        said = f"{name}, {y} from begin to end: {change.estimate:+.4g}{_bounds(change, 'steps', 4)}"
        turned = change if way == "rises" else Contrast(-change.estimate, change.error, change.freedom)
        evidence = superior(turned)
        parts.append(Evidence(evidence.holds, evidence.fails, said))
    return every(parts)


def _mean(values: NDArray[np.float64]) -> float:
    """0 of nothing: a category without prompts decides nothing."""
    return float(values.mean()) if len(values) else 0.0


def _name(at: At) -> str:
    where = f" ({at[2]})" if len(at) > 2 else ""
    return f"{at[1]}{where}"


def _said(a: str, b: str, measure: str, contrast: Contrast) -> str:
    sign = " (sign turned: over 0 is better)" if measure in numbers.LOWER else ""
    return f"{a} over {b}, {measure}{sign}: {contrast.estimate:+.3f}{_bounds(contrast)}"


def _bounds(contrast: Contrast, of: str = "prompts", digits: int = 3) -> str:
    if not np.isfinite(contrast.error):
        return f" [too few {of}]"
    low, high = contrast.interval()
    return f" [{low:.{digits}f}, {high:.{digits}f}]"


CLAIMS: Final[dict[str, Callable[..., Evidence]]] = {
    "cheaper": cheaper,
    "compare": compare,
    "correlated": correlated,
    "disagree": disagree,
    "never_worst": never_worst,
    "sweet_spot": sweet_spot,
    "trend": trend,
    "uncorrelated": uncorrelated,
}


def test_claim(claim: Claim, raw: Raw) -> Evidence:
    """The evidence that an item's numbers give for a claim; raises DiffscaleError for a recipe that does not fit."""
    if claim.test not in CLAIMS:
        raise unknown("test", claim.test, CLAIMS)
    try:
        return CLAIMS[claim.test](raw, **claim.options)
    except (TypeError, KeyError) as error:
        raise DiffscaleError(
            f"The claim {claim.says!r} of {raw['item']} cannot be tested: mend its recipe ({error})."
        ) from error
