"""One search on its way: its generator, its account, what it asks for, and the best so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale.engine.journal import Journal, Reply
from diffscale.engine.leaderboard import Leaderboard
from diffscale.engine.ledger import BudgetSpent, Ledger, price
from diffscale.engine.results import Candidate, Observer, Result, Thumbnail
from diffscale.types import Aggregate, Evaluate, Gradient, Predict, Request, Run, Sampler, Score, Search, State, nearest

THUMBNAIL: Final = 256  # pixels a side
_REFUSALS: Final = 100  # how often a search may ask for too much in a row before it is ended


@dataclass
class SearchRun:
    """A search that is run by feeding it replies, rows at a time, until it asks for nothing more.

    `request` is what it waits for, None when it is over; `missing` are the rows [low, high) of it that are still to be
    computed. Whatever the journal knows is replayed before anything is missing.
    """

    index: int
    prompt_index: int
    name: str
    sampler: Sampler
    generator: Search
    ledger: Ledger
    observers: tuple[Observer, ...]
    gallery: int
    journal: Journal | None
    components: Sequence[str] = ()
    aggregate: Aggregate | None = None
    record: float | None = None
    request: Request | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    dropped: int = 0
    error: DiffscaleError | None = None
    finished: int = 0
    finished_nfe: int = 0
    requests: int = -1
    _first: tuple[int, dict[str, Tensor]] | None = None
    _parts: list[Reply] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.leaderboard = Leaderboard(self.aggregate, self.gallery)

    @property
    def spent(self) -> int:
        """NFE of what has been computed; `ledger.nfe` has all that was asked for."""
        if self.request is None:
            return self.ledger.nfe
        missing = sum(high - low for low, high in self.missing)
        return self.ledger.nfe - price(self.request, self.sampler) * missing // len(self.request.state)

    def begin(self) -> None:
        """Take the first request."""
        self._advance(None)

    def absorb(self, reply: Reply, images: Tensor | None, latents: Tensor | None) -> None:
        """Take rows of the answer, `images` and `latents` [high - low, ...] of candidates that they finish."""
        assert self.request is not None
        if _finishes(self.request, self.sampler):
            self._compete(reply, images, latents)
        if self.journal is not None:
            self.journal.write(self.name, self.requests, type(self.request).__name__, reply)
        self._take(reply)
        if not self.missing:
            self._advance(self._answer())

    def fail(self, error: DiffscaleError) -> None:
        """End the search, which has no result but `error`."""
        self.error, self.request, self.missing = error, None, []
        self.generator.close()

    def result(self) -> Result:
        """What was found; raises AllCandidatesFailed or BudgetTooSmall if nothing was, or the search's own error."""
        if self.error is not None:
            raise self.error
        found = self.leaderboard.best()
        if found is None or self._first is None:
            if self.dropped:
                raise AllCandidatesFailed(
                    f"None of the {self.dropped} candidates of search {self.name} got a finite score; see the warnings "
                    "above and mend the verifier or the model."
                )
            raise BudgetTooSmall(
                f"Search {self.name} spent {self.ledger.nfe} of {self.ledger.budget} NFE and finished no sample; one "
                f"sample costs {self.sampler.steps} NFE, so give it a larger budget."
            )
        values, pool = self.leaderboard.values(), self.leaderboard.components
        points = self.leaderboard.trace()
        if points[-1][1] < self.ledger.nfe:
            points.append((found[0], self.ledger.nfe, found[1]))
        order = sorted(self.leaderboard.thumbnails, key=lambda number: (-float(values[number]), number))
        shown = {number: self._thumbnail(number) for number in order[: self.gallery]}
        gallery = [Thumbnail(image, float(values[n]), n) for n, image in shown.items() if image is not None]
        return Result(
            self._candidate(found[0], self.best_picture(), values),
            self._candidate(*self._first, values),
            gallery,
            [(nfe, value) for _, nfe, value in points],
            {
                name: [(nfe, float(pool[number, k])) for number, nfe, _ in points]
                for k, name in enumerate(self.components)
            },
            pool.clone(),
            self.ledger,
            self.finished,
            self.dropped,
            self.sampler.prompts[self.prompt_index],
        )

    def best_picture(self) -> dict[str, Tensor]:
        """What is kept of the best candidate, see `_kept`; raises DiffscaleError if the journal has lost it."""
        found = self.leaderboard.best()
        kept = None if found is None else self._kept_picture(found[0])
        if kept is None:
            raise DiffscaleError(
                f"The journal has lost the best picture of search {self.name}: remove it to start anew."
            )
        return kept

    def _kept_picture(self, number: int) -> dict[str, Tensor] | None:
        """What is kept of a candidate that can be the best."""
        if self.journal is not None:
            return self.journal.kept(self.name, number)
        return self.leaderboard.pareto_front.get(number)

    def _thumbnail(self, number: int) -> Tensor | None:
        """The thumbnail of a candidate that can be shown."""
        if self.journal is not None:
            return (self.journal.kept(self.name, number) or {}).get("thumbnail")
        return self.leaderboard.thumbnails[number]

    def _candidate(self, number: int, kept: dict[str, Tensor], values: Tensor) -> Candidate:
        leaderboard = self.leaderboard
        return Candidate(
            kept["image"].float() / 255,
            kept["latents"],
            leaderboard.key(number),
            float(values[number]),
            leaderboard.nfe(number),
            number,
            leaderboard.components[number].clone(),
        )

    def _advance(self, answer: Any) -> None:
        """Hand over `answer` and take requests until one needs computing, or the search ends."""
        while True:
            if (request := self._ask(answer)) is None:
                self.request = None
                return
            if _free(request, self.sampler):
                answer = request.state
                continue
            self.requests += 1
            self.request, self._parts, self.missing = request, [], [(0, len(request.state))]
            for reply in self.journal.replies(self.name, self.requests) if self.journal else []:
                if _finishes(request, self.sampler):
                    self._compete(reply, None, None)
                self._take(reply)
            if self.missing:
                return
            answer = self._answer()

    def _ask(self, answer: Any) -> Request | None:
        """The next request that the budget pays for, which it then has; None at the end of the search."""
        try:
            request = self.generator.send(answer)
            for _ in range(_REFUSALS):
                if not len(request.state):
                    name = type(request).__name__
                    raise DiffscaleError(f"A search asked for {name} of no rows; let it end instead of asking.")
                try:
                    self.ledger.charge(price(request, self.sampler))
                    return request
                except BudgetSpent as spent:
                    request = self.generator.throw(spent)
            self.generator.close()
        except (StopIteration, BudgetSpent):
            pass
        except DiffscaleError as error:
            self.error = error
        return None

    def _take(self, reply: Reply) -> None:
        self.ledger.add(reply.costs)
        if "scores" in reply.tensors:
            self.dropped += int(reply.tensors["scores"].view(reply.high - reply.low, -1)[:, 0].isinf().sum())
        self._parts.append(reply)
        left = []
        for low, high in self.missing:
            left += [(a, b) for a, b in ((low, min(high, reply.low)), (max(low, reply.high), high)) if a < b]
        self.missing = left

    def _recorded_step(self) -> int:
        assert self.record is not None
        return nearest(self.sampler.levels[:-1], self.record)

    def _answer(self) -> Any:
        """The whole answer to the request, put together from its parts."""
        request = self.request
        assert request is not None
        if _finishes(request, self.sampler):
            self.finished += len(request.state)
            self.finished_nfe = self.ledger.nfe
        parts = sorted(self._parts, key=lambda part: part.low)
        joined = {name: torch.cat([part.tensors[name] for part in parts]) for name in parts[0].tensors}
        state = request.state
        if isinstance(request, Score | Evaluate):
            return joined["scores"]
        if isinstance(request, Gradient):
            return joined["scores"], joined["grad"].to(state.x)
        if isinstance(request, Predict):
            state = self.sampler.predicted(state, joined["out"].to(state.x.device))
            recorded = self.record is not None and state.level is None and state.step == self._recorded_step()
            return replace(state, recorded=state.x0) if recorded else state
        return state_of(joined, state)

    def _compete(self, reply: Reply, images: Tensor | None, latents: Tensor | None) -> None:
        """Let the finished candidates compete; only those that can be the best, or shown, are copied."""
        assert self.request is not None
        state, scores = self.request.state, reply.tensors["scores"]
        since = self.ledger.nfe - self.finished_nfe
        # The NFE since the last finished candidates, dealt out evenly, so that traces do not depend on the batch.
        nfe = [self.finished_nfe + since * (i + 1) // len(state) for i in range(reply.low, reply.high)]
        for at, score in enumerate(scores.view(len(scores), -1)):
            number = self.finished + reply.low + at
            leads, shown = self.leaderboard.add(number, score, nfe[at], int(state.key[reply.low + at]))
            if not leads and not shown:
                continue
            kept: dict[str, Tensor] | None
            if images is not None and latents is not None:
                kept = _kept(images[at], latents[at] if leads else None, shown)
                if self.journal is not None:
                    self.journal.keep(self.name, number, kept)
            else:
                kept = self.journal.kept(self.name, number) if self.journal is not None else None
            if kept is None:
                continue  # missed only if it is still the best at the end
            journaled = self.journal is not None
            if shown:
                self.leaderboard.thumbnails[number] = None if journaled else kept["thumbnail"]
            if leads:
                self.leaderboard.pareto_front[number] = None if journaled else kept
                if self._first is None or number < self._first[0]:
                    self._first = number, kept
        if images is not None:
            for observe in self.observers:
                observe(self.index, state.key[reply.low : reply.high], scores, images, nfe)


def tensors_of(request: Request, done: State) -> dict[str, Tensor]:
    """What an answering state adds to the state that was asked about."""
    if isinstance(request, Predict):
        assert done.model_output is not None
        return {"out": done.model_output}
    solver = {f"solver.{name}": value for name, value in done.solver.items()}
    level = torch.full((len(done),), math.nan if done.level is None else done.level, dtype=torch.float64)
    recorded = {} if done.recorded is None else {"recorded": done.recorded}
    return {"x": done.x, "step": torch.full((len(done),), done.step), "level": level, **recorded, **solver}


def state_of(tensors: dict[str, Tensor], asked: State) -> State:
    """The inverse of `tensors_of` for Run and Solve."""
    level = float(tensors["level"][0])
    solver = {
        name.removeprefix("solver."): value.to(asked.x.device) if value.ndim > 1 else value
        for name, value in tensors.items()
        if name.startswith("solver.")
    }
    return replace(
        asked,
        x=tensors["x"].to(asked.x.device),
        step=int(tensors["step"][0]),
        level=None if math.isnan(level) else level,
        x0=None,
        model_output=None,
        solver=solver,
        recorded=tensors["recorded"].to(asked.x.device) if "recorded" in tensors else None,
    )


@dataclass(frozen=True)
class Piece:
    """Rows [low, high) of a search's request."""

    search: SearchRun
    low: int
    high: int


def shares(pieces: list[Piece], part: slice) -> Iterator[tuple[Piece, slice]]:
    """What of the pieces, laid end to end, lies in `part`, and where it stands in that part."""
    start = 0
    for piece in pieces:
        stop = start + piece.high - piece.low
        first, last = max(start, part.start), min(stop, part.stop)
        if first < last:
            inside = Piece(piece.search, piece.low + first - start, piece.low + last - start)
            yield inside, slice(first - part.start, last - part.start)
        start = stop


def _finishes(request: Request, sampler: Sampler) -> bool:
    """Whether the rows of the request end as finished, scored candidates."""
    if isinstance(request, Score):
        return request.state.step == sampler.steps
    return isinstance(request, Evaluate | Gradient)


def _free(request: Request, sampler: Sampler) -> bool:
    """Whether the answer is the state itself."""
    if isinstance(request, Run):
        return request.state.step == (sampler.steps if request.to is None else request.to)
    return isinstance(request, Predict) and request.state.x0 is not None


def _kept(image: Tensor, latents: Tensor | None, shown: bool) -> dict[str, Tensor]:
    image = image.detach().float()
    kept = {}
    if latents is not None:
        kept = {"image": eight_bit(image), "latents": latents.detach().cpu().clone()}
    if shown:
        side = max(image.shape[1:])
        if side > THUMBNAIL:
            size = [round(s * THUMBNAIL / side) for s in image.shape[1:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        kept["thumbnail"] = eight_bit(image)
    return kept
