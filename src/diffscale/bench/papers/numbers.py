"""Reading an item's raw numbers: values by prompt, points of series, differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import trainings
from diffscale.bench.papers.verdicts import Contrast, jackknife, paired
from diffscale.metrics.bootstrap import interval

LOWER: Final = frozenset({"fid"})
"""Measures of which less is better."""
Raw = Mapping[str, Any]
BLOCKS: Final = 20
"""Blocks of steps, for trends."""


def point(raw: Raw, part: str, series: str, at: str | int = "last") -> dict[str, Any]:
    """A point of a series: its first, its last, or that of a search budget (or with no search, of that many NFE).

    Raises DiffscaleError where there is none.
    """
    points = raw["parts"].get(part, {}).get("series", {}).get(series, [])
    if not points:
        raise DiffscaleError(f"{raw['item']} has no series {series!r} in part {part!r}: mend its recipe.")
    if at in ("first", "last"):
        return dict(points[0 if at == "first" else -1])
    found = next((each for each in points if (each["search_nfe"] or each["nfe"]) == at), None)
    if found is None:
        raise DiffscaleError(f"{raw['item']} has no point of {at} NFE in series {series!r}: mend its recipe.")
    return dict(found)


def models(raw: Raw, part: str) -> str:
    """The models of a part, those that were trained by what they were trained from."""
    every = (at["model"] for points in raw["parts"][part]["series"].values() for at in points)
    return ", ".join(dict.fromkeys(map(trainings.base_of, every)))


def by_prompt(raw: Raw, part: str, at: Mapping[str, Any], measure: str) -> NDArray[np.float64]:
    """Values of a measure [prompts], its slots averaged; `measure@category`: of the prompts of that category alone."""
    name, _, category = measure.partition("@")
    of = raw["parts"][part]
    if name in at["sets"]:
        values = np.array(at["sets"][name]["prompts"], float)
    else:
        values = np.array(at["scores"][name], float).reshape(len(of["prompts"]), of["repeats"]).mean(1)
    if category:
        values = values[[each == category for each in of["categories"]]]
    return values


def is_whole(at: Mapping[str, Any], measure: str) -> bool:
    """Whether a measure is of all pictures together, and has no values of single prompts."""
    return measure in at["sets"] and "value" in at["sets"][measure]


def summary(raw: Raw, part: str, at: Mapping[str, Any], measure: str) -> dict[str, float]:
    """`mean`, `low` and `high` (95%): over prompts by bootstrap, of a metric of all pictures by the jackknife."""
    if is_whole(at, measure):
        held = at["sets"][measure]
        if not held["without"]:
            return {"mean": held["value"], "low": held["value"], "high": held["value"]}
        low, high = jackknife(held["value"], held["without"]).interval()
        return {"mean": held["value"], "low": low, "high": high}
    return interval(by_prompt(raw, part, at, measure))


def difference(raw: Raw, part: str, a: Mapping[str, Any], b: Mapping[str, Any], measure: str) -> Contrast:
    """How much better `a` is than `b`, paired by prompts, or by the groups left out; of fid, how much lower."""
    sign = -1.0 if measure in LOWER else 1.0
    if is_whole(a, measure):
        one, other = a["sets"][measure], b["sets"][measure]
        without = sign * (np.array(one["without"]) - np.array(other["without"]))
        return jackknife(sign * (one["value"] - other["value"]), without)
    return paired(sign * (by_prompt(raw, part, a, measure) - by_prompt(raw, part, b, measure)))


def gain(
    raw: Raw, part: str, at: Mapping[str, Any], base: Mapping[str, Any], measure: str, relative: bool
) -> dict[str, float]:
    """The gain over `base`, in percent of its mean if `relative`, with the interval of the difference."""
    contrast = difference(raw, part, at, base, measure)
    unit = (abs(summary(raw, part, base, measure)["mean"]) or 1.0) / 100 if relative else 1.0
    low, high = contrast.interval() if np.isfinite(contrast.error) else (contrast.estimate, contrast.estimate)
    return {"mean": contrast.estimate / unit, "low": low / unit, "high": high / unit}


def change(rows: Sequence[Mapping[str, Any]], y: str) -> Contrast:
    """By how much `y` changes over a training, by least squares over the means of `BLOCKS` blocks of its steps.

    Steps draw their rows and noise levels anew, so that blocks are nearly independent; those on samples of steps before
    them (`again`, see `trainings.read_logs`) do not count. A trend that is no line only widens the interval. Fewer
    values than three a block decide nothing.
    """
    from scipy.stats import linregress

    usable = [row for row in rows if row.get(y) is not None and not row.get("again")]
    if len(usable) < 3 * BLOCKS:
        return Contrast(0.0, np.inf, 1)
    steps, values = (
        [part.mean() for part in np.array_split(np.array([row[name] for row in usable], float), BLOCKS)]
        for name in ("step", y)
    )
    line = linregress(np.array(steps) / rows[-1]["step"], values)
    return Contrast(float(line.slope), float(line.stderr), BLOCKS - 2)


def within(a: Sequence[Sequence[float]], b: Sequence[Sequence[float]]) -> NDArray[np.float64]:
    """Spearman's correlation of two verifiers within each slot's candidates, of slots where neither is constant."""
    from scipy.stats import spearmanr

    pairs = ((np.array(x), np.array(y)) for x, y in zip(a, b, strict=True))
    return np.array([spearmanr(x, y).statistic for x, y in pairs if np.ptp(x) > 0 and np.ptp(y) > 0])
