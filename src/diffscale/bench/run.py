"""Runs every search x verifier x budget on every prompt, and appends a line for each finished one."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import holds_others, inside, locked, parse_jsonl, read_text
from diffscale._util.fingerprints import array_digest
from diffscale._util.pixels import as_float, pixels, read_picture
from diffscale._util.progress import Counter, Progress, silent
from diffscale.api import make_sampler
from diffscale.api.wordings import check_rewords, wordings_of
from diffscale.api.workers import Crew, ModelRecipe, worker_options
from diffscale.bench.config import BenchConfig, ModelConfig, check_names
from diffscale.bench.hacking import spread
from diffscale.bench.networks import Networks
from diffscale.bench.origin import PASSING, Origin, save_picture
from diffscale.bench.series import (
    Cell,
    PromptRepeat,
    condition_of,
    costs_of,
    rows_of,
    safe_name,
    tasks_of,
    wordings_in,
)
from diffscale.bench.shared_samples import SharedSampler
from diffscale.engine import noise
from diffscale.engine.allocation import ALLOCATIONS, check_shareable
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal, recorded_settings, recorded_sources
from diffscale.engine.leaderboard import aggregate_pool
from diffscale.engine.pool import Executor
from diffscale.engine.results import Candidate, Result, among
from diffscale.engine.scoring import check_chooser, recording_of, safe_score
from diffscale.engine.task import Task, baseline_task
from diffscale.models.dtypes import DtypeChoice
from diffscale.models.load import base_model, best_device, settle_dtype, warn_of_slow_dtype, world_of
from diffscale.models.options import LoadOptions
from diffscale.registry import PLAIN_SEARCH
from diffscale.registry.arguments import made
from diffscale.registry.sources import sources
from diffscale.report.pictures import to_pil
from diffscale.types import (
    ClassLabel,
    Environment,
    Evaluate,
    NeedsIntermediateX0,
    PoolVerifier,
    Sampler,
    Search,
    SetVerifier,
    Wording,
)
from diffscale.verifiers.function import FunctionVerifier
from diffscale.verifiers.heldout import can_judge

_JOURNAL: Final = "journal.sqlite"
SAMPLES: Final = "samples.jsonl"
"""In the folder of a bench, a line for each search that ended."""


# What the lines of SAMPLES have at least, and what those of searches that found a picture have too.
_OF_ALL: Final = {"name", "search", "verifier", "budget", "prompt", "repeat"}
_OF_FOUND: Final = {"nfe", "flops", "network_forwards", "seconds", "score", "scores", "trace", "dropped", "image"}


def run(
    settings: BenchConfig,
    prompts: Sequence[str],
    folder: Path,
    progress: Progress = silent,
    only: Sequence[Cell] | None = None,
    *,
    judges: Sequence[str] = (),
    source: str | None = None,
    networks: Networks | None = None,
    share: bool = False,
) -> list[dict[str, Any]]:
    """Run all cells that are not done and return all samples, one for each cell, prompt and repeat.

    `folder` holds `samples.jsonl`, a line for each finished search, `journal.sqlite`, from which a run that was killed
    goes on, and the best pictures. `progress` is called with a cell's name and its NFE over all its prompts. `only`:
    these cells instead of all combinations. `judges`: verifiers that score what is found besides those of `settings`.
    `source`: the folder of the model that `settings` only name. `networks`: those that are loaded already. `share`:
    keep the samples of random searches, so that those with other verifiers sample nothing again; the seconds of these
    are then without their denoising.

    Raises DiffscaleError for settings that cannot be met, and for a folder that cannot be written to or that another
    process writes to; a search that finds nothing becomes a sample with `error`.
    """
    check_names(settings.search, [], settings.allocation)
    settings.drafting.check(settings)
    chosen = cells(settings) if only is None else only
    rewords = any(cell.declares("rewords") for cell in chosen)
    check_rewords(settings.wordings, rewords)
    settings = settle(settings, folder)
    where = worker_options(settings.device, settings.workers, settings.verifier_workers)
    # Opened even if all is done: it knows whether the folder is of this model and seed.
    with locked(folder), Crew(where) as crew:
        if networks is None:
            networks = Networks("cpu", crew) if not where.is_inline else Networks(best_device(settings.device))
        bench = _Bench(settings, prompts, folder, judges, source or settings.model, networks, share)
        written = sources(*settings.search, *settings.verifiers)
        with closing(Journal(folder / _JOURNAL, settings.shared(), written)) as journal:
            for cell in chosen:
                if cell.allocation:
                    verifier = bench.verifiers[cell.verifier]
                    check_shareable(cell.search, cell.declares("anytime"), verifier, bench.chooser)
            if rewords:
                others = wordings_of(settings.wordings, bench.source)
                bench.others = others.find(bench.prompts, recorded_sources(journal.path), journal.add_sources)
            for cell in chosen:
                bench.run_cell(cell, journal, partial(progress, cell.name))
    return [bench.done[name] for cell in chosen for name in bench.names(cell)]


def check_folder(folder: Path) -> None:
    """Raise DiffscaleError for a folder that holds something else than a bench."""
    ours = (SAMPLES, _JOURNAL, ".lock")
    if holds_others(folder, ours):
        raise DiffscaleError(f"{folder} exists and is not a bench of diffscale: choose another --output.")


def settle(settings: BenchConfig, folder: Path, say: Callable[[DtypeChoice], None] = warn_of_slow_dtype) -> BenchConfig:
    """`settings` with the dtype that is used in the place of `auto`: that of the results in `folder`, if there are any.

    `say` is told what was chosen. Raises DiffscaleError where that is to be read from the model and it cannot be.
    """
    return settle_dtype(settings.model, settings, recorded_settings(folder / _JOURNAL).get("dtype"), say)


def cells(settings: BenchConfig) -> list[Cell]:
    """All combinations, budgets last."""
    shared = settings.allocation or ""
    return [Cell(s, v, b, 0, shared) for v in settings.verifier for s in settings.search for b in settings.budget]


def read_samples(path: Path) -> list[dict[str, Any]]:
    """The samples in a file, none if it is not there; raises DiffscaleError for a line that is none.

    Of several of one name, the last one counts.
    """
    lines = parse_jsonl(read_text(path), path) if path.exists() else []
    for number, line in enumerate(lines, 1):
        if missing := (_OF_ALL if "error" in line else _OF_ALL | _OF_FOUND) - line.keys():
            raise DiffscaleError(
                f"Sample {number} of {path} has no {min(missing)}: remove its line, and it is made again from the "
                "journal."
            )
    return list({sample["name"]: sample for sample in lines}.values())


class _Bench:
    """What the cells of a run share. `done`: finished samples by name."""

    def __init__(
        self, settings: BenchConfig, prompts: Sequence[str], folder: Path, judges: Sequence[str], source: str,
        networks: Networks, share: bool,
    ) -> None:  # fmt: skip
        self.settings, self.folder, self.source, self.share = settings, folder, source, share
        self.networks = networks
        self.verifiers = {name: self.networks.verifier(name, source) for name in (*settings.verifier, *judges)}
        self.chooser = None if settings.choose is None else self.networks.verifier(settings.choose, source)
        for name in settings.verifier:
            check_chooser(self.verifiers[name], self.chooser)
        self.verifiers[""] = FunctionVerifier("none", _no_scores)
        # What says something of a picture by itself.
        self.absolute = {
            name: verifier
            for name, verifier in self.verifiers.items()
            if name and not isinstance(verifier, PoolVerifier | NeedsIntermediateX0 | SetVerifier)
        }
        self.file = folder / SAMPLES
        # A last line that was not written to its end is cut off; the journal has what it said.
        if self.file.exists() and (text := self.file.read_bytes()) and not text.endswith(b"\n"):
            os.truncate(self.file, text.rfind(b"\n") + 1)
        # Shared samples cost nothing, so what could not be scored is tried again: an endpoint may have been down. So is
        # what failed by code that users wrote, and that they may have mended.
        kept = (s for s in read_samples(self.file) if not (share and ("error" in s or s["dropped"])))
        kept = (s for s in kept if not ("error" in s and sources(s["search"], s["verifier"], settings.choose or "")))
        self.done = {sample["name"]: sample for sample in kept}
        self.wanted = [PromptRepeat(prompt, repeat) for prompt in prompts for repeat in range(settings.repeats)]
        self.prompts, self.rows = rows_of(self.wanted)
        self.others: list[Wording] = []
        self.world = world_of(source)
        self.first: dict[tuple[str, PromptRepeat], Candidate] = {}
        self._scored: dict[tuple[str, str], float] = {}

    @cached_property
    def sampler(self) -> Sampler:
        """The model, which is opened when the first search needs it."""
        return self._served("", self.settings.steps)[0]

    def _served(self, verifier: str, steps: int | None) -> tuple[Sampler, Executor | None]:
        """The sampler of so many `steps`, and what computes searches by `verifier` with it, None for this process."""
        settings, crew = self.settings, self.networks.crew
        asked: dict[str, Any] = {
            "prompts": [*self.prompts, *self.others],
            "steps": steps,
            "pipe_args": settings.call_args,
            "drafting": settings.drafting,
        }
        if crew is None:
            return make_sampler(self.source, loading=settings, load=self.networks.pipeline, **asked), None
        own, chooser = self.verifiers[verifier], self.chooser
        recipe = ModelRecipe(
            self.source, LoadOptions(**settings.asked()), make_sampler, asked, verifier or own, settings.choose,
            base_model(self.source), recording_of(own, chooser),
        )  # fmt: skip
        return crew.serve(recipe, settings.batch_size)

    @cached_property
    def shared_sampler(self) -> Sampler:
        """`sampler` for random searches in this process."""
        return SharedSampler(self.sampler, self.folder / "samples.sqlite") if self.share else self.sampler

    @cached_property
    def mixed(self) -> list[int]:
        """The order in which a SetVerifier chooses: repeat after repeat, prompts by chance.

        Class after class, the first ones would have to stand for all classes, and each of many candidates that is
        chosen would be the one that looks least like its own.
        """
        root = noise.root(self.settings.seed)
        keys = [(each.repeat, noise.fold(root, each.condition, each.repeat, "order")) for each in self.wanted]
        return sorted(range(len(keys)), key=keys.__getitem__)

    def names(self, cell: Cell) -> list[str]:
        """What samples know the searches of a cell by."""
        names = [f"{cell.name} | {each.name}" for each in self.wanted]
        if cell.allocation:  # what each is given depends on all others
            among = hashlib.blake2b("\n".join(names).encode(), digest_size=6).hexdigest()
            return [f"{name} | among {among}" for name in names]
        if not isinstance(self.verifiers[cell.verifier], SetVerifier):
            return names
        # What each finds depends on all before it, so other prompts before it make it another search.
        before, chained = hashlib.blake2b(digest_size=6), list(names)
        for i in self.mixed:
            chained[i] = f"{names[i]} | after {before.hexdigest()}"
            before.update(names[i].encode() + b"\n")
        return chained

    def run_cell(self, cell: Cell, journal: Journal, progress: Counter = silent) -> None:
        """Run the searches of a cell that are not done, and append their samples to the file."""
        names, in_set = self.names(cell), isinstance(self.verifiers[cell.verifier], SetVerifier)
        left = [i for i, name in enumerate(names) if name not in self.done]
        if left:
            # Each depends on what was chosen before it; what is done costs nothing, the journal has it.
            left = self.mixed if in_set else list(range(len(names))) if cell.allocation else left
            wanted, rows = [self.wanted[i] for i in left], [self.rows[i] for i in left]
            # A larger budget goes on from the replies of a smaller one.
            paid = Cell(cell.search, cell.verifier, 0 if cell.declares("anytime") else cell.budget).name
            known = [names[i] if in_set else f"{paid} | {each.name}" for i, each in zip(left, wanted, strict=True)]
            # The noise depends on prompt and repeat alone: all cells search from the same first sample, as paired tests
            # need.
            budget = cell.budget if cell.verifier else self.sampler.steps
            device = self.networks.device
            tasks = tasks_of(cell.search, budget, wanted, rows, self.settings.seed, known, device)
            outcomes = self._search(cell, tasks, journal, progress)
            self._sample_plainly(cell, wanted, tasks, journal)
            if cell.final_steps:
                outcomes = self._sample_again(cell, tasks, outcomes, journal)
            for i, task, outcome in zip(left, tasks, outcomes, strict=True):
                if self.share and (isinstance(outcome, DiffscaleError) or outcome.dropped):
                    journal.forget(task.name)
                if names[i] not in self.done or cell.allocation:  # all or none: they share what the others left
                    self._write(self._sample(cell, names[i], self.wanted[i], task, outcome))
        for name, row in zip(names, self.rows, strict=True):
            self._score_by_others(self.done[name], row)

    def _search(self, cell: Cell, tasks: Sequence[Task], journal: Journal, progress: Counter = silent) -> list[Any]:
        """What the searches find, or their DiffscaleErrors."""
        if not tasks:
            return []
        if self.networks.crew is not None:
            sampler, executor = self._served(cell.verifier, self.settings.steps)
        else:
            sampler, executor = self.shared_sampler if cell.declares("independent") else self.sampler, None
        return run_searches(
            tasks, sampler, self.verifiers[cell.verifier], self.settings.batch_size, journal=journal, progress=progress,
            return_errors=True, choose=self.chooser, executor=executor,
            allocation=made(cell.allocation or None, "allocation", ALLOCATIONS),
        )  # fmt: skip

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
        plain = replace(cell, search=PLAIN_SEARCH, allocation="")
        for each, outcome in zip(fresh, self._search(plain, list(fresh.values()), journal), strict=True):
            if isinstance(outcome, Result):
                self.first[cell.verifier, each] = outcome.best

    def _sample_again(
        self, cell: Cell, tasks: Sequence[Task], outcomes: Sequence[Any], journal: Journal
    ) -> list[Result | DiffscaleError]:
        """`outcomes`, with the pictures that the noises found give in `final_steps`, and what these cost too."""
        merged, usual = list(outcomes), self.sampler
        sampler, executor = self._served("", cell.final_steps)
        again = {}
        # Some schedulers scale their noise by a number that depends on the steps.
        key, row = torch.tensor([noise.root(self.settings.seed)]), torch.tensor([0])
        scale = float(sampler.prior(key, row).x.norm() / usual.prior(key, row).x.norm())
        scale = 1.0 if abs(scale - 1) < 1e-6 else scale
        for i, (task, outcome) in enumerate(zip(tasks, outcomes, strict=True)):
            if isinstance(outcome, Result) and outcome.best.noise is None:
                merged[i] = DiffscaleError(
                    f"What {cell.search} finds has no noise to sample again: leave the final steps out."
                )
            elif isinstance(outcome, Result):
                best, name = outcome.best, f"{task.name} | {cell.name} | again"
                found = partial(_sample_noise, best.noise, best.key, best.wording, scale)
                again[i] = replace(task, search=found, budget=sampler.steps, name=name)
        sampled = run_searches(
            list(again.values()), sampler, self.verifiers[""], self.settings.batch_size, journal=journal,
            executor=executor,
        )  # fmt: skip
        for i, each in zip(again, sampled, strict=True):
            best = replace(each.best, score=outcomes[i].best.score, value=outcomes[i].best.value)
            merged[i] = replace(outcomes[i], best=best, best_candidates=[best], ledger=outcomes[i].ledger + each.ledger)
        return merged

    def _sample(self, cell: Cell, name: str, each: PromptRepeat, task: Task, outcome: Any) -> dict[str, Any]:
        """The line of a finished search, whose best picture is saved."""
        sample = {"name": name, **cell.fields, "prompt": each.prompt, "repeat": each.repeat}
        if isinstance(outcome, DiffscaleError):
            return sample | {"error": str(outcome)}
        verifier, chooser = self.verifiers[cell.verifier], self.chooser
        baseline = self.first.get((cell.verifier, each), outcome.baseline)
        in_pool = any(isinstance(each, PoolVerifier) for each in (verifier, chooser))
        if in_pool and baseline.key == outcome.baseline.key:
            baseline = outcome.baseline
        else:
            baseline = among(outcome, baseline, verifier, chooser)
        picture = Path("pictures", safe_name(cell.name), _file_of(each, name))
        with self._explained():
            self._save(picture, outcome.best, cell, each)
            plain = {} if self.share else self._save_plain(baseline, cell, each)
        images = {"best": outcome.best.image, "baseline": baseline.image}
        prompt = self.sampler.prompts[task.prompt_index]
        scores = {
            judge: {
                end: score for end, image in images.items() if (score := self._score(judge, image, prompt)) is not None
            }
            for judge in self.absolute
        }
        pool = outcome.pool
        values = aggregate_pool(pool, verifier.aggregate) if isinstance(verifier, PoolVerifier) else pool[:, 0]
        chosen: dict[str, Any] = {}
        if chooser is not None:
            chosen = {
                "choose": self.settings.choose,
                "choose_members": list(chooser.components) if isinstance(chooser, PoolVerifier) else [],
                "value": {"best": outcome.best.value, "baseline": baseline.value},
            }
        return {
            **sample,
            **costs_of(outcome),
            "seconds": outcome.ledger.seconds,
            "key": outcome.best.key,
            "score": {"best": outcome.best.score, "baseline": baseline.score},
            "spread": spread([value for value in values.tolist() if math.isfinite(value)]),
            **chosen,
            "scores": scores,
            "members": list(outcome.traces),
            "trace": outcome.trace,
            "traces": outcome.traces,
            "pool": [[value if math.isfinite(value) else None for value in row] for row in outcome.pool.tolist()],
            "image": str(picture),
            **plain,
            **wordings_in(outcome),
        }

    def _save(self, picture: Path, found: Candidate, cell: Cell, each: PromptRepeat) -> None:
        """Write what was found for `each` to `picture` in the folder, with its origin unless it has none."""
        stated = self.settings.model_dump(
            mode="json", include={*ModelConfig.model_fields, "choose", "wordings"} - PASSING, exclude_none=True
        )
        prompt = each.prompt
        stated |= {
            "prompt": str(prompt.class_id) if isinstance(prompt, ClassLabel) else prompt,
            "search": cell.search, "verifier": cell.verifier, "budget": cell.budget,
        }  # fmt: skip
        image = to_pil(found.image)
        if cell.final_steps:  # a noise that was found, sampled again in other steps
            (self.folder / picture).parent.mkdir(parents=True, exist_ok=True)
            image.save(self.folder / picture)
        else:
            save_picture(image, self.folder / picture, Origin.of(stated, found, found.wording, each.repeat))

    def _save_plain(self, baseline: Candidate, cell: Cell, each: PromptRepeat) -> dict[str, str]:
        """Write the plain sample of `each`, which all cells share; what the lines of samples say of it."""
        picture = Path("plain", _file_of(each, each.name))
        if not (self.folder / picture).exists():
            self._save(picture, baseline, cell, each)
        return {"plain_image": str(picture)}

    def _score_by_others(self, sample: dict[str, Any], row: int) -> None:
        """Let verifiers that have not scored the picture of a sample do so, if it has one."""
        missing = [name for name in self.absolute if "best" not in sample.get("scores", {}).get(name, {})]
        if "error" in sample or not missing:
            return
        image, scores = read_found(sample, self.folder), dict(sample["scores"])
        for name in missing:
            # The model is not opened for what the judge of its world cannot read.
            if self._is_unreadable(name, image, sample["prompt"]):
                continue
            score = self._score(name, image, self.sampler.prompts[row])
            scores |= {} if score is None else {name: {**scores.get(name, {}), "best": score}}
        if scores != sample["scores"]:
            self._write({**sample, "scores": scores})

    def _is_unreadable(self, verifier: str, image: Tensor, prompt: str) -> bool:
        """Whether `verifier` is the judge of the model's world, and cannot read this."""
        world = self.world
        return world is not None and verifier == world.judge_name and not can_judge(world, prompt, image)

    @torch.no_grad()
    def _score(self, verifier: str, image: Tensor, prompt: str) -> float | None:
        """What a verifier of the run says, also one that was not searched with; None where it cannot tell."""
        if self._is_unreadable(verifier, image, prompt):
            return None
        key = verifier, array_digest(image, condition_of(prompt))
        if key not in self._scored:
            score = float(safe_score(self.absolute[verifier], image[None], [prompt])[0])
            if not math.isfinite(score):
                return None
            self._scored[key] = score
        return self._scored[key]

    def _write(self, sample: dict[str, Any]) -> None:
        """Append the line of a sample; of several of one name the last one counts."""
        self.done[sample["name"]] = sample
        with self._explained(), self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(sample, ensure_ascii=False) + "\n")

    def _explained(self) -> AbstractContextManager[None]:
        """Have errors of the disk told."""
        return explained(
            f"{self.folder} cannot be written to ({{why}}): make room and run the same command again, it goes on from "
            "here.",
            OSError,
        )


def _file_of(each: PromptRepeat, name: str) -> str:
    """The file of a picture of `each`, which is known by `name`.

    Another --limit, which numbers the prompts otherwise, gives no other search that file.
    """
    digest = hashlib.blake2b(name.encode(), digest_size=4).hexdigest()
    return f"{safe_name(each.prompt)[:60]}-{digest}.png"


def picture_of(sample: Mapping[str, Any], folder: Path) -> Path:
    """The file of what a sample found, in the `folder` of its bench; raises DiffscaleError for a place outside."""
    return inside(folder, sample["image"], folder / SAMPLES)


def read_found(sample: Mapping[str, Any], folder: Path) -> Tensor:
    """The picture of a sample, float32 [3, H, W] in [0, 1]; raises DiffscaleError where it cannot be read."""
    path = picture_of(sample, folder)
    return as_float(
        read_picture(path, pixels, f"{path} cannot be read ({{why}}): remove {folder / SAMPLES}, and it is made again.")
    )


def _no_scores(images: Tensor, prompts: list[str]) -> list[float]:
    return [0.0] * len(prompts)


def _sample_noise(noise: Any, key: int, wording: str, scale: float, env: Environment) -> Search:
    start = env.reword(env.prior(1), [env.wordings.index(wording)])
    yield Evaluate(replace(start, x=scale * noise[None].to(start.x), key=torch.tensor([key])))
