"""One search on its way: its generator, its account, what it asks for, and the best so far."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError
from diffscale.journal import Journal, Reply
from diffscale.ledger import BudgetSpent, Ledger, price
from diffscale.types import (
    Candidate,
    Evaluate,
    Gradient,
    Observer,
    Predict,
    Request,
    Result,
    Run,
    Sampler,
    Score,
    Search,
    State,
    Thumbnail,
)

THUMBNAIL: Final = 256  # pixels a side
_REFUSALS: Final = 100  # how often a search may ask for too much in a row before it is ended


@dataclass
class Searching:
    """A search that is run by feeding it replies, rows at a time, until it asks for nothing more.

    `request` is what it waits for, None when it is over; `missing` are the rows [low, high) of it that are still to be
    computed. Whatever the journal knows is replayed before anything is missing.
    """

    index: int
    name: str
    sampler: Sampler
    generator: Search
    ledger: Ledger
    observers: tuple[Observer, ...]
    gallery: int
    journal: Journal | None
    request: Request | None = None
    missing: list[tuple[int, int]] = field(default_factory=list)
    best: Candidate | None = None
    baseline: Candidate | None = None
    trace: list[tuple[int, float]] = field(default_factory=list)
    dropped: int = 0
    error: DiffscaleError | None = None
    finished: int = 0
    finished_nfe: int = 0
    requests: int = -1
    _shown: list[tuple[float, int, Tensor]] = field(default_factory=list)
    _parts: list[Reply] = field(default_factory=list)

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

    def result(self) -> Result:
        """What was found; raises AllCandidatesFailed or BudgetTooSmall if nothing was, or the search's own error."""
        if self.error is not None:
            raise self.error
        if self.best is None or self.baseline is None:
            if self.dropped:
                raise AllCandidatesFailed(
                    f"None of the {self.dropped} candidates of search {self.name} got a finite score; see the warnings "
                    "above and mend the verifier or the model."
                )
            raise BudgetTooSmall(
                f"Search {self.name} spent {self.ledger.nfe} of {self.ledger.budget} NFE and finished no sample; one "
                f"sample costs {self.sampler.steps} NFE, so give it a larger budget."
            )
        trace = list(self.trace)
        if trace[-1][0] < self.ledger.nfe:
            trace.append((self.ledger.nfe, self.best.score))
        ranked = sorted(self._shown, key=lambda shown: shown[:2], reverse=True)
        gallery = [Thumbnail(image, score, -number) for score, number, image in ranked]
        return Result(self.best, self.baseline, gallery, trace, self.ledger, self.finished, self.dropped)

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
            self.dropped += int(reply.tensors["scores"].isinf().sum())
        self._parts.append(reply)
        left = []
        for low, high in self.missing:
            left += [(a, b) for a, b in ((low, min(high, reply.low)), (max(low, reply.high), high)) if a < b]
        self.missing = left

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
            return self.sampler.predicted(state, joined["out"].to(state.x.device))
        return state_of(joined, state)

    def _compete(self, reply: Reply, images: Tensor | None, latents: Tensor | None) -> None:
        """Let the finished candidates compete; only those that lead or are shown are copied."""
        assert self.request is not None
        state, scores = self.request.state, reply.tensors["scores"]
        since = self.ledger.nfe - self.finished_nfe
        # The NFE since the last finished candidates, dealt out evenly, so that traces do not depend on the batch.
        nfe = [self.finished_nfe + since * (i + 1) // len(state) for i in range(reply.low, reply.high)]
        for at, score in enumerate(scores.tolist()):
            number = self.finished + reply.low + at
            leads = math.isfinite(score) and (self.best is None or score > self.best.score)
            shown = math.isfinite(score) and self._is_shown(score, number)
            if not leads and not shown:
                continue
            if images is not None and latents is not None:
                kept = _kept(images[at], latents[at] if leads else None, shown)
                if self.journal is not None:
                    self.journal.keep(self.name, number, kept)
            else:
                kept = self._recalled(number)
            if shown:
                keep = heapq.heappush if len(self._shown) < self.gallery else heapq.heapreplace
                keep(self._shown, (score, -number, kept["thumbnail"]))
            if leads:
                key = int(state.key[reply.low + at])
                image = kept["image"].float() / 255
                self.best = Candidate(image, kept["latents"], key, score, nfe[at], number)
                self.baseline = self.baseline or self.best
                self.trace.append((nfe[at], score))
        if images is not None:
            for observe in self.observers:
                observe(self.index, state.key[reply.low : reply.high], scores, images, nfe)

    def _is_shown(self, score: float, number: int) -> bool:
        return self.gallery > 0 and (len(self._shown) < self.gallery or (score, -number) > self._shown[0][:2])

    def _recalled(self, number: int) -> dict[str, Tensor]:
        assert self.journal is not None
        kept = self.journal.kept(self.name, number)
        if kept is None:
            raise DiffscaleError(
                f"The journal {self.journal.path} has lost the picture of candidate {number} of search {self.name}: "
                "remove it to start anew."
            )
        return kept


def tensors_of(request: Request, done: State) -> dict[str, Tensor]:
    """What an answering state adds to the state that was asked about."""
    if isinstance(request, Predict):
        assert done.out is not None
        return {"out": done.out}
    solver = {f"solver.{name}": value for name, value in done.solver.items()}
    level = torch.full((len(done),), math.nan if done.level is None else done.level, dtype=torch.float64)
    return {"x": done.x, "step": torch.full((len(done),), done.step), "level": level, **solver}


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
        out=None,
        solver=solver,
    )


@dataclass(frozen=True)
class Piece:
    """Rows [low, high) of a search's request."""

    search: Searching
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
        kept = {"image": _bytes(image), "latents": latents.detach().cpu().clone()}
    if shown:
        side = max(image.shape[1:])
        if side > THUMBNAIL:
            size = [round(s * THUMBNAIL / side) for s in image.shape[1:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        kept["thumbnail"] = _bytes(image)
    return kept


def _bytes(image: Tensor) -> Tensor:
    return (image * 255).round().clamp(0, 255).to(torch.uint8).cpu()
