"""Reading an item's raw numbers: points of series, their values by prompt, differences between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import linregress, spearmanr

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import trainings
from diffscale.bench.papers.verdicts import Contrast, jackknife, paired
from diffscale.metrics.bootstrap import interval

LOWER: Final = frozenset({"fid"})
"""Measures of which less is better."""
Raw = Mapping[str, Any]
BLOCKS: Final = 20
"""Blocks of steps, for trends."""


@dataclass(frozen=True)
class Measured:
    """What was measured at one point of a series: its `row` of the numbers of `part`."""

    part: Mapping[str, Any]
    row: Mapping[str, Any]

    def by_prompt(self, measure: str) -> NDArray[np.float64]:
        """Values of a measure [prompts], repeats averaged; `measure@category`: of that category's prompts alone."""
        name, _, category = measure.partition("@")
        if name in self.row["sets"]:
            values = np.array(self.row["sets"][name]["prompts"], float)
        else:
            values = self.by_repeat(name).mean(1)
        return values[[each == category for each in self.part["categories"]]] if category else values

    def by_repeat(self, judge: str) -> NDArray[np.float64]:
        """Scores of a judge, [prompts, repeats]."""
        return np.array(self.row["scores"][judge], float).reshape(len(self.part["prompts"]), self.part["repeats"])

    def whole(self, measure: str) -> Mapping[str, Any] | None:
        """A metric of all pictures together, `value` and those `without` groups; None if it has values by prompt."""
        metric = self.row["sets"].get(measure, {})
        return metric if "value" in metric else None

    def summary(self, measure: str) -> dict[str, float]:
        """`mean`, `low` and `high` (95%): over prompts by bootstrap, of a metric of all pictures by the jackknife."""
        metric = self.whole(measure)
        if metric is None:
            return interval(self.by_prompt(measure))
        value, without = metric["value"], metric["without"]
        low, high = jackknife(value, without).interval() if without else (value, value)
        return {"mean": value, "low": low, "high": high}

    def difference(self, other: Measured, measure: str) -> Contrast:
        """How much better this is than `other`, paired by prompts, or by groups left out; of fid, how much lower."""
        sign = -1.0 if measure in LOWER else 1.0
        one, two = self.whole(measure), other.whole(measure)
        if one is None or two is None:
            return paired(sign * (self.by_prompt(measure) - other.by_prompt(measure)))
        without = sign * (np.array(one["without"]) - np.array(two["without"]))
        return jackknife(sign * (one["value"] - two["value"]), without)

    def gain(self, base: Measured, measure: str, relative: bool) -> dict[str, float]:
        """The gain over `base`, in percent of its mean if `relative`, with the interval of the difference."""
        contrast = self.difference(base, measure)
        unit = (abs(base.summary(measure)["mean"]) or 1.0) / 100 if relative else 1.0
        low, high = contrast.interval() if np.isfinite(contrast.error) else (contrast.estimate, contrast.estimate)
        return {"mean": contrast.estimate / unit, "low": low / unit, "high": high / unit}


def points(raw: Raw, part: str, series: str) -> list[Measured]:
    """The points of a series; raises DiffscaleError where there is none."""
    rows = raw["parts"].get(part, {}).get("series", {}).get(series, [])
    if not rows:
        raise DiffscaleError(f"{raw['item']} has no series {series!r} in part {part!r}: mend its recipe.")
    return [Measured(raw["parts"][part], row) for row in rows]


def point(raw: Raw, part: str, series: str, budget: str | int = "last") -> Measured:
    """A point of a series: its first, its last, or that of a search budget (or with no search, of that many NFE).

    Raises DiffscaleError where there is none.
    """
    every = points(raw, part, series)
    if budget in ("first", "last"):
        return every[0 if budget == "first" else -1]
    for each in every:
        if (each.row["search_nfe"] or each.row["nfe"]) == budget:
            return each
    raise DiffscaleError(f"{raw['item']} has no point of {budget} NFE in series {series!r}: mend its recipe.")


def slope_weights(budgets: Sequence[float]) -> NDArray[np.float64]:
    """Weights of values at these budgets whose sum is the least-squares slope for a doubling."""
    centred = np.log2(budgets) - np.log2(budgets).mean()
    return np.asarray(centred / np.square(centred).sum())


def models(raw: Raw, part: str) -> str:
    """The models of a part, those that were trained by what they were trained from."""
    rows = (row for rows in raw["parts"][part]["series"].values() for row in rows)
    return ", ".join(dict.fromkeys(trainings.base_of(row["model"]) for row in rows))


def change(rows: Sequence[Mapping[str, Any]], y: str) -> Contrast:
    """By how much `y` changes over a training, by least squares over the means of `BLOCKS` blocks of its steps.

    Steps draw their rows and noise levels anew, so that blocks are nearly independent; those on samples of steps before
    them (`again`, see `trainings.read_logs`) do not count. A trend that is no line only widens the interval. Fewer
    values than three a block decide nothing.
    """
    usable = [row for row in rows if row.get(y) is not None and not row.get("again")]
    if len(usable) < 3 * BLOCKS:
        return Contrast(0.0, np.inf, 1)
    steps, values = (
        [part.mean() for part in np.array_split(np.array([row[name] for row in usable], float), BLOCKS)]
        for name in ("step", y)
    )
    line = linregress(np.array(steps) / rows[-1]["step"], values)
    return Contrast(float(line.slope), float(line.stderr), BLOCKS - 2)


def within(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    """Spearman's correlation of two verifiers, [prompts][candidates], within prompts where neither is constant."""
    pairs = zip(np.array(a), np.array(b), strict=True)
    return np.array([spearmanr(x, y).statistic for x, y in pairs if np.ptp(x) > 0 and np.ptp(y) > 0])
