"""Runs every search x verifier x budget on every prompt, and appends a line for each finished one."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import parse_jsonl
from diffscale.api import make_sampler
from diffscale.bench.config import BenchConfig
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.leaderboard import candidate_value
from diffscale.engine.results import Candidate, Result
from diffscale.engine.scoring import safe_score
from diffscale.engine.task import Task, baseline_task
from diffscale.models.load import base_model, best_device
from diffscale.registry import parse
from diffscale.report.pictures import to_pil
from diffscale.searches import SEARCHES
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Verifier
from diffscale.verifiers import load as load_verifier
from diffscale.verifiers.heldout import heldout_scores


@dataclass(frozen=True)
class Cell:
    """One search with one verifier and one budget in NFE."""

    search: str
    verifier: str
    budget: int

    @property
    def name(self) -> str:
        return f"{self.search} | {self.verifier} | {self.budget}"


def run(
    settings: BenchConfig,
    prompts: list[str],
    folder: Path,
    told: Callable[[Cell, int, int], None] | None = None,
    only: Sequence[Cell] | None = None,
) -> list[dict[str, Any]]:
    """Run all cells that are not done and return all samples, one for each cell, prompt and repeat.

    `folder` holds `samples.jsonl`, a line for each finished search, `journal.sqlite`, from which a run that was killed
    goes on, and the best pictures. `told(cell, spent, budget)`: progress of a cell in NFE over all its prompts.
    `only`: these cells instead of all combinations.

    Raises DiffscaleError for settings that cannot be met; a search that finds nothing becomes a sample with `error`.
    """
    device = best_device(settings.device)
    for search in settings.search:
        parse(search, "search", SEARCHES)
    verifiers = {name: load_verifier(name, device=device, image_model=settings.model) for name in settings.verifier}
    _mend(folder / "samples.jsonl")
    done = {sample["name"]: sample for sample in read_samples(folder / "samples.jsonl")}
    chosen = cells(settings) if only is None else only
    slots = {cell: _slots(cell, prompts, settings.repeats, verifiers[cell.verifier]) for cell in chosen}
    # Opened even if all is done: it knows whether the folder is of this model and seed.
    journal = Journal(folder / "journal.sqlite", settings.shared())
    try:
        if any(slot.name not in done for each in slots.values() for slot in each):
            sampler = make_sampler(
                settings.model, prompts, steps=settings.steps, pipe_args=settings.call_args, loading=settings
            )
            first: dict[tuple[str, str, int], Candidate] = {}
            for cell in chosen:
                for sample in _run_cell(
                    cell, settings, prompts, slots[cell], sampler, verifiers, done, journal, folder, told, first
                ):
                    done[sample["name"]] = sample
    finally:
        journal.close()
    return [done[slot.name] for cell in chosen for slot in slots[cell]]


def cells(settings: BenchConfig) -> list[Cell]:
    """All combinations, budgets last."""
    return [Cell(s, v, b) for v in settings.verifier for s in settings.search for b in settings.budget]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples in a file, none if it is not there; raises DiffscaleError for a line that is none."""
    return parse_jsonl(path.read_text(encoding="utf-8"), path) if path.exists() else []


def _mend(path: Path) -> None:
    """Cut off a last line that was not written to its end; the journal has what it said."""
    if path.exists() and (text := path.read_bytes()) and not text.endswith(b"\n"):
        path.write_bytes(text[: text.rfind(b"\n") + 1])


@dataclass(frozen=True)
class _Slot:
    """One search of a cell: its prompt's row, its repeat, and the name that journal and samples know it by."""

    row: int
    repeat: int
    name: str


def _slots(cell: Cell, prompts: Sequence[str], repeats: int, verifier: Verifier) -> list[_Slot]:
    found: list[_Slot] = []
    before = hashlib.blake2b(digest_size=6)
    for row, prompt in enumerate(prompts):
        for repeat in range(repeats):
            name = f"{cell.name} | {repeat} | {prompt}"
            # What it finds depends on all slots before it, so another list of prompts makes it another search.
            after = f" | after {before.hexdigest()}" if isinstance(verifier, SetVerifier) else ""
            found.append(_Slot(row, repeat, name + after))
            before.update(name.encode() + b"\n")
    return found


def _run_cell(
    cell: Cell,
    settings: BenchConfig,
    prompts: list[str],
    slots: list[_Slot],
    sampler: Any,
    verifiers: dict[str, Verifier],
    done: dict[str, dict[str, Any]],
    journal: Journal,
    folder: Path,
    told: Callable[[Cell, int, int], None] | None,
    first: dict[tuple[str, str, int], Candidate],
) -> Iterator[dict[str, Any]]:
    algorithm, options = parse(cell.search, "search", SEARCHES)
    left = [slot for slot in slots if slot.name not in done]
    if not left:
        return
    verifier = verifiers[cell.verifier]
    if isinstance(verifier, SetVerifier):
        # Each depends on what was chosen before it; what is done costs nothing, the journal has it.
        left = slots
    root = noise.root(settings.seed)
    # The noise depends on prompt and repeat alone: all cells search from the same first sample, as paired tests need.
    tasks = [
        Task(
            partial(SEARCHES[algorithm], **options), slot.row, noise.fold(root, prompts[slot.row], slot.repeat),
            cell.budget, slot.name,
        )
        for slot in left
    ]  # fmt: skip
    _sample_plainly(cell, prompts, left, tasks, sampler, verifier, settings, journal, first)
    total = cell.budget * len(tasks)
    progress = None if told is None else lambda spent, best: told(cell, spent, total)
    outcomes = run_searches(
        tasks, sampler, verifier, settings.batch_size, journal=journal, progress=progress, return_errors=True
    )
    with (folder / "samples.jsonl").open("a", encoding="utf-8") as file:
        for slot, outcome in zip(left, outcomes, strict=True):
            name, row, repeat = slot.name, slot.row, slot.repeat
            if name in done:
                continue
            base = {"name": name, **asdict(cell), "prompt": prompts[row], "repeat": repeat}
            if isinstance(outcome, DiffscaleError):
                sample = base | {"error": str(outcome)}
            else:
                picture = _save(outcome, folder / "pictures" / _slug(cell.name), _picture(prompts[row], name))
                plainly = first.get((cell.verifier, prompts[row], repeat), outcome.baseline)
                if isinstance(verifier, PoolVerifier) and plainly.key == outcome.baseline.key:
                    plainly = outcome.baseline
                else:
                    plainly = replace(plainly, score=candidate_value(outcome.pool, plainly.components, verifier))
                sample = base | _sample(outcome, plainly, settings.model, sampler.prompts[row], verifiers)
                sample["image"] = str(picture.relative_to(folder))
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")
            file.flush()
            yield sample


def _sample_plainly(
    cell: Cell,
    prompts: list[str],
    left: list[_Slot],
    tasks: list[Task],
    sampler: Any,
    verifier: Verifier,
    settings: BenchConfig,
    journal: Journal,
    first: dict[tuple[str, str, int], Candidate],
) -> None:
    """Sample the first noises that no cell with this verifier has sampled yet, into `first`; not in any ledger."""
    keys = [(cell.verifier, prompts[slot.row], slot.repeat) for slot in left]
    # What is chosen before decides the score, so a SetVerifier's plain samples are of this list of slots alone.
    names = [
        slot.name if isinstance(verifier, SetVerifier) else " | ".join(map(str, key))
        for slot, key in zip(left, keys, strict=True)
    ]
    fresh = [
        (key, replace(baseline_task(task), budget=sampler.steps, name=f"{name} | plain"))
        for key, task, name in zip(keys, tasks, names, strict=True)
        if key not in first
    ]
    if fresh:
        outcomes = run_searches(
            [task for _, task in fresh], sampler, verifier, settings.batch_size, journal=journal, return_errors=True
        )
        for (key, _), outcome in zip(fresh, outcomes, strict=True):
            if isinstance(outcome, Result):
                first[key] = outcome.best


def _sample(
    result: Result, baseline: Candidate, model: str, prompt: str, verifiers: dict[str, Verifier]
) -> dict[str, Any]:
    images = {"best": result.best.image, "baseline": baseline.image}
    ledger = result.ledger
    return {
        "nfe": ledger.nfe,
        "network_forwards": ledger.network_forwards,
        "flops": ledger.flops,
        "decodes": ledger.decodes,
        "verifier_calls": ledger.verifier_calls,
        "verifier_flops": ledger.verifier_flops,
        "seconds": ledger.seconds,
        "candidates": result.candidates,
        "dropped": result.dropped,
        "key": result.best.key,
        "score": {"best": result.best.score, "baseline": baseline.score},
        "scores": {name: _scored(v, images, prompt) for name, v in verifiers.items() if not _relative(v)},
        "members": list(result.traces),
        "judge": heldout_scores(base_model(model), prompt, images),
        "trace": result.trace,
        "traces": result.traces,
    }


def _relative(verifier: Verifier) -> bool:
    """Whether it says nothing of a picture by itself."""
    return isinstance(verifier, PoolVerifier | NeedsIntermediateX0 | SetVerifier)


def _scored(verifier: Verifier, images: dict[str, Tensor], prompt: str) -> dict[str, float | None]:
    """What each verifier of the run says, also those that were not searched with; None where it cannot tell."""
    with torch.no_grad():
        told = {name: float(safe_score(verifier, image[None], [prompt])[0]) for name, image in images.items()}
    return {name: score if math.isfinite(score) else None for name, score in told.items()}


def _save(result: Result, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    to_pil(result.best.image).save(folder / name)
    return folder / name


def _picture(prompt: str, name: str) -> str:
    """A file name that another --limit, which numbers the prompts otherwise, gives to no other search."""
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{_slug(prompt)[:60]}-{digest}.png"


def _slug(text: str) -> str:
    return "".join(c if c.isalnum() or c in "=.-" else "_" for c in text.replace(" | ", "--"))
