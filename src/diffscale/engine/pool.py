"""Executors: the driver hands over what searches wait for, and takes what workers made of it, in any order."""

from __future__ import annotations

import itertools
import math
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, Final, Protocol

from torch import Tensor

from diffscale._util.errors import Unsuited
from diffscale.engine.batching import MicroBatch
from diffscale.engine.ledger import price
from diffscale.engine.output import Output
from diffscale.engine.ties import Compare
from diffscale.engine.transport import (
    Event,
    InlineTransport,
    Joined,
    Lost,
    News,
    Outcome,
    OutOfMemory,
    Passed,
    Role,
    Transport,
)
from diffscale.engine.work import Kind, Work, WorkQueue, kind_of
from diffscale.engine.worker import Worker
from diffscale.types import Request, Sampler

PATIENCE: Final = 8.0
"""How many times as long as usual a micro-batch may take before its worker is given up."""
LEAST_PATIENCE: Final = 60.0
"""Seconds that every micro-batch may take."""
_NAMED: Final = 4  # workers that a line of progress has room for


class LostWorker(UserWarning):
    """A worker died or hung; its micro-batch is computed by another."""


@dataclass(frozen=True)
class Deadly:
    """Rows that are dropped, since one worker after the other died of them, as `why` says."""

    why: str


@dataclass(frozen=True)
class Done:
    """What became of the rows of `work`."""

    work: Work
    result: Output | Unsuited | Deadly


class Executor(Protocol):
    """Computes what waits in a queue, on one device or many. `size`: how many workers it has, or expects."""

    @property
    def size(self) -> int: ...

    def run(self, queue: WorkQueue) -> Generator[Done]:
        """Yield all rows of `queue` once, micro-batch by micro-batch, in any order, as soon as they are done.

        More may be added to the queue meanwhile; it ends when nothing waits any more. Close it where it is not run to
        its end: it then knows that nobody waits for what is on its way.
        """

    def status(self) -> str:
        """How fast each worker is, and what it waits for, in a line; empty for a single worker."""

    def begin(self) -> None:
        """Have all copies of a SetVerifier begin."""

    def choose(self, image: Tensor, prompt: str) -> None:
        """Tell all copies of a SetVerifier what was chosen."""


@dataclass
class _Flight:
    """A job on its way since a time (`time.monotonic`); `work` is None once nobody waits for it.

    `pictures`: by which its pictures can be had, once they are made and only to be scored.
    """

    number: int
    work: Work | None
    kind: Kind
    amount: int
    since: float
    pictures: Any = None


class Pool:
    """An Executor that keeps every worker of a `transport` busy.

    `sampler`: knows the prices of requests. `batch_size`: most rows at once; None finds it by itself, for each worker
    and kind of work. `size`: as of an Executor. `least_patience`: seconds that every micro-batch may take; one that
    takes PATIENCE times as long as usual, and more than that, is given to another worker.

    A worker takes no more than its share, by its pace, of all rows that wait, so that the last ones are computed by all
    workers and all of them end together.
    """

    def __init__(
        self, transport: Transport, sampler: Sampler, batch_size: int | None = None, size: int = 1,
        least_patience: float = LEAST_PATIENCE,
    ) -> None:  # fmt: skip
        self.size, self._transport, self._sampler = size, transport, sampler
        self._batch_size, self._least_patience = batch_size, least_patience
        self._batches: dict[tuple[str, Kind], MicroBatch] = {}
        self._paces: dict[tuple[str, Kind], float] = {}
        self._flights: dict[str, _Flight | None] = {}  # of all workers, None for one that is free
        self._roles: dict[str, Role] = {}
        self._to_score: deque[_Flight] = deque()
        self._numbers = itertools.count()
        self._news: list[News] = []
        self._told: dict[str, int] = {}

    def run(self, queue: WorkQueue) -> Generator[Done]:
        """See Executor; raises DiffscaleError as workers do, and where all of them are lost."""
        try:
            while True:
                self._hand_out(queue)
                if not queue.rows and not self._to_score and not any(e and e.work for e in self._flights.values()):
                    return
                for event in self._transport.wait(self._seconds_to_wait()):
                    yield from self._heed(event, queue)
                for worker in self._late():
                    self._transport.replace(worker)
                    yield from self._heed(Lost(worker, "it took many times as long as usual"), queue)
        finally:
            self._to_score.clear()
            for flight in self._flights.values():
                if flight is not None:
                    flight.work = None

    def serve(self, sampler: Sampler, batch_size: int | None) -> None:
        """From now on compute with what workers were prepared for, which knows the prices that `sampler` does.

        They join anew, as soon as they are prepared.
        """
        self._sampler, self._flights, self._roles = sampler, {}, {}
        self._to_score.clear()
        self._paces = {}  # of another model or verifier, by which workers would seem to be late
        if batch_size != self._batch_size:
            self._batch_size, self._batches = batch_size, {}

    def status(self) -> str:
        """See Executor: of a few workers each, of many their sum; and what travels for a candidate."""
        paces = {name: self._paces.get((name, "denoise")) for name, role in self._roles.items() if role != "verifier"}
        if len(self._flights) < 2:
            return ""
        traffic = self._transport.traffic
        travels = [f"{traffic.bytes_per_candidate / 1e6:.2g} MB a candidate"] if traffic.candidates else []
        if len(self._flights) > _NAMED:
            idle = sum(flight is None for flight in self._flights.values())
            total = sum(pace for pace in paces.values() if pace)
            told = [f"{len(self._flights)} workers, {total:.3g} NFE/s", *([f"{idle} wait"] if idle else [])]
            return ", ".join([*told, *travels])
        told = []
        for name, flight in self._flights.items():
            pace = f" {paces[name]:.3g} NFE/s" if paces.get(name) else ""
            told.append(f"{name}{pace}{' waits' if flight is None else ''}")
        return ", ".join([*told, *travels])

    def begin(self) -> None:
        """See Executor."""
        self._news, self._told = [None], {}

    def choose(self, image: Tensor, prompt: str) -> None:
        """See Executor."""
        self._news.append((image, prompt))

    def _hand_out(self, queue: WorkQueue) -> None:
        """Give every worker that is free something to do, as long as there is."""
        verifiers = sum(role == "verifier" for role in self._roles.values())
        for worker in [name for name, flight in self._flights.items() if flight is None]:
            if self._roles[worker] == "verifier":
                if self._to_score:
                    self._send(worker, self._to_score.popleft())
            # Pictures that wait take memory, so that samplers wait where verifiers cannot keep up.
            elif self._roles[worker] == "both" or len(self._to_score) < 2 * max(1, verifiers):
                if (work := queue.take(self._size_for(worker))) is None:
                    continue
                flight = _Flight(next(self._numbers), work, work.job.kind, self._amount(work), time.monotonic())
                if self._roles[worker] == "sampler" and flight.kind == "compare":
                    self._to_score.append(flight)
                else:
                    self._send(worker, flight)

    def _send(self, worker: str, flight: _Flight) -> None:
        assert flight.work is not None
        if news := self._news[self._told.get(worker, 0) :]:
            self._transport.tell(worker, news)
            self._told[worker] = len(self._news)
        flight.since, self._flights[worker] = time.monotonic(), flight
        self._transport.submit(worker, flight.number, flight.work.job, flight.pictures)

    def _size_for(self, worker: str) -> Callable[[Request | Compare, int], int]:
        """How many rows the worker takes of a request, while so many wait in all."""

        def size(request: Request | Compare, waiting: int) -> int:
            kind = kind_of(request)
            takers = [name for name, role in self._roles.items() if role != "verifier"]
            known = {name: self._paces[name, kind] for name in takers if (name, kind) in self._paces}
            usual = sum(known.values()) / len(known) if known else 1.0
            paces = {name: known.get(name, usual) for name in takers}
            share = math.ceil(waiting * paces[worker] / sum(paces.values()))
            return min(self._batch(worker, kind).size, share)

        return size

    def _batch(self, worker: str, kind: Kind) -> MicroBatch:
        return self._batches.setdefault((worker, kind), MicroBatch(self._batch_size))

    def _amount(self, work: Work) -> int:
        """How much work it is: denoiser evaluations, or pictures to score."""
        request, rows = work.job.request, len(work.job)
        if isinstance(request, Compare) or work.job.kind == "score":
            return rows
        return price(request, self._sampler)

    def _limit(self, worker: str, flight: _Flight) -> float:
        """When a job is late: never, as long as nobody has done anything of its kind."""
        if self._transport.patient:
            return math.inf
        own = self._paces.get((worker, flight.kind))
        paces = [own] if own else [pace for (_, kind), pace in self._paces.items() if kind == flight.kind]
        if not paces:
            return math.inf
        return flight.since + max(self._least_patience, PATIENCE * flight.amount / min(paces))

    def _limits(self) -> dict[str, float]:
        return {worker: self._limit(worker, flight) for worker, flight in self._flights.items() if flight}

    def _seconds_to_wait(self) -> float | None:
        soonest = min(self._limits().values(), default=math.inf)
        return None if math.isinf(soonest) else max(0.0, soonest - time.monotonic())

    def _late(self) -> list[str]:
        now = time.monotonic()
        return [worker for worker, limit in self._limits().items() if limit <= now]

    def _heed(self, event: Event, queue: WorkQueue) -> Iterator[Done]:
        """What is done by an `event`; what workers repeat, or say when they are given up, is not heard."""
        if isinstance(event, Joined):
            self._flights[event.worker], self._roles[event.worker] = None, event.role
            return
        if event.worker not in self._flights:
            return
        flight = self._flights[event.worker]
        if isinstance(event, Lost):
            self._forget(event.worker)
            warnings.warn(f"The worker {event.worker} is lost: {event.why}.", LostWorker, stacklevel=2)
            if flight is not None and flight.work is not None:
                for rows in queue.put_back(flight.work, died=True):
                    yield Done(Work(flight.work.group, [rows], flight.work.job), Deadly(event.why))
            return
        if flight is None or flight.number != event.number:
            return
        self._flights[event.worker] = None
        if flight.work is None:
            return
        if isinstance(event, Passed):
            self._note_pace(event.worker, flight)
            passed = _Flight(flight.number, flight.work, "score", len(flight.work.job), math.inf, event.pictures)
            self._to_score.append(passed)
        else:
            yield from self._answered(event.worker, event.outcome, flight, flight.work, queue)

    def _forget(self, worker: str) -> None:
        """Forget a worker that is gone; others come by other names."""
        del self._flights[worker], self._roles[worker]
        self._told.pop(worker, None)
        for known in (self._paces, self._batches):
            for key in [key for key in known if key[0] == worker]:
                del known[key]  # type: ignore[attr-defined]

    def _answered(self, worker: str, outcome: Outcome, flight: _Flight, work: Work, queue: WorkQueue) -> Iterator[Done]:
        rows = len(work.job)
        if isinstance(outcome, OutOfMemory):
            if rows == 1:
                raise outcome.kind(outcome.why)
            self._batch(worker, flight.kind).failed(rows, outcome.why)
            queue.put_back(work)
        elif isinstance(outcome, Output):
            self._note_pace(worker, flight)
            yield Done(work, outcome)
        elif isinstance(outcome, Unsuited):
            yield Done(work, outcome)
        else:
            raise outcome

    def _note_pace(self, worker: str, flight: _Flight) -> None:
        """Take note of how long a worker took, for the size of its micro-batches and for when it is late."""
        assert flight.work is not None
        seconds, key = time.monotonic() - flight.since, (worker, flight.kind)
        self._batch(*key).succeeded(len(flight.work.job), flight.amount, seconds)
        if flight.amount:
            pace = flight.amount / max(seconds, 1e-9)
            self._paces[key] = (self._paces.get(key, pace) + pace) / 2


def inline(worker: Worker, batch_size: int | None = None) -> Pool:
    """An Executor that computes in this process, with one worker, one micro-batch after the other."""
    assert worker.sampling is not None
    return Pool(InlineTransport(worker), worker.sampling.sampler, batch_size)
