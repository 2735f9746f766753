"""Runs an item and writes its raw numbers; what is done is not done again, what a changed recipe made is stale."""

import hashlib
import math
import shutil
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from pydantic import BaseModel

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import read_json, write_json
from diffscale._util.fingerprints import json_digest
from diffscale._util.progress import Progress, silent
from diffscale.api import make_sampler
from diffscale.api.workers import Crew
from diffscale.bench.networks import Networks
from diffscale.bench.papers import planned, trainings
from diffscale.bench.papers.digests import shipped_verifiers, weights_digest
from diffscale.bench.papers.plan import Speeds
from diffscale.bench.papers.points import Call, Point, call_of, every_point, prompt_repeats
from diffscale.bench.papers.pools import Pools, expected
from diffscale.bench.papers.recipe import Part, Setting, of_shapes
from diffscale.bench.papers.sets import Sets
from diffscale.bench.run import picture_of, read_found
from diffscale.bench.run import run as bench
from diffscale.bench.series import Cell, PromptRepeat, rows_of, safe_name
from diffscale.engine.flops import count_flops
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.models.dtypes import DtypeChoice
from diffscale.models.load import devices_of, settle_dtype, world_of
from diffscale.models.options import AUTO, LoadOptions
from diffscale.registry import PLAIN_SEARCH, plugins
from diffscale.suites.prompts import categories
from diffscale.types import ClassLabel, PoolVerifier, Verifier

FORMAT = 1
SETS = 2
"""Of metrics of all pictures together, and of how an oracle of them chooses."""
CACHE: Final = "cache"
"""Of an output folder: samples, scores and trainings that items share."""


class _Raw(BaseModel):
    """What `run` writes."""

    item: str
    made_of: str
    parts: dict[str, dict[str, Any]]
    trainings: dict[str, dict[str, Any]] = {}
    plan: dict[str, Any] = {}


class Session:
    """What the items of one output folder share: models, verifiers, benches, speeds.

    `crew`: the workers that compute searches, None where this process does. `networks`: others than those that names
    stand for.
    """

    def __init__(
        self, folder: Path, loading: LoadOptions, batch_size: int | None = None, crew: Crew | None = None,
        networks: Networks | None = None,
    ) -> None:  # fmt: skip
        with explained(f"The folder {folder} cannot be made: choose another place ({{why}}).", OSError):
            folder.mkdir(parents=True, exist_ok=True)
        if loading.device is not None:  # what is not searched, such as the measuring of speeds, is done on the first
            loading = loading.model_copy(update={"device": devices_of(loading.device)[0]})
        self.folder, self.cache, self.loading, self._batch_size = folder, folder / CACHE, loading, batch_size
        self.networks = networks or Networks(devices_of(loading.device)[0], crew)
        self.speeds = Speeds(folder, loading, self.networks)
        self._sets: dict[tuple[bool, str | None], Sets] = {}
        self.dtypes: dict[str, DtypeChoice] = {}

    def settle(self, setting: Setting) -> Setting:
        """`setting` with the dtypes that are used in the place of `auto`, see `choose_dtype`."""
        parts = {
            name: part.model_copy(update={"dtype": self.choose_dtype(part.model).dtype}) if part.dtype == AUTO else part
            for name, part in setting.parts.items()
        }
        return setting.model_copy(update={"parts": parts})

    def choose_dtype(self, model: str) -> DtypeChoice:
        """What `auto` stands for where `model` is sampled from; all items of the folder keep what was chosen first.

        It is kept beside what was made in it, so that runs go on from it on any machine. Raises DiffscaleError for a
        model that it is to be read from and that cannot be read.
        """
        base = trainings.base_of(model)
        if base not in self.dtypes:
            file = self.cache / "dtypes.json"
            known = read_json(file, dict[str, str]) or {}
            settle_dtype(base, self.loading, known.get(base), partial(self.dtypes.__setitem__, base))
            if base not in known:
                write_json(file, {**known, base: self.dtypes[base].dtype})
        return self.dtypes[base]

    def run(self, call: Call, part: Part, cells: Sequence[Cell], progress: Progress) -> list[dict[str, Any]]:
        """What the bench of `call` finds in `cells` for the prompts of `part`, by its judges too: its samples.

        Raises the DiffscaleError of the first search that finds nothing.
        """
        verifiers = list(dict.fromkeys(cell.verifier for cell in cells if cell.verifier))
        more = {"repeats": part.repeats, "verifier": verifiers, "batch_size": self._batch_size}
        prompts, _ = rows_of(prompt_repeats(part))
        samples = bench(
            call.settings(self.loading, search=[cell.search for cell in cells], **more), prompts,
            self.folder_of(call, part), progress, cells, judges=part.judges,
            source=trainings.located(call.model, self.cache), networks=self.networks, share=True,
        )  # fmt: skip
        if errors := [sample["error"] for sample in samples if "error" in sample]:
            raise DiffscaleError(errors[0])
        return samples

    def folder_of(self, call: Call, part: Part) -> Path:
        """Where the bench of a call is; another place where a file changed that a verifier of the part names."""
        texts = [*part.judges, *(series.verifier or "" for series in part.series.values())]
        texts += [] if part.pairs is None else part.pairs.of
        given = sorted({word.partition("=")[2] for text in texts for word in text.split()})
        named = {name: digest for name in given if (digest := _content_digest(name))}
        return self.cache / call.id / json_digest(named) if named else self.cache / call.id

    @torch.no_grad()
    def decoding_flops(self, call: Call, prompt: str) -> float:
        """Operations of the decoder for one sample of a call, counted once and kept in the cache."""
        file = self.cache / "decoding.json"
        known = read_json(file, dict[str, float]) or {}
        if call.id not in known:
            settings, one = call.settings(self.loading), torch.zeros(1, dtype=torch.int64)
            sampler = make_sampler(
                trainings.located(call.model, self.cache), [prompt], steps=call.steps, pipe_args=settings.call_args,
                loading=settings, load=self.networks.pipeline,
            )  # fmt: skip
            start = sampler.prior(one, one)
            with count_flops() as counted:
                sampler.decode(start.x)
            known = {**known, call.id: float(counted.total)}
            write_json(file, known)
        return known[call.id]

    def sets(self, model: str, reference: str | None) -> Sets:
        key = of_shapes(model), reference
        if key not in self._sets:
            self._sets[key] = Sets.open(model, reference, self.networks.device)
        return self._sets[key]


def made_of(setting: Setting) -> str:
    """Digest of all that decides an item's numbers: its recipe as resolved, the prompts and the reference, the weights.

    What the Hub holds is taken to stay as it is. What a part leaves at its default does not count, so that options that
    are added later make nothing stale. So does a dtype of `auto`: numbers that were made in any that it can stand for
    are as good, and say in which they were made.
    """
    parts = {name: part.model_dump(exclude_defaults=True) for name, part in setting.parts.items()}
    models = {
        trainings.base_of(model)
        for part in setting.parts.values()
        for model in (part.model, *(series.model for series in part.series.values()))
        if model is not None
    }
    weights = {model: weights_digest(model) for model in sorted(models)}
    if any(map(of_shapes, models)):
        weights |= shipped_verifiers()
    given = {text: _content(text) for part in setting.parts.values() for text in (part.prompts, part.reference or "")}
    made = {name: trainings.id_of(each) for name, each in setting.trainings.items()}
    sets = [SETS] if any(part.sets for part in setting.parts.values()) else []
    return json_digest([FORMAT, parts, weights, given, made, *sets])


def _content(source: str) -> Any:
    """What a suite says, or the digest of a file."""
    return plugins("suites")[source]() if source in plugins("suites") else _content_digest(source)


def _content_digest(path: str) -> str:
    """The digest of a file, or of the weights in a folder; empty for what is neither."""
    place = Path(path).expanduser()
    if path and place.is_dir():
        return weights_digest(str(place))
    return hashlib.sha256(place.read_bytes()).hexdigest() if place.is_file() else ""


def read(folder: Path, item: str) -> dict[str, Any] | None:
    """The raw numbers of an item, None where there are none, or the file is broken: the cache has what they are of."""
    found: dict[str, Any] | None = read_json(folder / item / "raw.json", _Raw)
    return found


def discard(folder: Path, items: Iterable[str]) -> None:
    """Delete the numbers of `items` and all that `folder` keeps of what items share, so that they start cold.

    Raises DiffscaleError for what cannot be deleted; the numbers are still there then.
    """
    with explained(f"{folder / CACHE} cannot be deleted ({{why}}): delete it, or leave --no-resume out.", OSError):
        # Not the folder itself, which may be a link to another disk.
        for kept in (folder / CACHE).glob("*"):
            if kept.is_dir() and not kept.is_symlink():
                shutil.rmtree(kept)
            else:
                kept.unlink()
    for item in items:
        (folder / item / "raw.json").unlink(missing_ok=True)


def run(item: str, setting: Setting, session: Session, progress: Progress = silent) -> bool:
    """Run an item unless its numbers are there and up to date; whether it was run.

    `progress` is called with what is done, how much of it, and how much there is.
    """
    before, key, folder = read(session.folder, item), made_of(setting), session.folder / item
    if before is not None and before["made_of"] == key:
        return False
    plan = {"plan": planned.begin(item, setting, folder)} if planned.is_planned(setting) else {}
    logs = {}
    others = setting.trainings.values()
    for name, training in setting.trainings.items():
        session.networks.drop_pipeline()
        finished = trainings.make(training, f"{item}: {name}", session.cache, progress, others)
        logs[name] = trainings.keep_log(finished, folder, name)
    settled = session.settle(setting)
    parts = {name: _run_part(item, name, part, session, progress) for name, part in settled.parts.items()}
    raw = {"item": item, "made_of": key, **plan, "parts": parts, **({"trainings": logs} if logs else {})}
    write_json(folder / "raw.json", raw, indent=1)
    return True


def _run_part(item: str, name: str, part: Part, session: Session, progress: Progress) -> dict[str, Any]:
    wanted, points = prompt_repeats(part), list(every_point(part))
    cells: dict[Call, list[Cell]] = {}
    for _, _, point in points:
        cells.setdefault(point.call, []).append(point.cell)
    pairs: dict[str, tuple[Call, Cell]] = {}
    if part.pairs is not None:
        call = call_of(part)
        pairs = {
            text: (call, Cell(f"{PLAIN_SEARCH} n={part.pairs.candidates}", text, part.pairs.candidates * call.nfe))
            for text in part.pairs.of
        }
        cells.setdefault(call, []).extend(cell for _, cell in pairs.values())
    found: dict[tuple[Call, Cell], list[dict[str, Any]]] = {}
    for call, each in cells.items():
        chosen = list(dict.fromkeys(each))
        samples = session.run(call, part, chosen, partial(_report, progress, f"{item}: {call.model}"))
        found |= {(call, cell): samples[i * len(wanted) :][: len(wanted)] for i, cell in enumerate(chosen)}
    pooled = _of_pools(part, wanted, points, found, session, partial(_renamed, progress, item))
    rows: dict[str, list[dict[str, Any]]] = {series: [] for series in part.series}
    for series, number, point in points:
        samples, home = found[point.call, point.cell], session.folder_of(point.call, part)
        costs = {cost: sum(sample[cost] for sample in samples) / len(samples) for cost in ("nfe", "flops")}
        if part.cost == "search":
            decoder = session.decoding_flops(point.last, wanted[0].prompt)
            others = sum(sample["verifier_flops"] + decoder * sample["decodes"] for sample in samples)
            costs["flops"] += others / len(samples)
        row = {**costs, "search_nfe": point.budget, "model": point.call.model}
        row["scores"] = {judge: _checked(judge, [_best(sample, judge) for sample in samples]) for judge in part.judges}
        row["scores"] |= pooled.get((series, number), {})
        row["sets"] = {}
        if part.sets:
            pictures = torch.stack([read_found(sample, home) for sample in samples])
            row["sets"] = session.sets(point.call.model, part.reference).measure(part.sets, pictures, wanted)
        if part.strips:
            row["pictures"] = _copy(samples, home, part, session.folder / item, f"{name}-{series}-{number}")
        rows[series].append(row)
    prompts, _ = rows_of(wanted)
    scored = {
        text: [
            _checked(text, _pool_values(session.networks.verifier(text, part.model), sample)) for sample in found[key]
        ]
        for text, key in pairs.items()
    }
    return {
        "model": part.model,
        "dtype": part.dtype,
        "prompts": list(map(str, prompts)),
        "categories": _categories(part, prompts),
        "repeats": part.repeats,
        **({} if part.cost == "denoiser" else {"cost": part.cost}),
        "series": rows,
        **({"pairs": scored} if scored else {}),
    }


def _of_pools(
    part: Part, wanted: Sequence[PromptRepeat], points: Sequence[tuple[str, int, Point]],
    found: Mapping[tuple[Call, Cell], Sequence[Mapping[str, Any]]], session: Session, progress: Progress,
) -> dict[tuple[str, int], dict[str, list[float]]]:  # fmt: skip
    """The scores by judge of each point, by series and number, that is expected over subsets of its series' pool."""
    opened: dict[Call, Pools] = {}
    scores: dict[tuple[str, int], dict[str, list[float]]] = {}
    for name in [name for name, series in part.series.items() if series.pool]:
        own = [(number, point) for series, number, point in points if series == name]
        largest = max((point for _, point in own), key=lambda point: point.candidates)
        call, verifier = largest.call, session.networks.verifier(largest.verifier, part.model)
        if call not in opened:
            source, home = trainings.located(call.model, session.cache), session.folder_of(call, part)
            opened[call] = Pools(call, source, home, session.networks, session.loading)
        judged = opened[call].judged(wanted, largest.candidates, part.judges, progress)
        pools = [np.array(_usable_rows(sample)) for sample in found[call, largest.cell]]
        aggregate = verifier.aggregate if isinstance(verifier, PoolVerifier) else None
        for number, point in own:
            each = [
                expected(pool, point.candidates, {judge: judged[judge][i] for judge in part.judges}, aggregate)
                for i, pool in enumerate(pools)
            ]
            scores[name, number] = {judge: _checked(judge, [one[judge] for one in each]) for judge in part.judges}
    return scores


def _renamed(progress: Progress, item: str, what: str, done: int, total: int) -> None:
    progress(f"{item}: {what}", done, total)


def _report(progress: Progress, what: str, cell: str, done: int, total: int, **figures: float) -> None:
    progress(f"{what}, {cell}", done, total, **figures)


def _pool_values(verifier: Verifier, sample: Mapping[str, Any]) -> list[float | None]:
    """One value for each candidate of a search, of an ensemble within its pool; None where it was dropped."""
    scores = torch.tensor(_usable_rows(sample), dtype=torch.float64)
    values = aggregate_pool(scores, verifier.aggregate) if isinstance(verifier, PoolVerifier) else scores[:, 0]
    return [value if math.isfinite(value) else None for value in values.tolist()]


def _usable_rows(sample: Mapping[str, Any]) -> list[list[float]]:
    """What the verifier said of each candidate of a search; -inf where it was dropped."""
    return [[-math.inf if score is None else float(score) for score in row] for row in sample["pool"]]


def _best(sample: Mapping[str, Any], judge: str) -> float | None:
    return sample["scores"].get(judge, {}).get("best")


def _categories(part: Part, conditions: Sequence[str]) -> list[str]:
    """As the file of prompts says, or the judge of the model's world; empty where neither knows."""
    known = categories(part.prompts)
    if (world := world_of(trainings.base_of(part.model))) is not None:
        for prompt in conditions:
            if not isinstance(prompt, ClassLabel):
                known.setdefault(prompt, world.category(prompt))
    return [known.get(prompt, "") for prompt in conditions]


def _checked(verifier: str, values: Sequence[float | None]) -> list[float]:
    usable = [value for value in values if value is not None and math.isfinite(value)]
    if failed := len(values) - len(usable):
        raise DiffscaleError(f"{verifier} could not score {failed} of {len(values)} pictures: see to it and run again.")
    return usable


def _copy(samples: Sequence[Mapping[str, Any]], home: Path, part: Part, folder: Path, name: str) -> list[str]:
    """Copy the pictures of the first repeat of the first prompts; their names."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    first = [sample for sample in samples if sample["repeat"] == 0][: part.strips]
    files = [f"{safe_name(name)}-{row}.png" for row in range(len(first))]
    for sample, file in zip(first, files, strict=True):
        shutil.copyfile(picture_of(sample, home), folder / "pictures" / file)
    return files
