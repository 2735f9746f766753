"""What a worker on a device of its own is: it makes the networks that it is told to use, and keeps them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.output import Output, Sampled, joined
from diffscale.engine.transport import News, Outcome, OutOfMemory, Role, attempt
from diffscale.engine.travel import job_on, output_home, sampled_on
from diffscale.engine.work import Job
from diffscale.engine.worker import Worker
from diffscale.types import SetVerifier


class Recipe(Protocol):
    """How a worker is made anywhere: it can be sent to another process."""

    def build(self, device: str, networks: dict[Any, Any], role: Role) -> Worker:
        """The worker on `device` for that `role`; `networks` keeps what it loads for other recipes.

        Raises DiffscaleError for what cannot be loaded.
        """


class Host:
    """Computes jobs on `device`, by the worker of the last recipe. `networks`: those that it has already."""

    def __init__(self, device: str, networks: dict[Any, Any] | None = None, role: Role = "both") -> None:
        self.device, self.role, self._networks = device, role, {} if networks is None else networks
        self._worker: Worker | None = None
        self._refusal: DiffscaleError | None = None
        self._place: torch.device | str = "cpu"

    def prepare(self, recipe: Recipe) -> DiffscaleError | None:
        """Make the worker of `recipe`; what keeps it from being made."""
        self._worker = self._refusal = None  # its networks make room
        try:
            self._worker = recipe.build(self.device, self._networks, self.role)
        except DiffscaleError as error:
            self._refusal = error
            return error
        if (sampling := self._worker.sampling) is not None:
            one = torch.zeros(1, dtype=torch.int64)
            self._place = sampling.sampler.prior(one, one).x.device
        return None

    def compute(self, job: Job, pictures: Sampled | None = None) -> Outcome | Sampled:
        """The answer to a job, or the pictures that are to be scored for it, on the CPU."""
        assert self._worker is not None
        if pictures is None:
            outcome = attempt(self._worker, job_on(job, self._place))
        else:
            outcome = self._scored(self._worker, job, pictures)
        if isinstance(outcome, Sampled):
            return sampled_on(outcome, "cpu")
        return output_home(outcome) if isinstance(outcome, Output) else outcome

    def _scored(self, worker: Worker, job: Job, pictures: Sampled) -> Outcome | Sampled:
        """The answer to a job whose pictures are made: in halves where memory does not suffice for them all at once."""
        outcome = attempt(worker, job, sampled_on(pictures, self.device))
        count = len(pictures.images)
        if not isinstance(outcome, OutOfMemory) or count == 1:
            return outcome
        outputs = []
        for half in (slice(0, count // 2), slice(count // 2, count)):
            outcome = self._scored(worker, job.rows(half), pictures.rows(half, count))
            if not isinstance(outcome, Output):
                return outcome
            outputs.append(outcome)
        return joined(outputs)

    def ask(self, question: Callable[[Worker], Any]) -> Any:
        """What `question` gives of the worker; raises what kept it from being made."""
        if self._refusal is not None:
            raise self._refusal
        assert self._worker is not None
        return question(self._worker)

    def tell(self, news: Sequence[News]) -> None:
        """Tell a SetVerifier what was chosen."""
        assert self._worker is not None
        verifier = self._worker.judging and self._worker.judging.verifier
        if isinstance(verifier, SetVerifier):
            for each in news:
                if each is None:
                    verifier.begin()
                else:
                    verifier.choose(*each)
