"""Searches other than random, through the driver and its journal; what they found is kept."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.calls import Call, Slot
from diffscale.bench.papers.pool import finish
from diffscale.bench.papers.store import Store, packed, shape_of, unpacked
from diffscale.engine import noise
from diffscale.engine.driver import Task, run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.ledger import BudgetSpent
from diffscale.engine.results import Result
from diffscale.registry import parse
from diffscale.searches import SEARCHES
from diffscale.types import Environment, Evaluate, Gradient, Sampler, Search, State, Verifier

_ANYTIME: Final = ("zero_order", "first_order")
"""Searches that a larger budget only continues: their journals are shared by all budgets."""


@dataclass(frozen=True)
class Found:
    """What a search found: `picture` uint8 [3, H, W]; `nfe` and `flops` of the denoiser, final sampling included."""

    picture: Tensor
    nfe: int
    flops: float


class Searched:
    """Searches of one call with one verifier, in `folder`, which a change of either makes another."""

    def __init__(
        self, folder: Path, call: Call, verifier: str, verifier_id: str,
        open_sampler: Callable[[Call, Sequence[str]], Sampler],
    ) -> None:  # fmt: skip
        self.call, self._open = call, open_sampler
        self._id = f"{verifier} {verifier_id}"
        safe = "".join(c if c.isalnum() else "_" for c in verifier)
        self.folder = folder / call.id / f"{safe}-{verifier_id}"
        self.store = Store(self.folder / "found.sqlite")

    def find(
        self, slots: Sequence[Slot], search: str, budget: int, load: Callable[[], Verifier], final: Call | None = None,
        told: Callable[[int, float], None] | None = None, batch_size: int | None = None,
    ) -> list[Found]:  # fmt: skip
        """What `search` finds for every slot with `budget` NFE, and what it made of it by the call `final`.

        Raises the DiffscaleError of the first search that finds nothing.
        """
        names = [_name(search, budget, slot, final) for slot in slots]
        kept = [self._read(name) for name in names]
        missing = [i for i, found in enumerate(kept) if found is None]
        if missing:
            self._search([slots[i] for i in missing], [names[i] for i in missing], search, budget, load(), final, told,
                         batch_size)  # fmt: skip
            kept = [self._read(name) for name in names]
        return [found for found in kept if found is not None]

    def _search(
        self, slots: list[Slot], names: list[str], search: str, budget: int, verifier: Verifier, final: Call | None,
        told: Callable[[int, float], None] | None, batch_size: int | None,
    ) -> None:  # fmt: skip
        prompts = {slot.condition: slot.prompt for slot in slots}
        rows = {condition: row for row, condition in enumerate(prompts)}
        sampler = self._open(self.call, list(prompts.values()))
        algorithm, options = parse(search, "search", SEARCHES)
        starts: list[list[Tensor]] = [[] for _ in slots]
        root = noise.root(self.call.seed)
        again = final is not None
        made = partial(SEARCHES[algorithm], **options)
        tasks = [
            Task(
                partial(_watched, made, starts[i]) if again else made, rows[slot.condition],
                noise.fold(root, slot.prompt, slot.repeat), budget, _task(search, algorithm, budget, slot),
            )
            for i, slot in enumerate(slots)
        ]  # fmt: skip
        journal = Journal(self.folder / "journal.sqlite", {"call": self.call.id, "verifier": self._id})
        try:
            outcomes = run_searches(
                tasks, sampler, verifier, batch_size, journal=journal, progress=told, return_errors=True
            )
        finally:
            journal.close()
        failed = next((outcome for outcome in outcomes if isinstance(outcome, DiffscaleError)), None)
        if failed is not None:
            raise failed
        results = [outcome for outcome in outcomes if isinstance(outcome, Result)]
        pictures = [eight_bit(result.best.image) for result in results]
        more, flops = 0, 0.0
        if final is not None:
            if not all(starts):
                raise DiffscaleError(f"What {algorithm} finds has no noise to sample again: leave `final` out.")
            last = self._open(final, list(prompts.values()))
            best = torch.stack([starts[i][result.best.number] for i, result in enumerate(results)])
            before = last.forwards
            pictures = _again(last, best, torch.tensor([rows[slot.condition] for slot in slots]))
            more, flops = last.steps, (last.forwards - before) * last.flops_per_forward / len(slots)
        with self.store.db:
            self.store.db.executemany(
                "INSERT OR REPLACE INTO found VALUES (?, ?, ?, ?)",
                [
                    (name, shape_of(picture), packed(picture),
                     json.dumps({"nfe": result.ledger.nfe + more, "flops": result.ledger.flops + flops}))
                    for name, picture, result in zip(names, pictures, results, strict=True)
                ],
            )  # fmt: skip

    def _read(self, name: str) -> Found | None:
        query = "SELECT shape, picture, costs FROM found WHERE name = ?"
        row = self.store.db.execute(query, (name,)).fetchone()
        return None if row is None else Found(unpacked(row[0], row[1]), **json.loads(row[2]))


def anytime(search: str) -> bool:
    """Whether a larger budget only continues the search."""
    return search.split()[0] in _ANYTIME


def _name(search: str, budget: int, slot: Slot, final: Call | None) -> str:
    return f"{search} | {budget} | {'' if final is None else final.id} | {slot.name}"


def _task(search: str, algorithm: str, budget: int, slot: Slot) -> str:
    return f"{search} | {'' if anytime(algorithm) else budget} | {slot.name}"


@torch.no_grad()
def _again(sampler: Sampler, noises: Tensor, rows: Tensor, batch: int = 64) -> list[Tensor]:
    pictures: list[Tensor] = []
    for x, row in zip(noises.split(batch), rows.split(batch), strict=True):
        # Of the prior only the state's form is used: stochastic solvers take their keys from it.
        start = sampler.prior(torch.arange(len(x)), row)
        pictures += finish(sampler, State(x.to(start.x), 0, start.key, row))[0]
    return pictures


def _watched(search: Callable[[Environment], Search], starts: list[Tensor], env: Environment) -> Search:
    """`search`, with the noise of every candidate that it finishes kept in `starts`, by its number."""
    generator = search(env)
    answer: Any = None
    spent: BudgetSpent | None = None
    while True:
        try:
            request = generator.send(answer) if spent is None else generator.throw(spent)
        except StopIteration:
            return
        spent = None
        try:
            answer = yield request
        except BudgetSpent as refused:
            spent = refused
            continue
        if isinstance(request, Evaluate | Gradient) and request.state.step == 0:
            starts += list(request.state.x.detach().cpu())
