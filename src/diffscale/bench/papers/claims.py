"""The tests that recipes name: each a function from an item's raw numbers to the evidence for a claim."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import permutations
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError, check_name, explained
from diffscale.bench.papers import numbers
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.recipe import Claim
from diffscale.bench.papers.verdicts import (
    Contrast,
    Effect,
    Evidence,
    crossed,
    equivalent,
    every,
    not_superior,
    paired,
    stratified,
    superior,
)

Place = Sequence[Any]
"""[part, series] or [part, series, point], see `numbers.point`."""
_CHOSEN, _TESTED, _ALL = slice(0, None, 2), slice(1, None, 2), slice(None)
"""Prompts that something is chosen by, those that the choice is tested on, and both."""


def compare(raw: Raw, all_of: Sequence[dict[str, Any]]) -> Evidence:
    """Comparisons that must all come out: each has `measure`, points `a` and `b`, and `is`: better (by more than
    `margin`, by default 0), equal (within `margin`) or not_better (by `margin` at most); these two need one.

    What is to be better and has an effect that `matters` is refuted where that effect is ruled out. `fixed`: prompts
    are taken as they are, and chance is in their repeats.
    """
    return every([_comparison(raw, how=each["is"], **{k: v for k, v in each.items() if k != "is"}) for each in all_of])


def _comparison(
    raw: Raw, a: Place, b: Place, measure: str, how: str, margin: float = 0.0, matters: float = 0.0, fixed: bool = False
) -> Evidence:
    if a[0] != b[0]:
        raise DiffscaleError("A comparison is within one part: mend the recipe.")
    one, other = numbers.point(raw, *a), numbers.point(raw, *b)
    contrast = (
        stratified(one.by_repeat(measure) - other.by_repeat(measure)) if fixed else one.difference(other, measure)
    )
    base = other.summary(measure)["mean"]
    return _told(contrast, how, margin, matters, _in_words(_name(a), _name(b), measure, contrast), base)


def _told(contrast: Contrast, how: str, margin: float, matters: float, words: str, base: float) -> Evidence:
    """The evidence of one comparison, with its effect: `words` name it before their first colon."""
    kinds: dict[str, Callable[[Contrast], Evidence]] = {
        "better": partial(superior, by=margin, matters=matters),
        "equal": partial(equivalent, margin=margin),
        "not_better": partial(not_superior, margin=margin),
    }
    check_name("comparison", how, kinds)
    if how != "better" and margin <= 0:
        raise DiffscaleError(f"That a point is {how} is tested with a margin over 0: mend the recipe.")
    found = kinds[how](contrast)
    effect = Effect(words.partition(":")[0], contrast, base, found.holds, found.fails)
    return replace(found, found=words, effects=(effect,))


def trained(raw: Raw, part: str, all_of: Sequence[dict[str, Any]]) -> Evidence:
    """As `compare`, of trainings with several seeds each: `a` and `b` are names of series without their ` #SEED`.

    Seeds and prompts are both by chance (`verdicts.crossed`). Seeds of `a` and `b` are paired in order, as far as both
    go; a series without seeds, such as the base, is compared with each. Several names are one after the other.
    """
    return every(
        [_seeded(raw, part, how=each["is"], **{k: v for k, v in each.items() if k != "is"}) for each in all_of]
    )


def _seeded(
    raw: Raw, part: str, a: str | list[str], b: str | list[str], measure: str, how: str, margin: float = 0.0,
    matters: float = 0.0,
) -> Evidence:  # fmt: skip
    one, other = (_of_seeds(raw, part, [each] if isinstance(each, str) else each, measure) for each in (a, b))
    seeds = min(len(one), len(other)) if min(len(one), len(other)) > 1 else None
    contrast = crossed(one[:seeds] - other[:seeds])
    name, base = (each if isinstance(each, str) else " + ".join(each) for each in (a, b))
    words = _in_words(name, base, measure, contrast)
    return _told(contrast, how, margin, matters, words, float(other.mean()))


def _of_seeds(raw: Raw, part: str, names: list[str], measure: str) -> NDArray[np.float64]:
    """Values [seeds, prompts] of all trainings of these names, one name after the other."""
    rows = []
    for name in names:
        found = [each for each in raw["parts"][part]["series"] if each == name or each.startswith(f"{name} #")]
        if not found:
            raise DiffscaleError(f"{raw['item']} has no series {name!r} in part {part!r}: mend its recipe.")
        rows += [numbers.point(raw, part, each).by_prompt(measure) for each in found]
    return np.array(rows)


def mean_of(raw: Raw, all_of: Sequence[dict[str, Any]]) -> Evidence:
    """One test over comparisons of one part that stand for something general: their mean, each in units of what
    `matters` of it, paired by prompts. Refuted where that unit is ruled out."""
    rows = []
    for each in all_of:
        one, other = (numbers.point(raw, *each[place]).by_prompt(each["measure"]) for place in ("a", "b"))
        rows.append((one - other) / each["matters"])
    contrast = paired(np.mean(rows, axis=0))
    words = f"mean of {len(rows)} comparisons, in units of what matters: {contrast.estimate:+.2f}{_bounds(contrast)}"
    return _told(contrast, "better", 0.0, 1.0, words, 0.0)


def scaling(raw: Raw, part: str, series: str, measures: dict[str, float], first: int) -> Evidence:
    """Each measure rises with every doubling of the search budget: the slope over its logarithm, for each prompt.

    `measures`: of each the slope that matters. `first`: what the point without search costs, in NFE of the budget.
    """
    points = numbers.points(raw, part, series)
    weights = numbers.slope_weights([point.row["search_nfe"] or first for point in points])
    parts = []
    for measure, matters in measures.items():
        slopes = weights @ np.array([point.by_prompt(measure) for point in points])
        contrast = paired(slopes)
        words = f"{series}, {measure}, each doubling: {contrast.estimate:+.3f}{_bounds(contrast)}"
        base = points[0].summary(measure)["mean"]
        parts.append(_told(contrast, "better", 0.0, matters, words, base))
    return every(parts)


def sweet_spot(raw: Raw, part: str, series: Sequence[str], measure: str, budget: int | str = "last") -> Evidence:
    """`series` in order of a setting: one between the ends is better than both ends.

    Which one is chosen on every other prompt, and tested on the rest. Refuted where each of them is worse than an end.
    """
    values = np.array([numbers.point(raw, part, name, budget).by_prompt(measure) for name in series])

    def over_ends(middle: int, rows: slice) -> Evidence:
        differences = {end: (values[middle] - values[end])[rows] for end in (0, -1)}
        return every([_better(series[middle], series[end], measure, each) for end, each in differences.items()])

    best = 1 + int(values[1:-1, _CHOSEN].mean(1).argmax())
    return _some(over_ends(best, _TESTED), (over_ends(middle, _ALL) for middle in range(1, len(series) - 1)))


def disagree(raw: Raw, part: str, series: Sequence[str], measure: str, categories: Sequence[str]) -> Evidence:
    """One verifier is best in one category and another in another: some pair changes places.

    The pair and the categories with the largest change are chosen on every other prompt, and tested on the rest; there
    each must be better than the other in its category. Refuted where every such change of places is.
    """
    values = {
        (name, category): numbers.point(raw, part, name).by_prompt(f"{measure}@{category}")
        for name in series
        for category in categories
    }

    def gains(crossing: tuple[str, ...], rows: slice) -> list[tuple[str, str, str, NDArray[np.float64]]]:
        a, b, here, there = crossing
        places = (a, b, here), (b, a, there)
        return [(one, other, each, (values[one, each] - values[other, each])[rows]) for one, other, each in places]

    def crossed(crossing: tuple[str, ...], rows: slice) -> Evidence:
        each = gains(crossing, rows)
        return every([_better(one, other, f"{measure} on {category}", gain) for one, other, category, gain in each])

    crossings = [(*pair, *places) for pair in permutations(series, 2) for places in permutations(categories, 2)]
    best = max(crossings, key=lambda crossing: min(_mean(gain) for *_, gain in gains(crossing, _CHOSEN)))
    return _some(crossed(best, _TESTED), (crossed(crossing, _ALL) for crossing in crossings))


def never_worst(
    raw: Raw, part: str, one: str, others: Sequence[str], measure: str, categories: Sequence[str], margin: float
) -> Evidence:
    """In every category `one` is not worse by `margin` than the worst of `others`, chosen on every other prompt.

    Refuted where in some category it is worse by `margin` than each of them.
    """
    parts = []
    for category in categories:
        values = {each: numbers.point(raw, part, each).by_prompt(f"{measure}@{category}") for each in (one, *others)}
        worst = min(others, key=lambda each: _mean(values[each][_CHOSEN]))
        contrast = paired((values[worst] - values[one])[_TESTED])
        words = _in_words(worst, one, f"{measure} on {category}", contrast)
        tested = replace(not_superior(contrast, margin), found=words)
        parts.append(_some(tested, (not_superior(paired(values[each] - values[one]), margin) for each in others)))
    return every(parts)


def _some(chosen: Evidence, each: Iterable[Evidence]) -> Evidence:
    """That something exists: held up by what was `chosen`; of all that it may be, each must be refuted."""
    return replace(chosen, fails=max(evidence.fails for evidence in each))


def correlated(raw: Raw, part: str, of: Sequence[str], over: float = 0.0) -> Evidence:
    """Two verifiers rank candidates alike: the mean over prompts of Spearman's correlation within one is above."""
    return _correlation(raw, part, of, partial(superior, by=over))


def uncorrelated(raw: Raw, part: str, of: Sequence[str], margin: float) -> Evidence:
    """The mean rank correlation of two verifiers within prompts is under `margin`."""
    return _correlation(raw, part, of, partial(not_superior, margin=margin))


def _correlation(raw: Raw, part: str, of: Sequence[str], test: Callable[[Contrast], Evidence]) -> Evidence:
    pairs, repeats = raw["parts"][part]["pairs"], raw["parts"][part]["repeats"]
    # One value a prompt: of repeats, all candidates together.
    one, other = (np.array(pairs[name]).reshape(len(pairs[name]) // repeats, -1) for name in of)
    values = numbers.within(one, other)
    if not len(values):
        return replace(test(Contrast(0.0, float("inf"), 1)), found=f"{of[0]} or {of[1]} is constant")
    contrast = paired(values)
    words = f"{of[0]} and {of[1]}: rank correlation {contrast.estimate:.2f}{_bounds(contrast)}"
    return replace(test(contrast), found=words)


def cheaper(raw: Raw, a: Place, b: Place, measure: str, matters: float = 0.0) -> Evidence:
    """`a` is better than `b` at a lower cost in FLOPs, which is counted and needs no test."""
    evidence = _comparison(raw, a, b, measure, "better", matters=matters)
    ratio = numbers.point(raw, *a).row["flops"] / numbers.point(raw, *b).row["flops"]
    if ratio >= 1:
        evidence = replace(evidence, holds=1.0, fails=0.0)
    return replace(evidence, found=f"{evidence.found}, at {ratio:.2f} times the FLOPs")


def trend(raw: Raw, of: Sequence[str], y: str, way: Literal["falls", "rises"]) -> Evidence:
    """In each of these trainings `y`, of its log, falls or rises: the slope over the means of blocks of steps."""
    parts = []
    for name in of:
        if name not in raw["logs"]:
            raise DiffscaleError(f"{raw['item']} has no training {name!r}: mend its recipe.")
        change = numbers.change(raw["logs"][name], y)
        words = f"{name}, {y} from begin to end: {change.estimate:+.4g}{_bounds(change, 'steps', 4)}"
        turned = change if way == "rises" else replace(change, estimate=-change.estimate)
        parts.append(replace(superior(turned), found=words))
    return every(parts)


def _better(a: str, b: str, measure: str, differences: NDArray[np.float64]) -> Evidence:
    """That the mean of paired `differences` is over 0."""
    contrast = paired(differences)
    return replace(superior(contrast), found=_in_words(a, b, measure, contrast))


def _mean(values: NDArray[np.float64]) -> float:
    """0 of nothing: a category without prompts decides nothing."""
    return float(values.mean()) if len(values) else 0.0


def _name(place: Place) -> str:
    return f"{place[1]} ({place[2]})" if len(place) > 2 else str(place[1])


def _in_words(a: str, b: str, measure: str, contrast: Contrast) -> str:
    sign = " (sign turned: over 0 is better)" if measure in numbers.LOWER else ""
    return f"{a} over {b}, {measure}{sign}: {contrast.estimate:+.3f}{_bounds(contrast)}"


def _bounds(contrast: Contrast, unit: str = "prompts", digits: int = 3) -> str:
    if not np.isfinite(contrast.error):
        return f" [too few {unit}]"
    low, high = contrast.interval()
    return f" [{low:.{digits}f}, {high:.{digits}f}]"


CLAIMS: Final[dict[str, Callable[..., Evidence]]] = {
    test.__name__: test
    for test in (
        cheaper,
        compare,
        correlated,
        disagree,
        mean_of,
        never_worst,
        scaling,
        sweet_spot,
        trained,
        trend,
        uncorrelated,
    )
}


def test_claim(claim: Claim, raw: Raw) -> Evidence:
    """The evidence that an item's numbers give for a claim; raises DiffscaleError for a recipe that does not fit."""
    check_name("test", claim.test, CLAIMS)
    untested = f"The claim {claim.says!r} of {raw['item']} cannot be tested: mend its recipe ({{why}})."
    with explained(untested, TypeError, KeyError):
        return CLAIMS[claim.test](raw, **claim.options)
