"""The analysis plan: which test decides each headline, at which sample size and power, and which run it counts of.

The plan is the recipes in `recipes/planned`: their headline claims with the `design` of each, and what they run. Its
digest changes with all that decides a verdict; a run writes it down when it begins, and counts for the plan of that
digest alone, if that was written before.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_json, write_json
from diffscale._util.fingerprints import json_digest
from diffscale.bench.papers import headlines, numbers, power, recipe
from diffscale.bench.papers.claims import CLAIMS
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.points import prompt_repeats
from diffscale.bench.papers.power import Need, Spread
from diffscale.bench.papers.recipe import Claim, Part, Pilot, Setting
from diffscale.bench.papers.sets import strata_and_groups
from diffscale.bench.papers.verdicts import LEVEL, Evidence, every, paired

_BEGUN: Final = "begun.json"


class Begun(BaseModel):
    """When a planned run began, and the digest of the plan that it began with."""

    plan: str
    at: datetime


@dataclass(frozen=True)
class Row:
    """A headline as planned, tested at a one-sided `level`: its comparisons, with the sizes that they have, `units` by
    comparison."""

    name: str
    item: str
    claim: Claim
    needs: list[Need]
    units: list[str]
    level: float

    @property
    def power(self) -> float:
        """Of all comparisons together, at least."""
        return power.of_all(self.needs, self.level)

    @property
    def sizes(self) -> str:
        """The planned sizes in words."""
        return _in_words((need.size, unit) for need, unit in zip(self.needs, self.units, strict=True))

    @property
    def needed(self) -> str:
        """The smallest sizes that would do, in words."""
        sizes = power.enough(self.needs, self.level)
        return "no size" if sizes is None else _in_words(zip(sizes, self.units, strict=True))


def _in_words(sizes: Iterable[tuple[int, str]]) -> str:
    """The largest size in each unit."""
    largest: dict[str, int] = {}
    for size, unit in sizes:
        largest[unit] = max(largest.get(unit, 0), size)
    return ", ".join(f"{size:,} {unit}" for unit, size in largest.items())


def is_planned(setting: Setting) -> bool:
    """Whether headlines are tested on it."""
    return any(claim.headline for claim in setting.claims.values())


def digest(item: str, setting: Setting) -> str:
    """Of all that decides the verdicts on an item's headlines: what is run, the tests, and the headlines that are
    corrected for together, those of the paper or, elsewhere, of the item. How things are called or reasoned does not
    count."""
    parts = {name: part.model_dump(mode="json", exclude_defaults=True) for name, part in setting.parts.items()}
    tests = {name: [claim.test, claim.options] for name, claim in setting.claims.items() if claim.headline}
    of_paper = item not in recipe.elsewhere()
    family = sorted(headlines.load(item.partition(".")[0]).headlines if of_paper else tests)
    return json_digest([parts, setting.trainings, tests, family])


def begin(item: str, setting: Setting, folder: Path) -> dict[str, Any]:
    """Write into an item's `folder` that it begins, unless it did by the same plan; what its raw numbers say of it."""
    now = digest(item, setting)
    found = read_json(folder / _BEGUN, Begun)
    if found is None or found["plan"] != now:
        found = {"plan": now, "at": datetime.now(UTC).isoformat()}
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / _BEGUN, found, indent=1)
    return dict(found)


def counts(item: str, setting: Setting, raw: Raw) -> bool:
    """Whether raw numbers are of a run of this very plan, begun after it was written."""
    begun = raw.get("plan", {})
    if setting.written is None or begun.get("plan") != digest(item, setting):
        return False
    return datetime.fromisoformat(begun["at"]) > setting.written


def setting_of(item: str) -> Setting:
    """A planned item as it is run: on Shapes, or on the world that its recipe is of."""
    loaded = recipe.load(item)
    return recipe.resolved(loaded, "digits" if "digits" in loaded.settings else "shapes")


def settings() -> dict[str, Setting]:
    """The planned items, as they are run on Shapes."""
    return {name: setting_of(name) for name in recipe.planned()}


Test = tuple[str, Setting, Claim]
"""The planned item of a headline, its setting, and the test."""


def tests_elsewhere(paper: str) -> dict[str, Test]:
    """The same of the headlines of a paper that are tested on a world of others too, a family of their own."""
    every = {item: setting_of(item) for item in recipe.elsewhere() if item.partition(".")[0] == paper}
    return {name: (item, each, claim) for item, each in every.items() for name, claim in each.claims.items()}


def tests(paper: str) -> dict[str, Test]:
    """The planned item of each headline of a paper, and its test, in the order of the paper's list.

    Raises DiffscaleError for a headline without a test.
    """
    tested = {
        name: (item, setting, claim)
        for item, setting in settings().items()
        if item.partition(".")[0] == paper
        for name, claim in setting.claims.items()
        if claim.headline
    }
    found = {}
    for name in headlines.load(paper).headlines:
        if name not in tested:
            raise DiffscaleError(f"No planned item tests the headline {name!r} of {paper}: mend the plan.")
        found[name] = tested[name]
    return found


def rows(pilots: Path, papers: Iterable[str]) -> list[Row]:
    """The headlines of `papers` in the order of their lists, with their power from the numbers in the folder `pilots`.

    Raises DiffscaleError where a pilot is not there.
    """
    found = []
    for tested in [family for paper in papers for family in (tests(paper), tests_elsewhere(paper))]:
        for name, (item, setting, claim) in tested.items():
            sizes = [_size(setting, claim, each) for each in comparisons(claim)]
            needs = list(_needs(setting, claim, pilots, [size for size, _ in sizes]))
            # Holm's first step, which is Bonferroni's; both directions of a claim are tested.
            level = LEVEL / (2 * len(tested))
            found.append(Row(name, item, claim, needs, [unit for _, unit in sizes][: len(needs)], level))
    return found


def comparisons(claim: Claim) -> list[dict[str, Any]]:
    """The comparisons of a headline's test: `part`, `measure`, `a` and `b` where it has these, and the effect that
    matters of each as `effect`, or the margin."""
    options = claim.options
    if claim.test == "scaling":
        place = {"part": options["part"], "a": [options["part"], options["series"]], "first": options["first"]}
        return [{**place, "measure": measure, "effect": effect} for measure, effect in options["measures"].items()]
    every = options.get("all_of", [options])
    part = options.get("part")
    return [
        {**each, "part": part or each["a"][0], "effect": each.get("margin") or each.get("matters", 0.0)}
        for each in every
    ]


def pilot_of(claim: Claim, folder: Path) -> Evidence | None:
    """What pilots in `folder` say of a claim: estimates, from which no verdict follows. None without pilots."""
    assert claim.design is not None
    pilots = claim.design.pilots
    if not all((folder / pilot.item / "raw.json").is_file() for pilot in pilots if pilot.item):
        return None
    if not pilots[0].item:
        return None
    given = claim.options.get("all_of", [claim.options])
    if claim.test == "scaling":
        return CLAIMS["scaling"](_raw(folder, pilots[0]), **claim.options)
    pilots = pilots * len(given) if len(pilots) == 1 else pilots
    moved = [{**each, "a": p.a or each["a"], "b": p.b or each["b"]} for each, p in zip(given, pilots, strict=True)]
    if claim.test == "mean_of":
        return CLAIMS["mean_of"](_raw(folder, pilots[0]), all_of=moved)
    test = CLAIMS["compare"]
    return every([test(_raw(folder, p), all_of=[{"is": "better", **e}]) for e, p in zip(moved, pilots, strict=True)])


def _size(setting: Setting, claim: Claim, each: Mapping[str, Any]) -> tuple[int, str]:
    """The size of a comparison, and its unit."""
    part = setting.parts[each["part"]]
    if claim.test == "trained":
        return min(_seeds(part, each[place]) for place in "ab"), "seeds"
    if part.repeats > 1:
        return part.repeats, f"repeats of {_prompts(part)} prompts"
    return _prompts(part), "prompts"


def _seeds(part: Part, names: str | list[str]) -> int:
    every = [names] if isinstance(names, str) else names
    count = sum(name.startswith(f"{each} #") for name in part.series for each in every)
    return count or sys.maxsize  # one that has no seeds is compared with all of the other


def _prompts(part: Part) -> int:
    # Prompts that are named are counted without their suite, which is not here where a world is not.
    return len(part.only) or len(prompt_repeats(part)) // part.repeats


def _needs(setting: Setting, claim: Claim, folder: Path, sizes: Sequence[int]) -> Iterator[Need]:
    assert claim.design is not None
    found, pilots = comparisons(claim), claim.design.pilots
    if len(pilots) == 1:
        pilots = pilots * len(found)
    if len(pilots) != len(found):
        raise DiffscaleError(f"{claim.says!r} has {len(found)} comparisons and {len(pilots)} pilots: mend the plan.")
    if claim.test == "mean_of":
        values = [
            _differences(_raw(folder, pilot), each, pilot).mean(1) / each["effect"]
            for each, pilot in zip(found, pilots, strict=True)
        ]
        contrast = paired(np.mean(values, axis=0))
        yield Need(1.0, power.over_prompts(contrast.error * np.sqrt(len(values[0]))), sizes[0])
        return
    for each, pilot, size in zip(found, pilots, sizes, strict=True):
        spread = _spread(setting.parts[each["part"]], each, pilot, folder)
        yield Need(each["effect"], spread, size, each.get("is") == "equal")


def _raw(folder: Path, pilot: Pilot) -> Mapping[str, Any]:
    raw = read_json(folder / pilot.item / "raw.json", dict[str, Any])
    if raw is None:
        raise DiffscaleError(
            f"{folder} has no {pilot.item}, a pilot: give docs/reproduction of a checkout as --output."
        )
    return raw


def _spread(part: Part, each: Mapping[str, Any], pilot: Pilot, folder: Path) -> Spread:
    """How the error of a comparison goes with its size, from a pilot."""
    prompts = _prompts(part)
    if not pilot.item and each.get("fixed"):
        return power.within_prompts(prompts, pilot.rest)
    if not pilot.item:
        return power.over_seeds(prompts, pilot.seed, pilot.prompt, pilot.rest)
    raw = _raw(folder, pilot)
    if "b" in each:
        one, other = (numbers.point(raw, *(getattr(pilot, place) or each[place])) for place in "ab")
        if one.whole(each["measure"]) is not None:
            contrast = one.difference(other, each["measure"])

            def freedom(repeats: int) -> int:
                strata, units = strata_and_groups(prompts, repeats)
                return strata * (units - 1)

            return power.of_groups(contrast.error, one.part["repeats"], freedom)
    values = _differences(raw, each, pilot)
    total = pilot.left * float(values.mean(1).var(ddof=1))
    if part.repeats == 1:
        return power.over_prompts(total**0.5)
    if values.shape[1] > 1:
        within = pilot.left * float(values.var(1, ddof=1).mean())
        if each.get("fixed"):
            return power.within_prompts(prompts, within**0.5)
        between = max(0.0, total - within / values.shape[1])
    else:
        within, between = pilot.within * total, (1 - pilot.within) * total
    return power.over_repeats(prompts, between**0.5, within**0.5)


def _differences(raw: Raw, each: Mapping[str, Any], pilot: Pilot) -> np.ndarray[Any, np.dtype[np.float64]]:
    """What a comparison is over in its pilot, [prompts, repeats]; of scaling the slopes."""
    if "b" in each:
        one, other = (numbers.point(raw, *(getattr(pilot, place) or each[place])) for place in "ab")
        return one.by_repeat(each["measure"]) - other.by_repeat(each["measure"])
    points = numbers.points(raw, *(pilot.a or each["a"]))
    weights = numbers.slope_weights([point.row["search_nfe"] or each["first"] for point in points])
    return np.asarray(np.tensordot(weights, [point.by_repeat(each["measure"]) for point in points], 1))
