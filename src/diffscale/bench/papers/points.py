"""The points of a series: each one model as it is called, one search and one budget, for every prompt and repeat."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import json_digest
from diffscale.bench.config import BenchConfig
from diffscale.bench.papers import trainings
from diffscale.bench.papers.digests import shipped_verifiers, weights_digest
from diffscale.bench.papers.recipe import Part, Series, of_shapes
from diffscale.bench.series import Cell, PromptRepeat
from diffscale.models.load import base_model
from diffscale.models.options import LoadOptions
from diffscale.models.shipped import locate, read_manifest
from diffscale.registry import PLAIN_SEARCH
from diffscale.searches import choose_search
from diffscale.suites import prompts as prompt_files

GIVEN: Final = ("drawbench", "geneval", "t2i-compbench")
"""Suites that are not shipped."""


@dataclass(frozen=True)
class Call:
    """A model and how it is called, which decides a sample together with its noise.

    `args`: pairs of name and value, so that calls can be compared. `steps` None: as the model states; `scheduler` None:
    the pipeline's own.
    """

    model: str
    steps: int | None
    args: tuple[tuple[str, Any], ...]
    dtype: str
    seed: int
    scheduler: str | None = None

    @property
    def id(self) -> str:
        """Names the folder of what is made by this call; changes with the weights, and lies with a training's.

        On Shapes also with those of the verifiers. Raises ValueError while the dtype is `auto`.
        """
        dtype = LoadOptions(dtype=self.dtype).used_dtype()
        made_of = [self.model, self.steps, sorted(self.args), dtype, self.seed, self.scheduler]
        verifiers = shipped_verifiers() if of_shapes(self.model) else {}
        digest = json_digest([*made_of, weights_digest(trainings.base_of(self.model)), verifiers])
        training = trainings.id_in(self.model)
        return f"{Path(self.model).name}-{digest}" if training is None else f"{trainings.FOLDER}/{training}/{digest}"

    def settings(self, loading: LoadOptions, **more: Any) -> BenchConfig:
        """What `diffscale bench` would be told, on the device that `loading` says; `more`: what else it is told."""
        given: dict[str, Any] = {name: getattr(self, name) for name in ("model", "seed", "steps", "dtype", "scheduler")}
        given |= {"pipe_args": dict(self.args), "device": loading.device, "offload": loading.offload}
        return BenchConfig(**given).model_copy(update=more)

    @property
    def nfe(self) -> int:
        """NFE of one sample: its steps, twice that with Heun's solver; what is left open is as the model states."""
        stated = stated_call(trainings.base_of(self.model))
        steps = self.steps or int(stated.get("num_inference_steps", 50))
        return steps * (2 if dict(self.args).get("solver", stated.get("solver")) in ("heun", "sde_heun") else 1)


def stated_call(model: str) -> dict[str, Any]:
    """How the folder of a model, or of its base, says that it is called; nothing for a Hub id."""
    return dict(read_manifest(locate(base_model(model))).get("call", {}))


@dataclass(frozen=True)
class Point:
    """`call` is that of candidates, `final` that of the picture kept where it is another one.

    `budget`: search NFE; 0: the first sample of the final call, and no search.
    """

    call: Call
    final: Call | None
    search: str
    verifier: str
    budget: int

    @property
    def last(self) -> Call:
        """The call that the kept pictures are made by."""
        return self.final or self.call

    @property
    def cell(self) -> Cell:
        """The cell of a bench that finds it."""
        if not self.searching:
            return Cell(PLAIN_SEARCH, "", 0)
        return Cell(self.search, self.verifier, self.budget, 0 if self.final is None else self.final.steps or 0)

    @property
    def searching(self) -> bool:
        return bool(self.verifier) and self.budget > 0

    @property
    def pooled(self) -> bool:
        """Whether its candidates are those of the shared pool."""
        return not self.searching or self.cell.declares("independent")

    @property
    def anytime(self) -> bool:
        """Whether a larger budget only continues the search, so that a journal is shared by all budgets."""
        return self.cell.declares("anytime")

    @property
    def candidates(self) -> int:
        """How many samples the budget pays; raises DiffscaleError if it pays none."""
        if 0 < self.budget < self.call.nfe:
            raise DiffscaleError(
                f"A budget of {self.budget} NFE does not pay for one sample of {self.call.nfe}: raise it in the recipe."
            )
        return max(1, self.budget // self.call.nfe)


def prompt_repeats(part: Part) -> list[PromptRepeat]:
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
    return [PromptRepeat(condition, repeat) for condition in conditions for repeat in range(part.repeats)]


def points_of(part: Part, series: Series) -> list[Point]:
    """The points of a series, in order of cost."""
    choose_search(series.search)
    searched = call_of(part, series)
    calls = [call_of(part, series, steps) for steps in series.final] or [searched]
    if series.verifier is None:
        return [Point(call, None, PLAIN_SEARCH, "", 0) for call in calls]
    if series.pool and (series.search != PLAIN_SEARCH or calls != [searched] or part.sets):
        raise DiffscaleError("Only scores of random search that keeps its candidates come from pools: mend the recipe.")
    if len(calls) > 1 and len(series.budgets) > 1:
        raise DiffscaleError("A series grows its budgets or its final steps: give a list of one of them.")
    return [
        Point(searched, None if call == searched else call, series.search, series.verifier, budget)
        if budget
        else Point(call, None, series.search, series.verifier, 0)
        for call in calls
        for budget in series.budgets
    ]


def every_point(part: Part) -> Iterator[tuple[str, int, Point]]:
    """All points with their series and number in it."""
    for name, series in part.series.items():
        for number, point in enumerate(points_of(part, series)):
            yield name, number, point


def call_of(part: Part, series: Series | None = None, steps: int | None = None) -> Call:
    """The call of a series' candidates, or of samples in `steps`. Of the first series: what `pairs` are scored of."""
    series = series or next(iter(part.series.values()))
    args = tuple(sorted({**part.args, **series.args}.items()))
    steps, scheduler = steps or series.steps or part.steps, series.scheduler or part.scheduler
    return Call(series.model or part.model, steps, args, part.dtype, part.seed, scheduler)
