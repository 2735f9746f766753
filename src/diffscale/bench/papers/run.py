"""Runs an item and writes its raw numbers; what is done is not done again, what a changed recipe made is stale."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.bench.papers import logs, trained
from diffscale.bench.papers.calls import Call, Models, Slot
from diffscale.bench.papers.choosing import pick
from diffscale.bench.papers.digests import digest, shipped_verifiers, weights_digest
from diffscale.bench.papers.measured import Speeds
from diffscale.bench.papers.plan import nfe_of, plan, records
from diffscale.bench.papers.points import Point, call_of_pairs, candidates, every_point, slots_of
from diffscale.bench.papers.pool import Pool
from diffscale.bench.papers.recipe import Part, Setting, of_shapes
from diffscale.bench.papers.scoring import Scoring
from diffscale.bench.papers.searched import Searched
from diffscale.bench.papers.sets import Sets
from diffscale.bench.papers.trainings import Trainings
from diffscale.models.load import best_device
from diffscale.models.options import LoadOptions
from diffscale.report.pictures import to_pil
from diffscale.shapes.captions import parse_caption
from diffscale.shapes.prompts import SUITES
from diffscale.suites.prompts import categories
from diffscale.types import ClassLabel, Sampler

FORMAT = 1
SETS = 2
"""Of metrics of all pictures together, and of how an oracle of them chooses."""
CACHE: Final = "cache"
"""Of an output folder: pools, searches, scores and trainings that items share."""
Told = Callable[[str, int, int], None]


class Workshop:
    """What the items of one output folder share: models, verifiers, pools, scores, speeds."""

    def __init__(self, folder: Path, loading: LoadOptions, batch_size: int | None = None) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DiffscaleError(f"The folder {folder} cannot be made: choose another place ({error}).") from error
        self.folder, self.batch_size = folder, batch_size
        self.models, device = Models(loading, folder / CACHE), best_device(loading.device)
        self.trainings = Trainings(folder / CACHE)
        self.scoring = Scoring(folder / CACHE, device)
        self.speeds = Speeds(folder, self.models, self.scoring)
        self._pools: dict[Call, Pool] = {}
        self._sets: dict[tuple[bool, str | None], Sets] = {}

    def pool(self, call: Call) -> Pool:
        if call not in self._pools:
            self._pools[call] = Pool(self.folder / CACHE, call, lambda prompts: self.models.sampler(call, prompts))
        return self._pools[call]

    def searched(self, call: Call, verifier: str) -> Searched:
        def opened(which: Call, prompts: Sequence[str]) -> Sampler:
            return self.models.sampler(which, prompts)

        return Searched(self.folder / CACHE, call, verifier, self.scoring.id(verifier, call.model), opened)

    def sets(self, model: str, reference: str | None) -> Sets:
        key = of_shapes(model), reference
        if key not in self._sets:
            self._sets[key] = Sets.open(model, reference, self.scoring.device)
        return self._sets[key]


@dataclass(frozen=True)
class _Kept:
    """A point's pictures uint8 [slots, 3, H, W] and what one of them cost on average."""

    pictures: Tensor
    nfe: float
    flops: float


def made_of(setting: Setting) -> str:
    """Digest of all that decides an item's numbers: its recipe as resolved, the prompts and the reference, the weights.

    What the Hub holds is taken to stay as it is. What a part leaves at its default does not count but for the dtype, so
    that options that are added later make nothing stale.
    """
    parts = {
        name: {**part.model_dump(exclude_defaults=True), "dtype": part.dtype} for name, part in setting.parts.items()
    }
    used = sorted({trained.base_of(each) for part in setting.parts.values() for each in _models(part)})
    weights = {model: weights_digest(model) for model in used}
    if any(map(of_shapes, used)):
        weights |= shipped_verifiers()
    trainings = {name: trained.id_of(each) for name, each in setting.trainings.items()}
    given = {text: _held(text) for part in setting.parts.values() for text in (part.prompts, part.reference or "")}
    sets = [SETS] if any(part.sets for part in setting.parts.values()) else []
    return digest([FORMAT, parts, weights, given, trainings, *sets])


def _held(source: str) -> Any:
    """What a suite says, or the digest of a file."""
    if source in SUITES:
        return SUITES[source]()
    path = Path(source).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def read(folder: Path, item: str) -> dict[str, Any] | None:
    """The raw numbers of an item, None where there are none."""
    path = folder / item / "raw.json"
    return dict(json.loads(path.read_text())) if path.is_file() else None


def discard(folder: Path, items: Iterable[str]) -> None:
    """Delete the numbers of `items` and all that `folder` keeps of what items share, so that they start cold.

    Raises DiffscaleError for what cannot be deleted; the numbers are still there then.
    """
    try:
        # Not the folder itself, which may be a link to another disk.
        for kept in (folder / CACHE).glob("*"):
            if kept.is_dir() and not kept.is_symlink():
                shutil.rmtree(kept)
            else:
                kept.unlink()
    except OSError as error:
        raise DiffscaleError(
            f"{folder / CACHE} cannot be deleted ({error}): delete it, or leave --no-resume out."
        ) from error
    for item in items:
        (folder / item / "raw.json").unlink(missing_ok=True)


def run(
    item: str, setting: Setting, workshop: Workshop, told: Told | None = None, recording: Container[Call] = ()
) -> bool:
    """Run an item unless its numbers are there and up to date; whether it was run.

    `told(what, done, of)` hears of progress. `recording`: calls of which pools keep predictions although this item
    needs none, because others will.
    """
    held = read(workshop.folder, item)
    key = made_of(setting)
    if held is not None and held["made_of"] == key:
        return False
    folder = workshop.folder / item
    trainings = {}
    for name, training in setting.trainings.items():
        workshop.models.drop()
        made = workshop.trainings.make(training, f"{item}: {name}", told)
        trainings[name] = logs.keep(made, folder, name)
    parts = {name: _run_part(item, name, part, workshop, told, recording) for name, part in setting.parts.items()}
    folder.mkdir(parents=True, exist_ok=True)
    fresh = folder / "raw.json.new"
    raw = {"item": item, "made_of": key, "parts": parts, **({"trainings": trainings} if trainings else {})}
    fresh.write_text(json.dumps(raw, indent=1, ensure_ascii=False) + "\n")
    fresh.replace(folder / "raw.json")
    return True


def _models(part: Part) -> list[str]:
    return [part.model, *(series.model for series in part.series.values() if series.model is not None)]


def _run_part(
    item: str, name: str, part: Part, workshop: Workshop, told: Told | None, recording: Container[Call]
) -> dict[str, Any]:
    slots = slots_of(part)
    needs = plan([Setting(view="table", parts={name: part})])
    for call, need in needs.pools.items():
        total = len(need)
        bar = None if told is None else lambda done, call=call, total=total: told(f"{item}: {call.model}", done, total)
        workshop.pool(call).make(need.candidates(), need.record or call in recording, bar, workshop.batch_size)
    found: dict[str, list[dict[str, Any]]] = {series: [] for series in part.series}
    for series, number, point in every_point(part):
        kept = _keep(point, slots, workshop, None if told is None else _bar(told, f"{item}: {series}", point, slots))
        row = {"nfe": kept.nfe, "flops": kept.flops, "search_nfe": point.budget, "model": point.call.model}
        row |= _measured(part, point, kept.pictures, slots, workshop)
        if part.strips:
            row["pictures"] = _save(kept.pictures, slots, part, workshop.folder / item, f"{name}-{series}-{number}")
        found[series].append(row)
    conditions = list({slot.condition: slot.prompt for slot in slots}.values())
    return {
        "model": part.model,
        "prompts": [str(prompt) for prompt in conditions],
        "categories": _categories(part, conditions),
        "repeats": part.repeats,
        "series": found,
        **({} if part.pairs is None else {"pairs": _pairs(part, slots, workshop)}),
    }


def _categories(part: Part, conditions: Sequence[str]) -> list[str]:
    """As the file of prompts says, or what captions of Shapes mean; empty where nobody tells."""
    said = categories(part.prompts)
    if of_shapes(part.model):
        for prompt in conditions:
            if not isinstance(prompt, ClassLabel) and (meaning := parse_caption(prompt)) is not None:
                said.setdefault(prompt, meaning.category)
    return [said.get(prompt, "") for prompt in conditions]


def _bar(told: Told, what: str, point: Point, slots: Sequence[Slot]) -> Callable[[int, float], None]:
    return lambda spent, _: told(what, spent, point.budget * len(slots))


def _keep(point: Point, slots: Sequence[Slot], workshop: Workshop, told: Callable[[int, float], None] | None) -> _Kept:
    if not point.pooled:
        verifier = point.verifier or ""
        found = workshop.searched(point.call, verifier).find(
            slots, point.search, point.budget, lambda: workshop.scoring.verifier(verifier, point.call.model),
            point.final, told, workshop.batch_size,
        )  # fmt: skip
        costs = [sum(getattr(each, cost) for each in found) / len(found) for cost in ("nfe", "flops")]
        return _Kept(torch.stack([each.picture for each in found]), *costs)
    pool, steps = workshop.pool(point.call), nfe_of(point.call)
    per_nfe = workshop.speeds.of(point.call, slots[0].prompt).flops_per_nfe
    if not point.searching:
        return _Kept(torch.cat([pool.pictures(slot, [0]) for slot in slots]), steps, steps * per_nfe)
    n = candidates(point.budget, steps)
    chosen = pick(pool, slots, n, point.verifier or "", workshop.scoring)
    nfe, flops = n * steps, n * steps * per_nfe
    if point.final is not None:
        pool = workshop.pool(point.final)
        pool.make(zip(slots, chosen, strict=True), False, None, workshop.batch_size)
        more = nfe_of(point.final)
        nfe += more
        flops += more * workshop.speeds.of(point.final, slots[0].prompt).flops_per_nfe
    pictures = torch.cat([pool.pictures(slot, [best]) for slot, best in zip(slots, chosen, strict=True)])
    return _Kept(pictures, nfe, flops)


def _measured(part: Part, point: Point, pictures: Tensor, slots: Sequence[Slot], workshop: Workshop) -> dict[str, Any]:
    """`scores` of each judge, one a slot, and `sets`."""
    model = point.call.model
    scores = {
        judge: [
            float(workshop.scoring.scores(judge, model, slot.prompt, picture[None])[0])
            for slot, picture in zip(slots, pictures, strict=True)
        ]
        for judge in part.judges
    }
    for judge, values in scores.items():
        _check_scored(judge, values)
    sets = workshop.sets(model, part.reference).measure(part.sets, pictures, slots) if part.sets else {}
    return {"scores": scores, "sets": sets}


def _check_scored(verifier: str, values: Sequence[float]) -> None:
    failed = len(values) - int(np.isfinite(values).sum())
    if failed:
        raise DiffscaleError(f"{verifier} could not score {failed} of {len(values)} pictures: see to it and run again.")


def _pairs(part: Part, slots: Sequence[Slot], workshop: Workshop) -> dict[str, list[list[float]]]:
    """Scores of each verifier, [slots][candidates]."""
    assert part.pairs is not None
    call = call_of_pairs(part)
    pool, numbers = workshop.pool(call), range(part.pairs.candidates)
    found = {}
    for text in part.pairs.of:
        of_it = []
        for slot in slots:
            early = (lambda slot=slot: pool.pictures(slot, numbers, recorded=True)) if records(text) else None
            pictures = pool.pictures(slot, numbers)
            scores = workshop.scoring.scores(text, call.model, slot.prompt, pictures, early)
            values = workshop.scoring.aggregate(text, call.model, scores).tolist()
            _check_scored(text, values)
            of_it.append(values)
        found[text] = of_it
    return found


def _save(pictures: Tensor, slots: Sequence[Slot], part: Part, folder: Path, name: str) -> list[str]:
    """The pictures of the first repeat of the first prompts, as files; their names."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    first = [i for i, slot in enumerate(slots) if slot.repeat == 0][: part.strips]
    safe = "".join(c if c.isalnum() or c in "=.-" else "_" for c in name)
    paths = [folder / "pictures" / f"{safe}-{row}.png" for row in range(len(first))]
    for i, path in zip(first, paths, strict=True):
        to_pil(pictures[i].float() / 255).save(path)
    return [path.name for path in paths]
