"""What a model, called in one way, has sampled: a pool of candidates, and what searches found; kept on disk.

Candidate i of a prompt's repeat is the i-th of a random search with that seed (`environment.SearchEnvironment`), a
function of seed, prompt, repeat and i alone. So all random searches share the candidates: the best of n for every n, by
every verifier, costs one sampling.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final, NamedTuple

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale._util.progress import Counter, silent
from diffscale._util.store import SqliteStore
from diffscale.bench.papers.points import Call, Models, Point
from diffscale.bench.series import PromptRepeat, rows_of, safe_name, tasks_of
from diffscale.engine import noise
from diffscale.engine.batching import MicroBatch
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.ledger import BudgetSpent
from diffscale.types import Environment, Evaluate, Gradient, Sampler, Search, State, Verifier

LEVEL: Final = 0.4
"""Noise level of the x0-predictions that self-supervised verifiers compare with."""
_TABLES: Final = """
CREATE TABLE IF NOT EXISTS pictures (name TEXT, number INTEGER, recorded INTEGER, picture BLOB,
    PRIMARY KEY (name, number, recorded));
CREATE TABLE IF NOT EXISTS winners (name TEXT PRIMARY KEY, picture BLOB, nfe INTEGER, flops REAL);
"""


class Winner(NamedTuple):
    """What a search found: `picture` uint8 [3, H, W]; `nfe` and `flops` of the denoiser, final sampling included."""

    picture: Tensor
    nfe: float
    flops: float


class Samples:
    """All samples of `call`, in `folder`; `models` is asked only where something is missing."""

    def __init__(self, folder: Path, call: Call, models: Models, batch_size: int | None = None) -> None:
        self.call, self._models, self._batch_size = call, models, batch_size
        self._cache, self._folder = folder, folder / call.id
        self._store = open_store(self._folder / "samples.sqlite", _TABLES)

    @torch.no_grad()
    def make(
        self, wanted: Iterable[tuple[PromptRepeat, int]], record: bool = False,
        progress: Counter = silent,
    ) -> int:  # fmt: skip
        """Sample the candidates `wanted` that are missing, with their predictions at `LEVEL` if `record`; how many.

        `progress(done, missing)` is called after every micro-batch.
        """
        kept = set(self._store.read("SELECT name, number FROM pictures WHERE recorded = ?", (record,)))
        missing = [each for each in dict.fromkeys(wanted) if (each[0].name, each[1]) not in kept]
        if not missing:
            return 0
        prompts, rows = rows_of([each for each, _ in missing])
        sampler = self._models.sampler(self.call, prompts)

        def sample(part: slice) -> None:
            keys = torch.tensor([candidate_key(self.call.seed, *each) for each in missing[part]])
            made = finish(sampler, sampler.prior(keys, torch.tensor(rows[part])), record)
            for recorded, pictures in enumerate(made):
                fresh = zip(missing[part], pictures, strict=True)
                values = [(each.name, number, recorded, _packed(picture)) for (each, number), picture in fresh]
                self._store.write("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?)", values)

        for part, _ in MicroBatch(self._batch_size).map(sample, len(missing), sampler.steps):
            progress(part.stop, len(missing))
        return len(missing)

    def pictures(self, wanted: PromptRepeat, numbers: Sequence[int], recorded: bool = False) -> Tensor:
        """Candidates uint8 [n, 3, H, W], or their recorded predictions; raises KeyError for one that was not made."""
        query = "SELECT number, picture FROM pictures WHERE name = ? AND recorded = ? AND number BETWEEN ? AND ?"
        blobs = dict(self._store.read(query, (wanted.name, recorded, min(numbers), max(numbers))))
        return torch.stack([_unpacked(blobs[number]) for number in numbers])

    def search(
        self, point: Point, verifier_id: str, load: Callable[[], Verifier], wanted: Sequence[PromptRepeat],
        progress: Counter = silent,
    ) -> list[Winner]:  # fmt: skip
        """What the search of `point` finds for all that is `wanted`, and what its `final` call made of it.

        `load` gives the verifier, which `verifier_id` says the weights of. Raises the DiffscaleError of the first
        search that finds nothing.
        """
        verifier = f"{point.verifier} {verifier_id}"
        final = "" if point.final is None else point.final.id
        names = [f"{verifier} | {point.search} | {point.budget} | {final} | {each.name}" for each in wanted]
        missing = [i for i, name in enumerate(names) if self._winner(name) is None]
        if missing:
            path = self._folder / f"{safe_name(point.verifier)}-{verifier_id}.sqlite"
            with closing(Journal(path, {"call": self.call.id, "verifier": verifier})) as journal:
                found = self._search(point, load(), [wanted[i] for i in missing], journal, progress)
            fresh = [(names[i], _packed(picture), *costs) for i, (picture, *costs) in zip(missing, found, strict=True)]
            self._store.write("INSERT OR REPLACE INTO winners VALUES (?, ?, ?, ?)", fresh)
        return [each for name in names if (each := self._winner(name)) is not None]

    def _winner(self, name: str) -> Winner | None:
        rows = self._store.read("SELECT picture, nfe, flops FROM winners WHERE name = ?", (name,))
        return Winner(_unpacked(rows[0][0]), *rows[0][1:]) if rows else None

    def _search(
        self, point: Point, verifier: Verifier, wanted: Sequence[PromptRepeat], journal: Journal,
        progress: Counter,
    ) -> list[Winner]:  # fmt: skip
        prompts, rows = rows_of(wanted)
        sampler = self._models.sampler(self.call, prompts)
        budget = "" if point.anytime else point.budget
        names = [f"{point.search} | {budget} | {each.name}" for each in wanted]
        tasks = tasks_of(point.search, point.budget, wanted, rows, self.call.seed, names)
        starts: list[list[Tensor]] = [[] for _ in wanted]
        if point.final is not None:
            watched = [partial(_watched, task.search, kept) for task, kept in zip(tasks, starts, strict=True)]
            tasks = [replace(task, search=search) for task, search in zip(tasks, watched, strict=True)]
        results = run_searches(tasks, sampler, verifier, self._batch_size, journal=journal, progress=progress)
        found = [Winner(eight_bit(each.best.image), each.ledger.nfe, each.ledger.flops) for each in results]
        if point.final is None:
            return found
        if not all(starts):
            name = point.search.split()[0]
            raise DiffscaleError(f"What {name} finds has no noise to sample again: leave `final` out.")
        noises = torch.stack([kept[each.best.number] for kept, each in zip(starts, results, strict=True)])
        last = self._models.sampler(point.final, prompts)
        before = last.forwards
        pictures = _sampled(last, noises, torch.tensor(rows))
        flops = (last.forwards - before) * last.flops_per_forward / len(found)
        return [
            Winner(picture, each.nfe + last.steps, each.flops + flops)
            for picture, each in zip(pictures, found, strict=True)
        ]


def open_store(path: Path, tables: str) -> SqliteStore:
    """A file of samples or scores that can be made again."""
    advice = "remove it, and what it held is made again"
    return SqliteStore(
        path, tables, name="The file", unreadable=advice, unwritable="make room and run the same command again"
    )


def candidate_key(seed: int, wanted: PromptRepeat, number: int) -> int:
    """The key of a candidate, as `task.Task` and its environment fold it."""
    return noise.fold(wanted.key(seed), "candidate", number)


def finish(sampler: Sampler, start: State, record: bool = False) -> list[Tensor]:
    """Pictures uint8 [B, 3, H, W] of noises and, if `record`, of their predictions at `LEVEL`."""
    state = sampler.run(start, None, LEVEL if record else None)
    return [eight_bit(sampler.decode(x)) for x in (state.x, state.recorded) if x is not None]


@torch.no_grad()
def _sampled(sampler: Sampler, noises: Tensor, rows: Tensor, batch: int = 64) -> Tensor:
    """The samples uint8 [n, 3, H, W] of `noises` for the prompts in `rows`."""
    pictures = []
    for x, row in zip(noises.split(batch), rows.split(batch), strict=True):
        # Of the prior only the state's form is used: stochastic solvers take their keys from it.
        start = sampler.prior(torch.arange(len(x)), row)
        pictures.append(finish(sampler, State(x.to(start.x), 0, start.key, row))[0])
    return torch.cat(pictures)


def _watched(search: Callable[[Environment], Search], starts: list[Tensor], env: Environment) -> Search:
    """`search`, with the noise of every candidate that it finishes kept in `starts`, by its number."""
    generator = search(env)
    with suppress(StopIteration):
        request = next(generator)
        while True:
            try:
                answer = yield request
            except BudgetSpent as refused:
                request = generator.throw(refused)
                continue
            if isinstance(request, Evaluate | Gradient) and request.state.step == 0:
                starts += list(request.state.x.detach().cpu())
            request = generator.send(answer)


def _packed(picture: Tensor) -> bytes:
    return zlib.compress(save_tensors({"picture": picture.contiguous()}), 1)


def _unpacked(blob: bytes) -> Tensor:
    return load_tensors(zlib.decompress(blob))["picture"]
