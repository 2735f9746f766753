"""The points of a series: each one search, budget and final sampling, which every slot is given."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers.calls import Call, Slot
from diffscale.bench.papers.recipe import Part, Series
from diffscale.registry import parse
from diffscale.searches import SEARCHES
from diffscale.suites import prompts as prompt_files

GIVEN: Final = ("drawbench", "geneval", "t2i-compbench")
"""Suites that are not shipped."""


@dataclass(frozen=True)
class Point:
    """`call` is that of candidates, `final` that of the picture kept where it is another one.

    `budget`: search NFE; 0: the first sample of the final call, and no search.
    """

    call: Call
    final: Call | None
    search: str
    verifier: str | None
    budget: int

    @property
    def last(self) -> Call:
        """The call that the kept pictures are made by."""
        return self.final or self.call

    @property
    def pooled(self) -> bool:
        """Whether its candidates are those of the shared pool."""
        return not self.searching or self.search.split()[0] == "random"

    @property
    def searching(self) -> bool:
        return self.verifier is not None and self.budget > 0


def slots_of(part: Part) -> list[Slot]:
    """All pictures to find, prompt after prompt."""
    if part.prompts in GIVEN:
        raise DiffscaleError(
            f"{part.prompts} is not shipped: give its prompts, --suite {part.prompts}=FILE or a Hub id."
        )
    conditions = prompt_files.load(part.prompts)
    if part.only:
        named = {str(condition): condition for condition in conditions}
        if unknown := [name for name in part.only if name not in named]:
            raise DiffscaleError(f"{part.prompts} has no prompt {unknown[0]!r}: choose among its prompts.")
        conditions = [named[name] for name in part.only]
    if part.limit is not None:
        conditions = prompt_files.evenly(conditions, part.limit)
    return [Slot(condition, repeat) for condition in conditions for repeat in range(part.repeats)]


def points_of(part: Part, series: Series) -> list[Point]:
    """The points of a series, in order of cost."""
    parse(series.search, "search", SEARCHES)
    finals: list[int | None] = [*series.final] or [series.steps or part.steps]
    calls = [_call(part, series, steps) for steps in finals]
    if series.verifier is None:
        return [Point(call, None, "random", None, 0) for call in calls]
    searched = _call(part, series, series.steps or part.steps)
    if len(calls) > 1 and len(series.budgets) > 1:
        raise DiffscaleError("A series grows its budgets or its final steps: give a list of one of them.")
    return [
        Point(searched if budget else call, None if call == searched or not budget else call, series.search,
              series.verifier, budget)
        for call in calls for budget in series.budgets
    ]  # fmt: skip


def every_point(part: Part) -> Iterator[tuple[str, int, Point]]:
    """All points with their series and number in it."""
    for name, series in part.series.items():
        for number, point in enumerate(points_of(part, series)):
            yield name, number, point


def call_of_pairs(part: Part) -> Call:
    """That of the candidates of the first series, of which `pairs` are scored."""
    series = next(iter(part.series.values()))
    return _call(part, series, series.steps or part.steps)


def candidates(budget: int, nfe: int) -> int:
    """How many samples of `nfe` a budget pays; raises DiffscaleError if it pays none."""
    if 0 < budget < nfe:
        raise DiffscaleError(f"A budget of {budget} NFE does not pay for one sample of {nfe}: raise it in the recipe.")
    return max(1, budget // nfe)


def _call(part: Part, series: Series, steps: int | None) -> Call:
    args = {**part.args, **series.args}
    return Call(
        series.model or part.model, steps, tuple(sorted(args.items())), part.dtype, part.seed,
        series.scheduler or part.scheduler,
    )  # fmt: skip
