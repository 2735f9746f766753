"""What a model, called in one way, has sampled: a pool of candidates, and what searches found; kept on disk.

Candidate i of a prompt's repeat is the i-th of a random search with that seed (`environment.SearchEnvironment`), a
function of seed, prompt, repeat and i alone. So all random searches share the candidates: the best of n for every n, by
every verifier, costs one sampling.
"""

import zlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
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
CREATE TABLE IF NOT EXISTS candidates (name TEXT, number INTEGER, shape TEXT, picture BLOB, recorded BLOB,
    PRIMARY KEY (name, number));
CREATE TABLE IF NOT EXISTS results (name TEXT PRIMARY KEY, shape TEXT, picture BLOB, nfe INTEGER, flops REAL);
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
        query = "SELECT name, number FROM candidates" + " WHERE recorded IS NOT NULL" * record
        kept = set(self._store.read(query))
        missing = [each for each in dict.fromkeys(wanted) if (each[0].name, each[1]) not in kept]
        if not missing:
            return 0
        prompts, rows = rows_of([each for each, _ in missing])
        sampler = self._models.sampler(self.call, prompts)

        def sample(part: slice) -> None:
            keys = torch.tensor([candidate_key(self.call.seed, *each) for each in missing[part]])
            pictures, recorded = finish(sampler, sampler.prior(keys, torch.tensor(rows[part])), record)
            self._store.write(
                "INSERT OR REPLACE INTO candidates VALUES (?, ?, ?, ?, ?)",
                [
                    (each.name, number, *_packed(picture), None if early is None else _packed(early)[1])
                    for (each, number), picture, early in zip(
                        missing[part], pictures, [None] * len(pictures) if recorded is None else recorded, strict=True
                    )
                ],
            )

        for part, _ in MicroBatch(self._batch_size).map(sample, len(missing), sampler.steps):
            progress(part.stop, len(missing))
        return len(missing)

    def pictures(self, wanted: PromptRepeat, numbers: Sequence[int], recorded: bool = False) -> Tensor:
        """Candidates uint8 [n, 3, H, W], or their recorded predictions; raises KeyError for one that was not made."""
        rows = self._store.read(
            f"SELECT number, shape, {'recorded' if recorded else 'picture'} FROM candidates "
            "WHERE name = ? AND number BETWEEN ? AND ?",
            (wanted.name, min(numbers), max(numbers)),
        )
        blobs = {number: (shape, blob) for number, shape, blob in rows if blob is not None}
        return torch.stack([_unpacked(*blobs[number]) for number in numbers])

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
            fresh = [(names[i], *_packed(picture), *costs) for i, (picture, *costs) in zip(missing, found, strict=True)]
            self._store.write("INSERT OR REPLACE INTO results VALUES (?, ?, ?, ?, ?)", fresh)
        return [each for name in names if (each := self._winner(name)) is not None]

    def _winner(self, name: str) -> Winner | None:
        rows = self._store.read("SELECT shape, picture, nfe, flops FROM results WHERE name = ?", (name,))
        return Winner(_unpacked(*rows[0][:2]), *rows[0][2:]) if rows else None

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


def finish(sampler: Sampler, start: State, record: bool = False) -> tuple[Tensor, Tensor | None]:
    """Pictures uint8 [B, 3, H, W] of noises, and of their predictions at `LEVEL`."""
    state = sampler.run(start, None, LEVEL if record else None)
    return eight_bit(sampler.decode(state.x)), None if state.recorded is None else eight_bit(
        sampler.decode(state.recorded)
    )


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
    request = next(generator, None)
    while request is not None:
        try:
            answer = yield request
        except BudgetSpent as refused:
            resume: Any = partial(generator.throw, refused)
        else:
            if isinstance(request, Evaluate | Gradient) and request.state.step == 0:
                starts += list(request.state.x.detach().cpu())
            resume = partial(generator.send, answer)
        try:
            request = resume()
        except StopIteration:
            return


def _packed(picture: Tensor) -> tuple[str, bytes]:
    """Shape and compressed bytes of a uint8 picture."""
    return " ".join(map(str, picture.shape)), zlib.compress(picture.contiguous().numpy().tobytes(), 1)


def _unpacked(shape: str, blob: bytes) -> Tensor:
    values = np.frombuffer(zlib.decompress(blob), np.uint8).reshape([int(side) for side in shape.split()])
    return torch.from_numpy(values.copy())
