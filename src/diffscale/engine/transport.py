"""How a pool reaches its workers: jobs go to one, events come back. The simplest one computes in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from torch import Tensor

from diffscale._util.errors import DiffscaleError, Unsuited
from diffscale.engine.batching import out_of_memory
from diffscale.engine.output import Output, Sampled
from diffscale.engine.travel import Traffic
from diffscale.engine.work import Job
from diffscale.engine.worker import Worker

News = tuple[Tensor, str] | None
"""What a SetVerifier is to be told: the picture [3, H, W] that was chosen for a prompt, or None to begin."""


@dataclass(frozen=True)
class OutOfMemory:
    """Memory ran out over a job, as `why` says; `kind` is the class of the error."""

    kind: type[Exception]
    why: str


Outcome = Output | Unsuited | OutOfMemory | DiffscaleError


Role = Literal["both", "sampler", "verifier"]
"""What a worker does: everything, or all but scoring, or scoring alone."""


@dataclass(frozen=True)
class Joined:
    """A worker is ready."""

    worker: str
    role: Role = "both"


@dataclass(frozen=True)
class Passed:
    """A worker has made the pictures of job `number`, which can be had by `pictures`, for one that scores them."""

    worker: str
    number: int
    pictures: Any


@dataclass(frozen=True)
class Answered:
    """What a worker made of job `number`."""

    worker: str
    number: int
    outcome: Outcome


@dataclass(frozen=True)
class Lost:
    """A worker is no more, as `why` says; one that takes its place joins by another name."""

    worker: str
    why: str


Event = Joined | Passed | Answered | Lost


class Transport(Protocol):
    """Reaches workers, each of which computes one job after the other.

    `patient`: whether jobs are waited for however long they take, as nothing can be done about a worker that hangs.
    `traffic`: what has travelled so far.
    """

    @property
    def patient(self) -> bool: ...
    @property
    def traffic(self) -> Traffic: ...

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """Have `worker` compute `job`; `pictures`: by which its pictures can be had, if they are made already."""

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """Have the verifier of `worker` told, before the next job."""

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """What has happened, in order; waits for something for so many `seconds` at most, None: as long as it takes.

        Raises DiffscaleError where no worker is left and none is to come.
        """

    def replace(self, worker: str) -> None:
        """Give up on a worker that hangs; another one may take its place. What it still says is not heard."""

    def close(self) -> None:
        """Let all workers go."""


def attempt(worker: Worker, job: Job, sampled: Sampled | None = None) -> Outcome | Sampled:
    """What `worker` makes of `job`, errors among it that are no fault of the program; see `Worker.compute`."""
    try:
        return worker.compute(job, sampled)
    except DiffscaleError as error:
        return error
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        # The traceback, which holds the failed tensors, goes with the error.
        return OutOfMemory(type(error), str(error))


def answer(worker: str, number: int, outcome: Outcome | Sampled) -> Event:
    """The event that tells of what a worker made of job `number`."""
    if isinstance(outcome, Sampled):
        return Passed(worker, number, outcome)
    return Answered(worker, number, outcome)


class InlineTransport:
    """A Transport to one worker, which computes in this process as soon as it is asked to."""

    patient = True

    def __init__(self, worker: Worker) -> None:
        self._worker, self.traffic = worker, Traffic()
        self._events: list[Event] = [Joined("")]

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See Transport."""
        self._events.append(answer(worker, number, attempt(self._worker, job)))

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """Its verifier is the driver's own, which is told already."""

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See Transport."""
        events, self._events = self._events, []
        return events

    def replace(self, worker: str) -> None:
        """It never hangs without all else hanging."""

    def close(self) -> None:
        """There is nothing to let go."""
