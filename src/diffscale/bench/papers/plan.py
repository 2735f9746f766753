"""What items will have to compute from a cold start, told before any model is opened."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import trained
from diffscale.bench.papers.calls import Call, Slot
from diffscale.bench.papers.points import Point, call_of_pairs, candidates, every_point, slots_of
from diffscale.bench.papers.recipe import Part, Setting, of_shapes
from diffscale.bench.papers.searched import anytime
from diffscale.models.locate import locate
from diffscale.registry import parse
from diffscale.train import run_directory
from diffscale.train.configs import TrainConfig
from diffscale.verifiers import VERIFIERS, is_function

_RECORDING = ("clip_ssl", "dino_ssl", "siglip_ssl")


@dataclass
class Need:
    """How many candidates of each slot are chosen from, by the slot's name; `record`: with their predictions."""

    most: dict[str, tuple[Slot, int]] = field(default_factory=dict)
    record: bool = False

    def add(self, slots: Iterable[Slot], n: int) -> None:
        for slot in slots:
            name = slot.name
            self.most[name] = slot, max(n, self.most.get(name, (slot, 0))[1])

    def __len__(self) -> int:
        return sum(n for _, n in self.most.values())

    def candidates(self) -> Iterator[tuple[Slot, int]]:
        """Slots and numbers; the first candidates of all slots come first, so that prompts are batched together."""
        for number in range(max((n for _, n in self.most.values()), default=0)):
            yield from ((slot, number) for slot, n in self.most.values() if number < n)


@dataclass
class Plan:
    """`pools`: by call. `searches`: points that run by the driver, with their slots. `again`: of pooled points, how
    many samples their final call adds. `verified`: how many pictures each verifier scores, by call and by what for
    ("judge", "pool", or a search); a pool is scored once for all budgets. `trainings`: settings by ID."""

    pools: dict[Call, Need] = field(default_factory=dict)
    searches: dict[Point, list[Slot]] = field(default_factory=dict)
    again: dict[Call, int] = field(default_factory=dict)
    verified: dict[tuple[str, Call, str], int] = field(default_factory=dict)
    trainings: dict[str, TrainConfig] = field(default_factory=dict)

    def nfe(self) -> dict[Call, int]:
        """Denoiser evaluations by call, of what the plan names."""
        found = {call: len(need) * nfe_of(call) for call, need in self.pools.items()}
        for call, n in self.again.items():
            found[call] = found.get(call, 0) + n * nfe_of(call)
        largest: dict[Point, int] = {}
        for point, slots in self.searches.items():
            # Of a search that a larger budget only continues, the largest pays for all.
            whole = replace(point, budget=0) if anytime(point.search) else point
            largest[whole] = max(largest.get(whole, 0), point.budget * len(slots))
            if point.final is not None:
                found[point.final] = found.get(point.final, 0) + nfe_of(point.final) * len(slots)
        for point, nfe in largest.items():
            found[point.call] = found.get(point.call, 0) + nfe
        return found


def plan(settings: Iterable[Setting]) -> Plan:
    """What all these settings take together: what they share is counted once."""
    found = Plan()
    for setting in settings:
        found.trainings |= {trained.id_of(each): trained.config_of(each) for each in setting.trainings.values()}
        for part in setting.parts.values():
            _add(found, part)
    return found


def _add(found: Plan, part: Part) -> None:
    slots = slots_of(part)
    for _, _, point in every_point(part):
        _verified(found, part, point, len(slots))
        if not point.pooled:
            found.searches.setdefault(point, slots)
            continue
        if not point.searching:
            found.pools.setdefault(point.call, Need()).add(slots, 1)
            continue
        need = found.pools.setdefault(point.call, Need())
        need.add(slots, candidates(point.budget, nfe_of(point.call)))
        need.record = need.record or records(point.verifier or "")
        if point.final is not None:
            found.again[point.final] = found.again.get(point.final, 0) + len(slots)
    if part.pairs is not None:
        call = call_of_pairs(part)
        need = found.pools.setdefault(call, Need())
        need.add(slots, part.pairs.candidates)
        need.record = need.record or any(map(records, part.pairs.of))
        for text in part.pairs.of:
            _scored(found, (text, call, "pool"), len(slots) * part.pairs.candidates)


def _verified(found: Plan, part: Part, point: Point, slots: int) -> None:
    for judge in part.judges:
        key = judge, point.last, "judge"
        found.verified[key] = found.verified.get(key, 0) + slots
    if point.searching:
        # Of a search that a larger budget only continues, and of a pool, what is scored already is not scored again.
        grown = f"{point.search} {'' if anytime(point.search) else point.budget}"
        n = slots * candidates(point.budget, nfe_of(point.call))
        _scored(found, (point.verifier or "", point.call, "pool" if point.pooled else grown), n)


def _scored(found: Plan, key: tuple[str, Call, str], n: int) -> None:
    found.verified[key] = max(found.verified.get(key, 0), n)


def records(verifier: str) -> bool:
    """Whether a verifier compares with predictions, told by its name, without its weights."""
    return verifier.split()[0] in _RECORDING if verifier else False


def nfe_of(call: Call) -> int:
    """NFE of one sample: its steps, twice that with Heun's solver; what the call leaves open is as the model states."""
    stated = _stated(trained.base_of(call.model))
    steps = call.steps or int(stated.get("num_inference_steps", 50))
    return steps * (2 if dict(call.args).get("solver", stated.get("solver")) in ("heun", "sde_heun") else 1)


def _stated(model: str) -> dict[str, Any]:
    path = Path(locate(model)) / "diffscale.json"
    stated = json.loads(path.read_text()) if path.is_file() else {}
    if "base" in stated:
        return _stated(stated["base"])
    return dict(stated.get("call", {}))


def check(setting: Setting) -> None:
    """Raise DiffscaleError for a search, verifier, prompt, budget, metric or training of `setting` that cannot be,
    before anything runs.

    Functions as verifiers are not looked at.
    """
    for training in setting.trainings.values():
        run_directory.check(trained.config_of(training))
    for part in setting.parts.values():
        slots_of(part)
        _check_sets(part)
        named = [*part.judges, *(series.verifier for series in part.series.values() if series.verifier)]
        for text in named:
            if not is_function(text):
                parse(text, "verifier", VERIFIERS)


def _check_sets(part: Part) -> None:
    compared = [name for name in part.sets if name in ("fid", "precision", "recall")]
    if part.reference is not None and not Path(part.reference).expanduser().is_file():
        raise DiffscaleError(
            f"There is no file {part.reference}: give --reference what `diffscale evaluate --save-reference` wrote."
        )
    if compared and part.reference is None and not of_shapes(part.model):
        raise DiffscaleError(f"{compared[0]} compares with real pictures: give --reference, their statistics.")
    if "diversity" in part.sets and part.repeats < 2:
        raise DiffscaleError("Diversity compares pictures of a prompt: give the recipe repeats of 2 or more.")
