"""What a folder of runs says of the headlines of a paper: verdicts, corrected together, and effects to be drawn."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, get_args

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import claims, headlines, planned, recipe
from diffscale.bench.papers.headlines import Headline, Headlines
from diffscale.bench.papers.numbers import Raw
from diffscale.bench.papers.recipe import Claim
from diffscale.bench.papers.verdicts import Effect, Evidence, Verdict, decide

NOT_RUN: Final = "not run since the plan"
Shown = Literal[Verdict, "not run since the plan"]
ICONS: Final[dict[str, str]] = {"holds": "✓", "does not hold": "✕", "not decided": "?", NOT_RUN: "○"}
"""Before the word of each verdict, so that it can be told without colours."""
_MOST: Final = 5.0
"""Where effects end that are drawn, in units of what matters."""


@dataclass(frozen=True)
class Mark:
    """A comparison as it is drawn: `estimate` and interval in units of what `matters`, or of the margin."""

    name: str
    estimate: float
    low: float
    high: float

    @staticmethod
    def place(value: float) -> float:
        """Where a value lies, in percent of the width."""
        return round(100 * (min(max(value, -_MOST), _MOST) + _MOST) / (2 * _MOST), 2)


@dataclass(frozen=True)
class Decision:
    """A headline with its verdict; `evidence` None where nothing was run since the plan.

    `plan`: sizes and power in words, where pilots are there to tell them; `before`: what these say.
    """

    key: str
    name: str
    headline: Headline
    item: str
    claim: Claim
    plan: str
    before: Evidence | None
    evidence: Evidence | None
    verdict: Shown
    p: float | None
    why: str

    @property
    def marks(self) -> list[Mark]:
        """The comparisons, that which is furthest from coming out first; none where nothing was run."""
        return _marks(self.claim, self.evidence)

    @property
    def pilot(self) -> list[Mark]:
        """The same of the pilots."""
        return _marks(self.claim, self.before)

    @property
    def paper(self) -> float | None:
        """The effect that the paper prints, in units of what matters in our first comparison, if its base is known."""
        known = self.evidence or self.before
        if self.claim.design is None or self.claim.design.paper is None or known is None or not known.effects:
            return None
        return self.claim.design.paper.percent / 100 * abs(known.effects[0].base) / _units(self.claim, known.effects)[0]

    @property
    def anchor(self) -> str:
        world = self.item if self.item in recipe.elsewhere() else self.key
        return f"{world}-{self.name.replace(' ', '-')}"

    @property
    def command(self) -> str:
        """What runs its item."""
        if self.item in recipe.elsewhere():
            return "python benchmarks/reproduce_mnist.py --weights WEIGHTS"
        return f"diffscale reproduce {self.item}"

    @property
    def within(self) -> bool:
        """Whether the headline is that there is no more than a margin, and not that something is better."""
        return any(each.get("is") in ("equal", "not_better") for each in planned.comparisons(self.claim))


@dataclass(frozen=True)
class Decided:
    """A paper's headlines, and how many verdicts of each kind.

    `elsewhere`: by name those that are also tested on a world that others made.
    """

    key: str
    paper: Headlines
    decisions: list[Decision]
    elsewhere: dict[str, Decision]

    @property
    def counts(self) -> dict[str, int]:
        verdicts = [each.verdict for each in self.decisions]
        return {verdict: verdicts.count(verdict) for verdict in (*get_args(Verdict), NOT_RUN)}


def decided(folder: Path, raws: Mapping[str, Raw], present: Collection[str]) -> list[Decided]:
    """The headlines of each paper of which a planned item was run in `folder`, or all tables and figures are `present`.

    `raws`: numbers of items that are not stale. Verdicts are Holm-corrected over the headlines of a paper; what was not
    run counts among them.
    """
    found = []
    for key in headlines.papers():
        tests = planned.tests(key)
        shown = [name for name in recipe.names() if name.partition(".")[0] == key]
        if not {*shown} <= {*present} and not {item for item, _, _ in tests.values()} & {*present}:
            continue
        paper, plan = headlines.load(key), _plan(folder, key)
        families = tests, planned.tests_elsewhere(key)
        decisions, others = (_decide(key, paper, each, folder, raws, plan) for each in families)
        found.append(Decided(key, paper, decisions, {each.name: each for each in others}))
    return found


def _decide(
    key: str, paper: Headlines, tests: Mapping[str, planned.Test], folder: Path, raws: Mapping[str, Raw],
    plan: Mapping[tuple[str, str], str],
) -> list[Decision]:  # fmt: skip
    """One family of headlines, corrected for together."""
    evidence = {
        name: claims.test_claim(claim, raws[item])
        for name, (item, setting, claim) in tests.items()
        if item in raws and planned.counts(item, setting, raws[item])
    }
    verdicts = decide([evidence.get(name, Evidence(1, 1)) for name in tests])
    decisions = []
    for (name, (item, setting, claim)), (verdict, p) in zip(tests.items(), verdicts, strict=True):
        run, design = evidence.get(name), (paper.headlines[name], item, claim)
        found_so = (run, verdict, p, setting.why.get(name, {}).get(verdict, "")) if run else (None, NOT_RUN, None, "")
        words, before = plan.get((item, name), ""), planned.pilot_of(claim, folder)
        decisions.append(Decision(key, name, *design, words, before, *found_so))
    return decisions


def _marks(claim: Claim, evidence: Evidence | None) -> list[Mark]:
    if evidence is None:
        return []
    pairs = list(zip(evidence.effects, _units(claim, evidence.effects), strict=True))
    drawn = []
    for effect, unit in sorted(pairs, key=lambda pair: -pair[0].holds):
        low, high = effect.contrast.interval()
        drawn.append(Mark(effect.name, effect.contrast.estimate / unit, low / unit, high / unit))
    return drawn


def _units(claim: Claim, effects: Sequence[Effect]) -> list[float]:
    if claim.test == "mean_of":
        return [1.0]
    return [each["effect"] for each in planned.comparisons(claim)][: len(effects)]


def _plan(folder: Path, paper: str) -> dict[tuple[str, str], str]:
    """Sizes and power of a paper's headlines, in words, by item and name; empty where pilots are not there."""
    try:
        rows = planned.rows(folder, [paper])
    except DiffscaleError:
        return {}
    return {(row.item, row.name): f"{row.sizes}: {row.power:.0%} power; 80% would take {row.needed}" for row in rows}
