"""Workers on Ray, on this machine or a cluster: actors that hold the networks, placed by what they ask for.

Ray places actors, moves tensors and notices who dies; which job goes where is the pool's business.
"""

from __future__ import annotations

import logging
import os
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.signals import signals_kept
from diffscale.engine.host import Host, Recipe
from diffscale.engine.output import Sampled
from diffscale.engine.transport import Answered, Event, Joined, Lost, News, Passed, Role
from diffscale.engine.travel import Traffic
from diffscale.engine.work import Job

_LOOK_FOR_NODES: Final = 10.0  # seconds between looks at whether there is room for more workers
_DEATHS: Final = 4  # how many workers may die, for each that is wanted, before they are ready
_NO_RAY: Final = 'Workers of Ray need it: `pip install "diffscale[ray]"`, or give devices (--device cuda:0,cuda:1).'


@dataclass(frozen=True)
class RaySettings:
    """Which workers are asked of Ray.

    `address`: of a cluster, as ray.init takes it; None: the one that is running, else one of this machine alone. `n`:
    how many that sample, None: as many as there is room for, also when nodes join later. `gpus`, `cpus`: what each asks
    for; None: a GPU where the cluster has any.
    """

    address: str | None = None
    n: PositiveInt | None = None
    gpus: NonNegativeFloat | None = None
    cpus: PositiveFloat = 1.0


class SearchWorker:
    """A Host in a process of Ray's."""

    def __init__(self, role: Role, cores: int) -> None:
        torch.set_num_threads(cores)
        self._host = Host("cuda" if torch.cuda.is_available() else "cpu", role=role)

    def prepare(self, recipe: Recipe) -> DiffscaleError | None:
        return self._host.prepare(recipe)

    def compute(self, job: Job, pictures: Sampled | None) -> tuple[tuple[Any, list[Any]], Sampled | None]:
        """The outcome with the warnings on its way, and in its place pictures that are to be scored."""
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            outcome = self._host.compute(job, pictures)
        told = [(each.category, str(each.message)) for each in said if each.category.__module__.startswith("diffscale")]
        return ((None, told), outcome) if isinstance(outcome, Sampled) else ((outcome, told), None)

    def tell(self, news: Sequence[News]) -> None:
        self._host.tell(news)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        return self._host.ask(question)


@dataclass
class _Call:
    """What an actor was asked; `number` is that of a job, None for getting ready. `pictures`: of the job's."""

    worker: str
    number: int | None
    pictures: Any = None


class RayTransport:
    """A Transport to actors of Ray, as `settings` say, and `verifiers` more that only score.

    An actor that dies is replaced, wherever there is room. Room for the verifiers is reserved, so that samplers that
    wait for room cannot take it: without verifiers, pictures would be made that nobody scores. Raises DiffscaleError
    without Ray, for a cluster that cannot be reached, and for one that has no room for a single worker.
    """

    patient = False

    def __init__(self, settings: RaySettings, verifiers: int = 0) -> None:
        # Ray asks its users to count them; that is theirs to decide.
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError as error:
            raise DiffscaleError(_NO_RAY) from error
        self._ray: Any = ray
        self.traffic = Traffic()
        self._actors: dict[str, Any] = {}
        self._reserved: Any = None  # places for verifiers
        self._owns = not ray.is_initialized()
        if self._owns:
            try:
                with signals_kept():
                    ray.init(
                        address=settings.address, include_dashboard=False, logging_level=logging.ERROR,
                        log_to_driver=False,
                    )  # fmt: skip
            except (ConnectionError, ValueError, RuntimeError, OSError) as error:
                raise DiffscaleError(
                    f"Ray cannot be reached ({first_line(error)}): check the address, or `ray status` there."
                ) from error
        total = ray.cluster_resources()
        gpus = settings.gpus if settings.gpus is not None else float(total.get("GPU", 0) > 0)
        self._needs = {"CPU": settings.cpus, "GPU": gpus}  # of each worker
        room = int(min(total.get("CPU", 0) / settings.cpus, total.get("GPU", 0) / gpus if gpus else 1e9))
        if room < 1 + verifiers:
            each = f"each of {1 + verifiers} workers" if verifiers else "a worker"
            refusal = DiffscaleError(
                f"The cluster has {total.get('CPU', 0):g} CPUs and {total.get('GPU', 0):g} GPUs, and {each} asks for "
                f"{settings.cpus:g} and {gpus:g}: ask for less, as in --workers 'ray gpus=0.5 cpus=1'."
            )
            self.close()
            raise refusal
        self._grows = settings.n is None
        role: Role = "sampler" if verifiers else "both"
        self._wanted: dict[Role, int] = {"verifier": verifiers} if verifiers else {}
        self._wanted[role] = settings.n or room - verifiers
        self._role, self._looked = role, time.monotonic()
        self._recipe: Any = None
        self._roles: dict[str, Role] = {}
        self._calls: dict[Any, _Call] = {}
        self._made, self._deaths = 0, 0
        self._joined: set[str] = set()
        self._class: Any = ray.remote(SearchWorker)
        if verifiers:
            self._reserved = self._reserve(verifiers)

    @property
    def size(self) -> int:
        """How many workers there are, or are to be, that sample."""
        return self._wanted[self._role]

    def prepare(self, recipe: Recipe) -> None:
        """Have all workers made by `recipe`; each joins when it is. Raises DiffscaleError for what cannot be sent."""
        try:
            self._recipe = self._ray.put(recipe)
        except Exception as error:  # whatever somebody's object does when it is pickled
            raise DiffscaleError(
                f"The model or the verifier cannot be sent to other processes ({first_line(error)}): give it by its "
                "name or folder, or as module:attribute."
            ) from error
        self._calls = {}  # what is still computed for others is not heard
        for name, actor in self._actors.items():
            self._calls[actor.prepare.remote(self._recipe)] = _Call(name, None)
        for role, count in self._wanted.items():
            for _ in range(count - sum(each == role for each in self._roles.values())):
                self._spawn(role)

    def ask(self, question: Callable[[Any], Any]) -> Any:
        """What `question` gives of the worker of some actor that samples, as soon as one is ready to answer."""
        actors = {name: actor for name, actor in self._actors.items() if self._roles[name] != "verifier"}
        refs = {actor.ask.remote(question): name for name, actor in actors.items()}
        while refs:
            (ready,), _ = self._ray.wait(list(refs), num_returns=1)
            refs.pop(ready)
            try:
                answer = self._ray.get(ready)
            except self._ray.exceptions.RayActorError:
                continue
            except self._ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, DiffscaleError) else error) from None
            for ref in refs:
                self._ray.cancel(ref)
            return answer
        raise DiffscaleError("No worker of Ray could be started: see its logs, in /tmp/ray/session_latest/logs.")

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See Transport."""
        if pictures is None:
            self.traffic.count_job(job)
        outcome, made = self._actors[worker].compute.options(num_returns=2).remote(job, pictures)
        self._calls[outcome] = _Call(worker, number, made)

    def tell(self, worker: str, news: Sequence[News]) -> None:
        """See Transport."""
        self._actors[worker].tell.remote(list(news))

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See Transport."""
        self._grow()
        if not self._calls:
            raise RuntimeError("no worker is asked for anything: prepare them for this pool first")
        limit = _LOOK_FOR_NODES if seconds is None else min(seconds, _LOOK_FOR_NODES)
        ready, _ = self._ray.wait(list(self._calls), num_returns=1, timeout=limit)
        if ready:  # and whatever else is ready by now
            ready, _ = self._ray.wait(list(self._calls), num_returns=len(self._calls), timeout=0)
        calls = ((self._calls.pop(ref, None), ref) for ref in ready)  # those of who died are gone
        return [event for call, ref in calls if call and (event := self._event(call, ref)) is not None]

    def replace(self, worker: str) -> None:
        """See Transport."""
        self._ray.kill(self._actors[worker], no_restart=True)
        self._calls = {ref: call for ref, call in self._calls.items() if call.worker != worker}
        self._bury(worker)

    def close(self) -> None:
        """See Transport; a Ray that was started here ends too."""
        for actor in self._actors.values():
            self._ray.kill(actor, no_restart=True)
        self._actors = {}
        if self._owns:
            self._ray.shutdown()
        elif self._reserved is not None:
            self._ray.util.remove_placement_group(self._reserved)

    def _reserve(self, verifiers: int) -> Any:
        """A group of places for so many verifiers, as soon as there is room."""
        group = self._ray.util.placement_group([self._needs] * verifiers)
        if not group.wait(_LOOK_FOR_NODES):
            warnings.warn("Ray has no room yet for the verifiers, as others use the cluster: waiting.", stacklevel=3)
            while not group.wait(_LOOK_FOR_NODES):
                pass
        return group

    def _spawn(self, role: Role) -> None:
        name = f"ray:{self._made}"
        self._made += 1
        place: dict[str, Any] = {}
        if role == "verifier":
            from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

            place["scheduling_strategy"] = PlacementGroupSchedulingStrategy(self._reserved)
        cpus, gpus = self._needs["CPU"], self._needs["GPU"]
        actor = self._class.options(num_cpus=cpus, num_gpus=gpus, **place).remote(role, max(1, int(cpus)))
        self._actors[name], self._roles[name] = actor, role
        self._calls[actor.prepare.remote(self._recipe)] = _Call(name, None)

    def _bury(self, worker: str) -> None:
        del self._actors[worker]
        self._deaths += worker not in self._joined
        self._joined.discard(worker)
        if self._deaths > _DEATHS * sum(self._wanted.values()):
            raise DiffscaleError(
                "The workers of Ray die one after the other: see its logs, in /tmp/ray/session_latest/logs."
            )
        self._spawn(self._roles.pop(worker))

    def _grow(self) -> None:
        """Ask for more workers where nodes have joined that have room for them."""
        now = time.monotonic()
        if not self._grows or now - self._looked < _LOOK_FOR_NODES:
            return
        self._looked, free = now, self._ray.available_resources()
        if self._actors.keys() - self._joined:
            return  # one that waits for room already: what is free may be on several nodes
        if all(free.get(kind, 0) >= amount for kind, amount in self._needs.items()):
            self._wanted[self._role] += 1
            self._spawn(self._role)

    def _event(self, call: _Call, ref: Any) -> Event | None:
        worker = call.worker
        try:
            value = self._ray.get(ref)
        except self._ray.exceptions.RayActorError as error:
            if worker not in self._actors:
                return None
            self._calls = {other: each for other, each in self._calls.items() if each.worker != worker}
            self._bury(worker)
            return Lost(worker, first_line(error).rstrip("."))
        if call.number is None:
            if value is not None:
                raise value
            self._joined.add(worker)
            return Joined(worker, self._roles[worker])
        outcome, told = value
        for category, text in told:
            warnings.warn(text, category, stacklevel=2)
        if outcome is None:
            return Passed(worker, call.number, call.pictures)
        self.traffic.count_output(outcome)
        return Answered(worker, call.number, outcome)
