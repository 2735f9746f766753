"""Runs an item and writes its raw numbers; what is done is not done again, what a changed recipe made is stale."""

import hashlib
import json
import shutil
from collections.abc import Container, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import write_json
from diffscale._util.fingerprints import json_digest
from diffscale._util.progress import Counter, Progress, silent
from diffscale.bench.papers import trainings
from diffscale.bench.papers.digests import shipped_verifiers, weights_digest
from diffscale.bench.papers.plan import Speeds, candidates, plan
from diffscale.bench.papers.points import Call, Models, Point, call_of, every_point, prompt_repeats
from diffscale.bench.papers.recipe import Part, Setting, of_shapes
from diffscale.bench.papers.samples import Samples
from diffscale.bench.papers.scores import Scores
from diffscale.bench.papers.sets import Sets
from diffscale.bench.series import PromptRepeat, rows_of, safe_name
from diffscale.models.load import best_device, world_of
from diffscale.models.options import LoadOptions
from diffscale.registry import plugins
from diffscale.report.pictures import to_pil
from diffscale.suites.prompts import categories
from diffscale.types import ClassLabel

FORMAT = 1
SETS = 2
"""Of metrics of all pictures together, and of how an oracle of them chooses."""
CACHE: Final = "cache"
"""Of an output folder: samples, scores and trainings that items share."""


class Session:
    """What the items of one output folder share: models, verifiers, samples, scores, speeds."""

    def __init__(self, folder: Path, loading: LoadOptions, batch_size: int | None = None) -> None:
        with explained(f"The folder {folder} cannot be made: choose another place ({{why}}).", OSError):
            folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.cache, self._batch_size = folder, folder / CACHE, batch_size
        self.models, device = Models(loading, self.cache), best_device(loading.device)
        self.scores = Scores(self.cache, device)
        self.speeds = Speeds(folder, self.models, self.scores)
        self._samples: dict[Call, Samples] = {}
        self._sets: dict[tuple[bool, str | None], Sets] = {}

    def samples(self, call: Call) -> Samples:
        if call not in self._samples:
            self._samples[call] = Samples(self.cache, call, self.models, self._batch_size)
        return self._samples[call]

    def sets(self, model: str, reference: str | None) -> Sets:
        key = of_shapes(model), reference
        if key not in self._sets:
            self._sets[key] = Sets.open(model, reference, self.scores.device)
        return self._sets[key]


def made_of(setting: Setting) -> str:
    """Digest of all that decides an item's numbers: its recipe as resolved, the prompts and the reference, the weights.

    What the Hub holds is taken to stay as it is. What a part leaves at its default does not count but for the dtype, so
    that options that are added later make nothing stale.
    """
    parts = {
        name: {**part.model_dump(exclude_defaults=True), "dtype": part.dtype} for name, part in setting.parts.items()
    }
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
    if source in plugins("suites"):
        return plugins("suites")[source]()
    path = Path(source).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""


def read(folder: Path, item: str) -> dict[str, Any] | None:
    """The raw numbers of an item, None where there are none."""
    path = folder / item / "raw.json"
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else None


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


def run(
    item: str, setting: Setting, session: Session, progress: Progress = silent, recording: Container[Call] = ()
) -> bool:
    """Run an item unless its numbers are there and up to date; whether it was run.

    `progress` is called with what is done, how much of it, and how much there is. `recording`: calls whose candidates
    are kept with predictions although this item needs none, because others will.
    """
    before, key, folder = read(session.folder, item), made_of(setting), session.folder / item
    if before is not None and before["made_of"] == key:
        return False
    logs = {}
    for name, training in setting.trainings.items():
        session.models.drop()
        finished = trainings.make(training, f"{item}: {name}", session.cache, progress)
        logs[name] = trainings.keep_log(finished, folder, name)
    parts = {name: _run_part(item, name, part, session, progress, recording) for name, part in setting.parts.items()}
    raw = {"item": item, "made_of": key, "parts": parts, **({"trainings": logs} if logs else {})}
    write_json(folder / "raw.json", raw, indent=1)
    return True


def _run_part(
    item: str, name: str, part: Part, session: Session, progress: Progress, recording: Container[Call]
) -> dict[str, Any]:
    wanted = prompt_repeats(part)
    needs = plan([Setting(view="table", parts={name: part})])
    for call, pool in needs.pools.items():
        bar = partial(progress, f"{item}: {call.model}")
        session.samples(call).make(candidates(pool), call in needs.recorded or call in recording, bar)
    rows: dict[str, list[dict[str, Any]]] = {series: [] for series in part.series}
    for series, number, point in every_point(part):
        pictures, nfe, flops = _find(point, wanted, session, partial(progress, f"{item}: {series}"))
        row = {"nfe": nfe, "flops": flops, "search_nfe": point.budget, "model": point.call.model}
        row |= _measured(part, point.call.model, pictures, wanted, session)
        if part.strips:
            row["pictures"] = _save(pictures, wanted, part, session.folder / item, f"{name}-{series}-{number}")
        rows[series].append(row)
    prompts, _ = rows_of(wanted)
    return {
        "model": part.model,
        "prompts": list(map(str, prompts)),
        "categories": _categories(part, prompts),
        "repeats": part.repeats,
        "series": rows,
        **({} if part.pairs is None else {"pairs": _pairs(part, wanted, session)}),
    }


def _categories(part: Part, conditions: Sequence[str]) -> list[str]:
    """As the file of prompts says, or the judge of the model's world; empty where neither knows."""
    known = categories(part.prompts)
    if (world := world_of(trainings.base_of(part.model))) is not None:
        for prompt in conditions:
            if not isinstance(prompt, ClassLabel):
                known.setdefault(prompt, world.category(prompt))
    return [known.get(prompt, "") for prompt in conditions]


def _find(
    point: Point, wanted: Sequence[PromptRepeat], session: Session, progress: Counter
) -> tuple[Tensor, float, float]:
    """The pictures of a point, uint8 [wanted, 3, H, W], and the NFE and FLOPs that one of them cost on average."""
    samples, model = session.samples(point.call), point.call.model
    if not point.pooled:
        load = partial(session.scores.verifier, point.verifier, model)
        winners = samples.search(point, session.scores.id(point.verifier, model), load, wanted, progress)
        pictures, nfe, flops = zip(*winners, strict=True)
        return torch.stack(pictures), sum(nfe) / len(wanted), sum(flops) / len(wanted)
    n = point.candidates if point.searching else 1
    chosen = session.scores.choose(samples, wanted, n, point.verifier) if point.searching else [0] * len(wanted)
    made = [(point.call, n)]
    if point.final is not None:
        samples = session.samples(point.final)
        samples.make(zip(wanted, chosen, strict=True))
        made.append((point.final, 1))
    best = [samples.pictures(each, [number]) for each, number in zip(wanted, chosen, strict=True)]
    costs = [(count * call.nfe, session.speeds.of_call(call, wanted[0].prompt).flops_per_nfe) for call, count in made]
    return torch.cat(best), sum(nfe for nfe, _ in costs), sum(nfe * each for nfe, each in costs)


def _measured(
    part: Part, model: str, pictures: Tensor, wanted: Sequence[PromptRepeat], session: Session
) -> dict[str, Any]:
    """`scores` of each judge, one for each picture, and `sets`."""
    scores = {}
    for judge in part.judges:
        shown = zip(wanted, pictures, strict=True)
        values = [session.scores.of_pictures(judge, model, each.prompt, picture[None]) for each, picture in shown]
        scores[judge] = _checked(judge, np.concatenate(values))
    sets = session.sets(model, part.reference).measure(part.sets, pictures, wanted) if part.sets else {}
    return {"scores": scores, "sets": sets}


def _checked(verifier: str, values: np.ndarray[Any, Any]) -> list[float]:
    if failed := len(values) - int(np.isfinite(values).sum()):
        raise DiffscaleError(f"{verifier} could not score {failed} of {len(values)} pictures: see to it and run again.")
    return values.tolist()


def _pairs(part: Part, wanted: Sequence[PromptRepeat], session: Session) -> dict[str, list[list[float]]]:
    """Scores of each verifier, [wanted][candidates]."""
    assert part.pairs is not None
    call, numbers = call_of(part), range(part.pairs.candidates)
    samples = session.samples(call)

    def scored(text: str, each: PromptRepeat) -> list[float]:
        early = partial(samples.pictures, each, numbers, recorded=True)
        pictures = samples.pictures(each, numbers)
        return _checked(text, session.scores.of_pictures(text, call.model, each.prompt, pictures, early))

    return {text: [scored(text, each) for each in wanted] for text in part.pairs.of}


def _save(pictures: Tensor, wanted: Sequence[PromptRepeat], part: Part, folder: Path, name: str) -> list[str]:
    """The pictures of the first repeat of the first prompts, as files; their names."""
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    first = [i for i, each in enumerate(wanted) if each.repeat == 0][: part.strips]
    files = [f"{safe_name(name)}-{row}.png" for row in range(len(first))]
    for i, file in zip(first, files, strict=True):
        to_pil(pictures[i].float() / 255).save(folder / "pictures" / file)
    return files
