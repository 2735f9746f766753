"""Runs every search x verifier x budget on every prompt, and appends a line for each finished one."""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import parse_jsonl
from diffscale._util.progress import Counter, Progress, silent
from diffscale.api import make_sampler
from diffscale.bench.config import BenchConfig
from diffscale.bench.series import Cell, PromptRepeat, costs_of, rows_of, safe_name, tasks_of
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
from diffscale.types import NeedsIntermediateX0, PoolVerifier, Sampler, SetVerifier, Verifier
from diffscale.verifiers import load as load_verifier
from diffscale.verifiers.heldout import heldout_scores


def run(
    settings: BenchConfig,
    prompts: list[str],
    folder: Path,
    progress: Progress = silent,
    only: Sequence[Cell] | None = None,
) -> list[dict[str, Any]]:
    """Run all cells that are not done and return all samples, one for each cell, prompt and repeat.

    `folder` holds `samples.jsonl`, a line for each finished search, `journal.sqlite`, from which a run that was killed
    goes on, and the best pictures. `progress` is called with a cell's name and its NFE over all its prompts. `only`:
    these cells instead of all combinations.

    Raises DiffscaleError for settings that cannot be met; a search that finds nothing becomes a sample with `error`.
    """
    for search in settings.search:
        parse(search, "search", SEARCHES)
    bench = _Bench(settings, prompts, folder, progress)
    chosen = cells(settings) if only is None else only
    # Opened even if all is done: it knows whether the folder is of this model and seed.
    with closing(Journal(folder / "journal.sqlite", settings.shared())) as journal:
        for cell in chosen:
            bench.run_cell(cell, journal)
    return [bench.done[name] for cell in chosen for name in bench.names(cell)]


def cells(settings: BenchConfig) -> list[Cell]:
    """All combinations, budgets last."""
    return [Cell(s, v, b) for v in settings.verifier for s in settings.search for b in settings.budget]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples in a file, none if it is not there; raises DiffscaleError for a line that is none."""
    return parse_jsonl(path.read_text(encoding="utf-8"), path) if path.exists() else []


class _Bench:
    """What the cells of a run share. `done`: finished samples by name."""

    def __init__(self, settings: BenchConfig, prompts: list[str], folder: Path, progress: Progress) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        device = best_device(settings.device)
        self.verifiers = {
            name: load_verifier(name, device=device, image_model=settings.model) for name in settings.verifier
        }
        self.file = folder / "samples.jsonl"
        # A last line that was not written to its end is cut off; the journal has what it said.
        if self.file.exists() and (text := self.file.read_bytes()) and not text.endswith(b"\n"):
            self.file.write_bytes(text[: text.rfind(b"\n") + 1])
        self.done = {sample["name"]: sample for sample in read_samples(self.file)}
        self.wanted = [PromptRepeat(prompt, repeat) for prompt in prompts for repeat in range(settings.repeats)]
        self.prompts, self.rows = rows_of(self.wanted)
        self.first: dict[tuple[str, PromptRepeat], Candidate] = {}

    @cached_property
    def sampler(self) -> Sampler:
        """The model, which is opened when the first search needs it."""
        settings = self.settings
        return make_sampler(
            settings.model, self.prompts, steps=settings.steps, pipe_args=settings.call_args, loading=settings
        )

    def names(self, cell: Cell) -> list[str]:
        """What journal and samples know the searches of a cell by."""
        names = [f"{cell.name} | {each.name}" for each in self.wanted]
        if not isinstance(self.verifiers[cell.verifier], SetVerifier):
            return names
        # What each finds depends on all before it, so another list of prompts makes it another search.
        before, chained = hashlib.blake2b(digest_size=6), []
        for name in names:
            chained.append(f"{name} | after {before.hexdigest()}")
            before.update(name.encode() + b"\n")
        return chained

    def run_cell(self, cell: Cell, journal: Journal) -> None:
        """Run the searches of a cell that are not done, and append their samples to the file."""
        names, verifier = self.names(cell), self.verifiers[cell.verifier]
        left = [i for i, name in enumerate(names) if name not in self.done]
        if not left:
            return
        if isinstance(verifier, SetVerifier):
            # Each depends on what was chosen before it; what is done costs nothing, the journal has it.
            left = list(range(len(names)))
        wanted, rows = [self.wanted[i] for i in left], [self.rows[i] for i in left]
        # The noise depends on prompt and repeat alone: all cells search from the same first sample, as paired tests
        # need.
        tasks = tasks_of(cell.search, cell.budget, wanted, rows, self.settings.seed, [names[i] for i in left])
        self._sample_plainly(cell, wanted, tasks, journal)
        outcomes = self._search(cell, tasks, journal, partial(self.progress, cell.name))
        for each, task, outcome in zip(wanted, tasks, outcomes, strict=True):
            if task.name not in self.done:
                self.done[task.name] = self._sample(cell, each, task, outcome)
                with self.file.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(self.done[task.name], ensure_ascii=False) + "\n")

    def _search(self, cell: Cell, tasks: list[Task], journal: Journal, progress: Counter = silent) -> list[Any]:
        """What the searches find, or their DiffscaleErrors."""
        verifier, batch_size = self.verifiers[cell.verifier], self.settings.batch_size
        return run_searches(
            tasks, self.sampler, verifier, batch_size, journal=journal, progress=progress, return_errors=True
        )

    def _sample_plainly(
        self, cell: Cell, wanted: Sequence[PromptRepeat], tasks: Sequence[Task], journal: Journal
    ) -> None:
        """Sample the first noises that no cell with this verifier has sampled yet, into `first`; not in any ledger."""
        fresh = {}
        for each, task in zip(wanted, tasks, strict=True):
            name = f"{cell.verifier} | {each.condition} | {each.repeat}"
            if isinstance(self.verifiers[cell.verifier], SetVerifier):
                # What is chosen before decides the score, so its plain samples are of this list of prompts alone.
                name = task.name
            if (cell.verifier, each) not in self.first:
                fresh[each] = replace(baseline_task(task), budget=self.sampler.steps, name=f"{name} | plain")
        for each, outcome in zip(fresh, self._search(cell, list(fresh.values()), journal), strict=True):
            if isinstance(outcome, Result):
                self.first[cell.verifier, each] = outcome.best

    def _sample(self, cell: Cell, each: PromptRepeat, task: Task, outcome: Any) -> dict[str, Any]:
        """The line of a finished search, whose best picture is saved."""
        sample = {"name": task.name, **asdict(cell), "prompt": each.prompt, "repeat": each.repeat}
        if isinstance(outcome, DiffscaleError):
            return sample | {"error": str(outcome)}
        verifier = self.verifiers[cell.verifier]
        baseline = self.first.get((cell.verifier, each), outcome.baseline)
        if isinstance(verifier, PoolVerifier) and baseline.key == outcome.baseline.key:
            baseline = outcome.baseline
        else:
            baseline = replace(baseline, score=candidate_value(outcome.pool, baseline.components, verifier))
        # A file name that another --limit, which numbers the prompts otherwise, gives to no other search.
        digest = hashlib.blake2b(task.name.encode(), digest_size=4).hexdigest()
        picture = Path("pictures", safe_name(cell.name), f"{safe_name(each.prompt)[:60]}-{digest}.png")
        (self.folder / picture).parent.mkdir(parents=True, exist_ok=True)
        to_pil(outcome.best.image).save(self.folder / picture)
        images, prompt = (
            {"best": outcome.best.image, "baseline": baseline.image},
            self.sampler.prompts[task.prompt_index],
        )
        scores = {name: _scores(v, images, prompt) for name, v in self.verifiers.items() if not _relative(v)}
        return {
            **sample,
            **costs_of(outcome),
            "seconds": outcome.ledger.seconds,
            "key": outcome.best.key,
            "score": {"best": outcome.best.score, "baseline": baseline.score},
            "scores": scores,
            "members": list(outcome.traces),
            "judge": heldout_scores(base_model(self.settings.model), prompt, images),
            "trace": outcome.trace,
            "traces": outcome.traces,
            "image": str(picture),
        }


def _relative(verifier: Verifier) -> bool:
    """Whether it says nothing of a picture by itself."""
    return isinstance(verifier, PoolVerifier | NeedsIntermediateX0 | SetVerifier)


@torch.no_grad()
def _scores(verifier: Verifier, images: dict[str, Tensor], prompt: str) -> dict[str, float | None]:
    """What a verifier of the run says, also one that was not searched with; None where it cannot tell."""
    scores = {name: float(safe_score(verifier, image[None], [prompt])[0]) for name, image in images.items()}
    return {name: score if math.isfinite(score) else None for name, score in scores.items()}
