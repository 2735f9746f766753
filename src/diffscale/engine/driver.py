"""The driver: runs many searches at once in full micro-batches, charges, journals, and keeps the best."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from diffscale._util.errors import BudgetTooSmall, DiffscaleError, Unsuited
from diffscale.engine.batching import MicroBatch
from diffscale.engine.environment import SearchEnvironment
from diffscale.engine.flops import count_flops
from diffscale.engine.journal import Journal, Reply
from diffscale.engine.ledger import Ledger, price
from diffscale.engine.results import Observer, Result
from diffscale.engine.scoring import safe_score, scored, strip, usable
from diffscale.engine.search_run import Piece, SearchRun, shares, tensors_of
from diffscale.types import (
    Environment,
    Evaluate,
    Gradient,
    NeedsIntermediateX0,
    PoolVerifier,
    Request,
    Run,
    Sampler,
    Score,
    Search,
    SetVerifier,
    Solve,
    State,
    Verifier,
    concat,
)

_CHUNK = 64  # rows that all searches together are told to ask for, unless the micro-batch is given


@dataclass(frozen=True)
class Task:
    """One search to run: `search` makes the generator, `prompt_index` says which of the sampler's prompts it is
    for, `budget` is in NFE.

    All randomness descends from `key` (`noise.fold(noise.root(seed), prompt, repeat)`), so a task gives the same result
    alone or among others. `name` is what a journal knows it by; without one it is its number.
    """

    search: Callable[[Environment], Search]
    prompt_index: int
    key: int
    budget: int
    name: str = ""


def plain(task: Task) -> Task:
    """One sample of the first noise of `task`'s key: by it all searches with that key are measured."""
    return replace(task, search=_one_sample, name=f"{task.name} | plain")


def _one_sample(env: Environment) -> Search:
    yield Evaluate(env.prior(1))


def run_searches(
    tasks: Sequence[Task],
    sampler: Sampler,
    verifier: Verifier,
    batch_size: int | None = None,
    observers: Sequence[Observer] = (),
    *,
    gallery: int = 0,
    journal: Journal | None = None,
    progress: Callable[[int, float], None] | None = None,
    return_errors: bool = False,
) -> list[Any]:
    """Run all `tasks` to their end, their requests batched together; returns their Results in the same order.

    `batch_size`: most rows at once (None: found by itself); halved whenever memory runs out. `gallery`: how many of a
    search's best candidates come back as thumbnails. `journal`: replies are taken from there and written there.
    `progress`: called with the NFE computed so far and the best score, over all tasks. `return_errors`: a search that
    found nothing gives its DiffscaleError in the place of its Result, and none is raised.

    Raises BudgetTooSmall if a budget does not pay for one sample (before anything runs) or a search finishes none,
    AllCandidatesFailed if a search got no finite score, and Unsuited if it asked for what the verifier cannot give; all
    three only when all other searches are done.
    """
    driver = _Driver(sampler, verifier, batch_size, progress)
    components = tuple(verifier.components) if isinstance(verifier, PoolVerifier) else ()
    aggregate = verifier.aggregate if isinstance(verifier, PoolVerifier) else None
    for index, task in enumerate(tasks):
        if task.budget < sampler.steps:
            raise BudgetTooSmall(
                f"A budget of {task.budget} NFE does not pay for one sample; one costs {sampler.steps} NFE, so give at "
                "least that."
            )
        name = task.name or str(index)
        # Fixed for the whole search, so that it asks for the same rows when it is resumed, or among others.
        chunk = max(1, (batch_size or _CHUNK) // (1 if isinstance(verifier, SetVerifier) else len(tasks)))
        if journal is not None:
            chunk = journal.chunk(name, chunk)
        ledger = Ledger(task.budget)
        generator = task.search(SearchEnvironment(sampler, task.prompt_index, task.key, ledger, chunk, aggregate))
        driver.searches.append(
            SearchRun(
                index, task.prompt_index, name, sampler, generator, ledger, tuple(observers), gallery, journal,
                components, aggregate, driver.record,
            )
        )  # fmt: skip
    driver.drive()
    outcomes: list[Result | DiffscaleError] = []
    for search in driver.searches:
        try:
            outcomes.append(search.result())
        except DiffscaleError as error:
            if not return_errors:
                raise
            outcomes.append(error)
    return outcomes


@dataclass
class _Done:
    """What one micro-batch gave and took: tensors by rows, pictures and latents of finished candidates."""

    tensors: dict[str, Tensor]
    seconds: dict[str, float] = field(default_factory=dict)
    forwards: int = 0
    decodes: int = 0  # a row
    verifier_flops: float = 0.0
    images: Tensor | None = None
    latents: Tensor | None = None


@dataclass
class _Driver:
    sampler: Sampler
    verifier: Verifier
    batch_size: int | None
    progress: Callable[[int, float], None] | None
    searches: list[SearchRun] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.booked = self.sampler.forwards
        self.record = self.verifier.record_level if isinstance(self.verifier, NeedsIntermediateX0) else None
        self.batches = {kind: MicroBatch(self.batch_size) for kind in ("denoise", "score", "gradient")}

    def drive(self) -> None:
        if not isinstance(self.verifier, SetVerifier):
            self._together(self.searches)
            return
        self.verifier.begin()
        for search in self.searches:
            self._together([search])
            if search.leaderboard.best() is not None:
                picture = search.best_picture()["image"].float() / 255
                self.verifier.choose(picture, self.sampler.prompts[search.prompt_index])

    def _together(self, searches: Sequence[SearchRun]) -> None:
        for search in searches:
            search.begin()
        while groups := self._groups(searches):
            for members, request in groups:
                self._serve(members, request)

    def _groups(self, searches: Sequence[SearchRun]) -> list[tuple[list[SearchRun], Request]]:
        """Searches whose requests run together, with the first one's request."""
        alike: dict[Hashable, list[SearchRun]] = {}
        for search in searches:
            if (request := search.request) is not None:
                asked = getattr(request, "to", None), getattr(request, "level", None), getattr(request, "steps", None)
                alike.setdefault((type(request), asked, request.state.batch_key), []).append(search)
        return [(members, members[0].request) for members in alike.values() if members[0].request is not None]

    def _serve(self, members: list[SearchRun], request: Request) -> None:
        """Compute all missing rows of the members' requests, micro-batch after micro-batch."""
        pieces = [Piece(s, low, high) for s in members for low, high in s.missing]
        group = concat([p.search.request.state[p.low : p.high] for p in pieces if p.search.request])
        kind = {Score: "score", Gradient: "gradient"}.get(type(request), "denoise")
        # A row costs the same in all requests of a group.
        evaluations = price(request, self.sampler) // len(request.state)
        work = partial(self._attempt, request, group, pieces)
        for part, done in self.batches[kind].map(work, len(group), evaluations or kind == "score"):
            for piece, rows in shares(pieces, part):
                if piece.search.error is not None:
                    continue
                if isinstance(done, Unsuited):
                    piece.search.fail(done)
                    continue
                reply = Reply(piece.low, piece.high, {name: t[rows] for name, t in done.tensors.items()}, {})
                reply.costs.update(self._costs(request, done, rows, part.stop - part.start))
                piece.search.absorb(reply, *(None if t is None else t[rows] for t in (done.images, done.latents)))
            if self.progress is not None:
                bests = [best[1] for search in self.searches if (best := search.leaderboard.best())]
                self.progress(sum(search.spent for search in self.searches), max(bests, default=-math.inf))

    def _attempt(self, request: Request, group: State, pieces: list[Piece], part: slice) -> _Done | Unsuited:
        """As `_compute`, or why the verifier does not suit the searches with rows in `part`: theirs alone to fail."""
        failed = [piece.search.error for piece, _ in shares(pieces, part)]
        if all(isinstance(error, Unsuited) for error in failed):
            return cast(Unsuited, failed[0])
        try:
            return self._compute(request, group, part)
        except Unsuited as error:
            self.booked = self.sampler.forwards  # no other search is to pay for these
            return error

    def _compute(self, request: Request, group: State, part: slice) -> _Done:
        """One micro-batch of any request."""
        clock = _Clock()
        state = group[part]
        if isinstance(request, Gradient):
            done = self._differentiate(state, clock)
        elif isinstance(request, Score):
            done = self._score(state, clock)
        else:
            after = self._denoise(request, state)
            clock.lap("denoise", after.x)
            done = self._score(after, clock) if isinstance(request, Evaluate) else _Done(tensors_of(request, after))
        # Counted from the last micro-batch that went well: rows lost to a lack of memory did run.
        done.seconds, done.forwards = clock.seconds, self.sampler.forwards - self.booked
        self.booked = self.sampler.forwards
        return done

    def _denoise(self, request: Request, state: State) -> State:
        match request:
            case Run(_, to):
                return self.sampler.run(state, to, self.record)
            case Evaluate():
                return self.sampler.run(state, None, self.record)
            case Solve(_, level, steps):
                return self.sampler.solve(state, level, steps, self.record)
            case _:
                return self.sampler.predict(state)

    def _score(self, state: State, clock: _Clock) -> _Done:
        final = state.step == self.sampler.steps
        latents = state.x if final else state.x0
        if latents is None:
            raise DiffscaleError(
                f"A state at step {state.step} of {self.sampler.steps} has no picture to score; the search must yield "
                "Predict first."
            )
        recorded = self._recorded(state, final)
        images = self.sampler.decode(latents)
        seen = [self.sampler.decode(x0) for x0 in recorded]
        clock.lap("decode", images)
        with count_flops() as counter:
            scores = safe_score(self.verifier, images, self._prompts(state), *seen)
        clock.lap("verify", images)
        done = _Done({"scores": scores}, decodes=1 + len(seen), verifier_flops=counter.total)
        return replace(done, images=strip(images), latents=latents) if final else done

    def _recorded(self, state: State, final: bool) -> list[Tensor]:
        """The x0-predictions that the verifier asks for, none if it asks for none."""
        if self.record is None:
            return []
        if not final:
            raise Unsuited(
                f"Verifier {self.verifier.name!r} compares finished pictures with earlier predictions of them, so it "
                "cannot score unfinished ones: use a search over noises, such as random or zero_order."
            )
        if state.recorded is None:
            raise Unsuited(f"No prediction at noise level {self.record} was recorded for {self.verifier.name!r}.")
        return [state.recorded]

    def _differentiate(self, state: State, clock: _Clock) -> _Done:
        prompts = self._prompts(state)
        if isinstance(self.verifier, PoolVerifier):
            raise Unsuited(
                f"Verifier {self.verifier.name!r} compares candidates with each other and has no gradient: search with "
                "one of its members, or by another algorithm."
            )
        without = Unsuited(
            f"Verifier {self.verifier.name!r} has no gradient: search with another verifier, or by another algorithm."
        )
        flops = 0

        def score(images: Tensor, recorded: Tensor | None) -> Tensor:
            nonlocal flops
            given = [images] if recorded is None else [images, recorded]
            with count_flops() as counter:
                try:
                    raw = scored(self.verifier, given[0], prompts, *given[1:])
                except RuntimeError as error:
                    if "requires grad" not in str(error):
                        raise
                    raise without from error  # it handed the pictures to NumPy
            flops = 3 * counter.total  # backward is worth two forwards
            if not raw.requires_grad:
                raise without
            return raw

        after, images, raw, grad = self.sampler.gradient(state, score, self.record)
        clock.lap("denoise", grad)
        scores = usable(self.verifier, raw, prompts)
        decodes = 1 if self.record is None else 2
        return _Done(
            {"scores": scores, "grad": grad},
            images=strip(images),
            latents=after.x,
            decodes=decodes,
            verifier_flops=flops,
        )

    def _prompts(self, state: State) -> list[str]:
        return [self.sampler.prompts[row] for row in state.prompt_index.tolist()]

    def _costs(self, request: Request, done: _Done, rows: slice, size: int) -> dict[str, float]:
        """What these rows took of what the micro-batch of `size` rows did."""
        mine = rows.stop - rows.start
        # Differences of rounded totals, so that the shares add up to what was counted.
        forwards = done.forwards * rows.stop // size - done.forwards * rows.start // size
        # Backward is worth two forwards, and a gradient's rows are counted twice already: there and recomputed.
        backward = 2 if isinstance(request, Gradient) else 1
        pictures = mine if "scores" in done.tensors else 0
        return {
            "network_forwards": forwards,
            "flops": forwards * backward * self.sampler.flops_per_forward,
            "decodes": mine * done.decodes,
            "verifier_calls": pictures,
            "verifier_flops": done.verifier_flops * mine / size,
            **{f"seconds.{kind}": seconds * mine / size for kind, seconds in done.seconds.items()},
        }


class _Clock:
    """Laps by kind; waits for CUDA, which runs behind Python's back."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, kind: str, made: Tensor) -> None:
        if made.is_cuda:
            torch.cuda.synchronize(made.device)
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._last
        self._last = now
