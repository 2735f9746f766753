"""Where micro-batches are computed. The driver hands over what is to be computed and takes replies in any order."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from diffscale._util.errors import Unsuited
from diffscale.engine.batching import MicroBatch
from diffscale.engine.ties import Compare, Pairs
from diffscale.engine.worker import Output, Worker
from diffscale.types import Gradient, PredictGradient, Request, Score, State


@dataclass(frozen=True)
class Job:
    """One `request` to compute for the rows of `state`, which are those of many searches that ask alike.

    `state` are Pairs where pictures are to be compared, and only there.
    """

    request: Request | Compare
    state: State | Pairs


@dataclass(frozen=True)
class JobPart:
    """Rows of job number `job`: what a micro-batch of them gave, or why the verifier does not suit the request."""

    job: int
    rows: slice
    output: Output | Unsuited


class Executor(Protocol):
    """Computes jobs in micro-batches, on one device or many."""

    def compute(self, jobs: Sequence[Job]) -> Iterator[JobPart]:
        """Yield every row of every job once, micro-batch by micro-batch, in any order, as soon as it is done."""


class InlineExecutor:
    """An Executor that computes in this process, with one worker, one micro-batch after the other.

    `batch_size`: most rows at once; None finds it by itself, for each kind of work.
    """

    def __init__(self, worker: Worker, batch_size: int | None = None) -> None:
        self._worker = worker
        self._batches = {kind: MicroBatch(batch_size) for kind in ("denoise", "score", "gradient", "compare")}

    def compute(self, jobs: Sequence[Job]) -> Iterator[JobPart]:
        """See `Executor.compute`; a request that does not suit the verifier is not tried with further rows."""
        for number, job in enumerate(jobs):
            yield from self._parts(number, job)

    def _parts(self, number: int, job: Job) -> Iterator[JobPart]:
        unsuited: Unsuited | None = None

        def work(rows: slice) -> Output | Unsuited:
            return unsuited or self._worker.compute(job.request, job.state[rows])

        kinds = {Score: "score", Gradient: "gradient", PredictGradient: "gradient", Compare: "compare"}
        kind = kinds.get(type(job.request), "denoise")
        evaluations = 0 if isinstance(job.request, Compare) else self._worker.price_per_row(job.request)
        for rows, output in self._batches[kind].map(work, len(job.state), evaluations or kind in ("score", "compare")):
            unsuited = output if isinstance(output, Unsuited) else None
            yield JobPart(number, rows, output)
