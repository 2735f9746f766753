"""The driver: runs many searches at once in full micro-batches, charges, and keeps the best."""

import math
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffscale.batching import MicroBatch, out_of_memory
from diffscale.environment import SearchEnvironment
from diffscale.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError
from diffscale.ledger import BudgetSpent, Ledger, price
from diffscale.types import (
    Candidate,
    Environment,
    Observer,
    Predict,
    Request,
    Result,
    Run,
    Sampler,
    Score,
    Search,
    State,
    Verifier,
    concat,
)


class DroppedCandidate(UserWarning):
    """A candidate could not be scored and takes no further part."""


@dataclass(frozen=True)
class Task:
    """One search to run: `search` makes the generator, `row` is its prompt, `budget` is in NFE.

    All randomness descends from `key` (`noise.fold(noise.root(seed), prompt, repeat)`), so a task
    gives the same result alone or among others.
    """

    search: Callable[[Environment], Search]
    row: int
    key: int
    budget: int


def drive(
    tasks: Sequence[Task],
    sampler: Sampler,
    verifier: Verifier,
    batch_size: int | None = None,
    observers: Sequence[Observer] = (),
) -> list[Result]:
    """Run all `tasks` to their end, their requests batched together; results in the same order.

    `batch_size`: most rows at once (None: found by itself); halved whenever memory runs out. Raises
    BudgetTooSmall if a budget does not pay for one sample (before anything runs) or a search
    finishes none, and AllCandidatesFailed if a search got no finite score.
    """
    return _Driver(tasks, sampler, verifier, batch_size, observers).drive()


@dataclass
class _Running:
    """A search on its way: its generator, its account and the best so far."""

    index: int
    task: Task
    ledger: Ledger
    generator: Search
    pending: Request | None = None
    over: bool = False
    best: Candidate | None = None
    baseline: Candidate | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    finished_nfe: int = 0
    dropped: int = 0

    def advance(self, reply: Any, sampler: Sampler) -> None:
        """Hand over `reply` and take the next request that can be paid for, or end the search."""
        try:
            request = self.generator.send(reply)
            while True:
                try:
                    self.ledger.charge(price(request, sampler))
                    break
                except BudgetSpent as spent:
                    request = self.generator.throw(spent)
            if not len(request.state):
                name = type(request).__name__
                raise DiffscaleError(f"A search asked for {name} of no rows; let it end instead of asking.")
            self.pending = request
        except (StopIteration, BudgetSpent):
            self.pending, self.over = None, True

    def finish(self, state: State, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        """Let the finished candidates of `state` compete; copies only those that lead."""
        for at, score in enumerate(scores.tolist()):
            if not math.isfinite(score) or (self.best and score <= self.best.score):
                continue
            candidate = Candidate(
                image=images[at].detach().float().cpu().clone(),
                latents=state.x[at].detach().cpu().clone(),
                key=int(state.key[at]),
                score=score,
                nfe=nfe[at],
            )
            self.baseline = self.baseline or candidate
            self.best = candidate
            self.trace.append((candidate.nfe, score))

    def result(self, steps: int) -> Result:
        if self.best is None or self.baseline is None:
            if self.dropped:
                raise AllCandidatesFailed(
                    f"None of the {self.dropped} candidates of search {self.index} got a finite "
                    "score; see the warnings above and mend the verifier or the model."
                )
            raise BudgetTooSmall(
                f"Search {self.index} spent {self.ledger.nfe} NFE and finished no sample; one "
                f"costs {steps} NFE, so give it a larger budget."
            )
        if self.trace[-1][0] < self.ledger.nfe:
            self.trace.append((self.ledger.nfe, self.best.score))
        return Result(self.best, self.baseline, self.trace, self.ledger, self.dropped)


@dataclass(frozen=True)
class _Group:
    """Requests of several searches that run as one: `sizes[i]` rows belong to `members[i]`."""

    members: list[_Running]
    sizes: list[int]
    state: State

    def shares(self, part: slice) -> Iterator[tuple[_Running, int, int]]:
        """(search, its first row, its end) of the rows in `part`, numbered within the group."""
        start = 0
        for member, size in zip(self.members, self.sizes, strict=True):
            low, high = max(start, part.start), min(start + size, part.stop)
            if low < high:
                yield member, low, high
            start += size


class _Driver:
    def __init__(
        self,
        tasks: Sequence[Task],
        sampler: Sampler,
        verifier: Verifier,
        batch_size: int | None,
        observers: Sequence[Observer],
    ) -> None:
        self.sampler, self.verifier, self.observers = sampler, verifier, observers
        self.denoising, self.scoring = MicroBatch(batch_size), MicroBatch(batch_size)
        self.running: list[_Running] = []
        for index, task in enumerate(tasks):
            if task.budget < sampler.steps:
                raise BudgetTooSmall(
                    f"A budget of {task.budget} NFE does not pay for one sample; one costs "
                    f"{sampler.steps} NFE, so give at least that."
                )
            ledger = Ledger(task.budget)
            environment = SearchEnvironment(sampler, task.row, task.key, ledger, self._chunk)
            self.running.append(_Running(index, task, ledger, task.search(environment)))

    def drive(self) -> list[Result]:
        for search in self.running:
            search.advance(None, self.sampler)
        while groups := self._groups():
            for group, request in groups:
                if isinstance(request, Score):
                    self._score(group)
                else:
                    self._denoise(group, request)
        return [search.result(self.sampler.steps) for search in self.running]

    def _chunk(self) -> int:
        """A fair share of the micro-batch, so that all live searches together fill one."""
        live = sum(not search.over for search in self.running)
        return max(1, self.denoising.size // live)

    def _groups(self) -> list[tuple[_Group, Request]]:
        alike: dict[Hashable, list[_Running]] = {}
        for search in self.running:
            if (request := search.pending) is not None:
                kind = type(request), getattr(request, "to", None), request.state.kin
                alike.setdefault(kind, []).append(search)
        groups = []
        for members in alike.values():
            states = [search.pending.state for search in members if search.pending]
            request = members[0].pending
            assert request is not None
            groups.append((_Group(members, [len(s) for s in states], concat(states)), request))
        return groups

    def _denoise(self, group: _Group, request: Run | Predict) -> None:
        def work(part: slice) -> State:
            state = group.state[part]
            if isinstance(request, Run):
                return self.sampler.run(state, request.to)
            return state if state.x0 is not None else self.sampler.predict(state)

        # `request` is the first member's; a row costs the same in all requests of a group.
        evaluations = price(request, self.sampler) // len(request.state)
        done = []
        forwards = self.sampler.forwards
        began = time.perf_counter()
        for part, state in self.denoising.map(work, len(group.state), evaluations):
            _wait(state.x)
            rows = self.sampler.forwards - forwards
            self._book(group, part, "denoise", time.perf_counter() - began, rows)
            done.append(state)
            forwards, began = self.sampler.forwards, time.perf_counter()
        whole = concat(done)
        for member, low, high in group.shares(slice(0, len(whole))):
            member.advance(whole[low:high], self.sampler)

    def _score(self, group: _Group) -> None:
        state = group.state
        final = state.step == self.sampler.steps
        latents = state.x if final else state.x0
        if latents is None:
            raise DiffscaleError(
                f"A state at step {state.step} of {self.sampler.steps} has no picture to score; "
                "the search must yield Predict first."
            )

        def work(part: slice) -> tuple[Tensor, Tensor]:
            began = time.perf_counter()
            images = self.sampler.decode(latents[part])
            _wait(images)
            decoded = time.perf_counter()
            prompts = [self.sampler.prompts[row] for row in state.row[part].tolist()]
            scores = self._judge(images, prompts)
            self._book(group, part, "decode", decoded - began)
            self._book(group, part, "verify", time.perf_counter() - decoded)
            return images, scores

        replies = torch.empty(len(state), dtype=torch.float64)
        nfe = self._nfe_of_rows(group)
        for part, (images, scores) in self.scoring.map(work, len(state)):
            replies[part] = scores
            for member, low, high in group.shares(part):
                mine, pictures = replies[low:high], images[low - part.start : high - part.start]
                member.ledger.decodes += high - low
                member.ledger.verifier_calls += high - low
                member.dropped += int(mine.isinf().sum())
                if final:
                    spent = nfe[low:high]
                    member.finish(state[low:high], mine, pictures, spent)
                    for observe in self.observers:
                        observe(member.index, state.key[low:high], mine, pictures, spent)
        for member, low, high in group.shares(slice(0, len(state))):
            if final:
                member.finished_nfe = member.ledger.nfe
            member.advance(replies[low:high].clone(), self.sampler)

    def _nfe_of_rows(self, group: _Group) -> list[int]:
        """What each row's search had spent when the row was done: the NFE since its last finished
        candidates, dealt out evenly, so that traces do not depend on the chunk."""
        spent = []
        for member, size in zip(group.members, group.sizes, strict=True):
            since = member.ledger.nfe - member.finished_nfe
            spent += [member.finished_nfe + since * (i + 1) // size for i in range(size)]
        return spent

    def _judge(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores float64 [b] on the CPU; -inf, with a warning, for what cannot be scored."""
        try:
            return self._checked(self.verifier(images, prompts), prompts)
        except DiffscaleError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            if len(images) == 1:
                self._warn(f"raised {type(error).__name__}: {error}", prompts[0])
                return torch.full((1,), -math.inf, dtype=torch.float64)
        # One of the batch made the verifier raise: find out which, and keep the others.
        alone = [self._judge(images[i : i + 1], [prompt]) for i, prompt in enumerate(prompts)]
        return torch.cat(alone)

    def _checked(self, raw: Tensor, prompts: list[str]) -> Tensor:
        if tuple(raw.shape) not in ((len(prompts),), (len(prompts), 1)):
            raise DiffscaleError(
                f"Verifier {self.verifier.name!r} must return one score a picture, shape "
                f"({len(prompts)},), but returned shape {tuple(raw.shape)}."
            )
        # To the CPU first: not every device has float64.
        scores = raw.detach().cpu().double().reshape(-1).clone()
        for at in (~scores.isfinite()).nonzero().flatten().tolist():
            self._warn(f"gave {scores[at].item()}", prompts[at])
            scores[at] = -math.inf
        return scores

    def _warn(self, what: str, prompt: str) -> None:
        text = f"Dropped a candidate of {prompt!r}: verifier {self.verifier.name!r} {what}."
        warnings.warn(text, DroppedCandidate, stacklevel=2)

    def _book(self, group: _Group, part: slice, kind: str, seconds: float, forwards: int = 0) -> None:
        """Share out what a micro-batch took among its searches, by rows."""
        rows = part.stop - part.start
        for member, low, high in group.shares(part):
            # Differences of rounded totals, so that the shares add up to what was counted.
            mine = forwards * (high - part.start) // rows - forwards * (low - part.start) // rows
            member.ledger.seconds[kind] += seconds * (high - low) / rows
            member.ledger.network_forwards += mine
            member.ledger.flops += mine * self.sampler.flops_per_forward


def _wait(tensor: Tensor) -> None:
    """CUDA runs behind Python's back; seconds are only true after waiting for it."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
