"""Many workers for the searches of one model: devices of this machine, or actors of Ray."""

from __future__ import annotations

import copy
import io
import pickle
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from types import TracebackType
from typing import Any, Self

import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.host import Host
from diffscale.engine.pool import Pool
from diffscale.engine.ray_workers import RaySettings, RayTransport
from diffscale.engine.sampler_worker import SamplerWorker
from diffscale.engine.scoring import Recording
from diffscale.engine.threads import ThreadTransport
from diffscale.engine.transport import Role
from diffscale.engine.travel import Traffic
from diffscale.engine.verifier_worker import VerifierWorker
from diffscale.engine.worker import Worker
from diffscale.models.copies import copies_on, drafts_on, load_copies
from diffscale.models.load import devices_of, load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.registry.arguments import made
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.types import Sampler
from diffscale.verifiers import load as load_verifier


@dataclass(frozen=True)
class WorkerOptions:
    """Where searches are computed: on `devices`, or by workers of `ray`; `verifiers`: how many more only score."""

    devices: Sequence[str]
    ray: RaySettings | None = None
    verifiers: int = 0

    @property
    def is_inline(self) -> bool:
        """Whether one worker in this process does it all."""
        return self.ray is None and len(self.devices) == 1 and not self.verifiers


def worker_options(device: str | None, workers: str | None, verifiers: int = 0) -> WorkerOptions:
    """What users ask for by `--device`, `--workers` and `--verifier-workers`.

    Raises DiffscaleError for what cannot be read, and for devices that are not there.
    """
    if verifiers < 0:
        raise DiffscaleError(f"Workers for verifiers are 0 or more, not {verifiers}.")
    if workers is None:
        return WorkerOptions(devices_of(device), None, verifiers)
    if device is not None:
        raise DiffscaleError("Workers of Ray find their own devices: leave the device out, or the workers.")
    name, _, rest = workers.strip().partition(" ")
    if name.isdecimal():
        name = f"ray n={name}"
    elif name.startswith("ray://"):
        name = f"ray address={name}"
    text = f"{'ray' if name == 'auto' else name} {rest}"
    return WorkerOptions(["cpu"], made(text, "workers", {"ray": RaySettings}), verifiers)


@dataclass(frozen=True)
class ModelRecipe:
    """How a worker is made: of the sampler of a model, a verifier, and what chooses, wherever it is.

    `model`: a name, or a pipeline or Sampler, of which workers have copies; it is loaded as `loading` says. `make`,
    `arguments`: give the sampler of a pipeline. `recording`: what the verifiers ask for, where they are elsewhere.
    """

    model: Any
    loading: LoadOptions
    make: Callable[..., Sampler]
    arguments: Mapping[str, Any]
    verifier: Any
    choose: Any = None
    image_model: str = ""
    recording: Recording | None = None

    def build(self, device: str, networks: dict[Any, Any], role: Role) -> Worker:
        """See `engine.host.Recipe`."""
        sampler = None if role == "verifier" else self._sampler_on(device, networks)
        if role == "sampler":
            assert sampler is not None
            return Worker(SamplerWorker(sampler, self.recording), None)
        verifier = self._verifier(self.verifier, device, networks)
        choose = None if self.choose is None else self._verifier(self.choose, device, networks)
        if sampler is None:
            return Worker(None, VerifierWorker(verifier, choose))
        return Worker.beside(sampler, verifier, choose)

    def make_here(self) -> Sampler:
        """The sampler in this process, of the model as it is or as `loading` says."""
        if isinstance(self.model, Sampler):
            return self.model
        return self.make(self.model, loading=self.loading, **self.arguments)

    def sampler(self, model: Any, device: str, **other: Any) -> Sampler:
        """That of a loaded pipeline, which is on `device`, with `other` arguments in the place of its own."""
        if isinstance(model, Sampler):
            return model
        arguments = {**self.arguments, **other}
        if isinstance(self.model, str):
            return self.make(self.model, loading=self._loading_on(device), load=lambda *_: model, **arguments)
        return self.make(model, loading=LoadOptions(), **arguments)

    def _sampler_on(self, device: str, networks: dict[Any, Any]) -> Sampler:
        if networks.get("model") != self.key:
            networks.clear()  # one model at a time
            by_name = isinstance(self.model, str)
            pipe = load_pipeline(self.model, self._loading_on(device)) if by_name else self.model
            networks.update(self.with_pipeline(pipe))
        pipe, drafting = networks["pipeline"], self.arguments.get("drafting")
        if drafting is not None and networks.get("drafts of") != drafting:
            networks["drafts"] = drafts_on(drafting, device).loaded(pipe, self._loading_on(device))
            networks["drafts of"] = drafting
            networks.pop("sampler of", None)
        made = None  # samplers that are alike encode their prompts once
        with suppress(Exception):
            made = pickle.dumps({name: each for name, each in self.arguments.items() if name != "drafting"})
        if made is None or networks.get("sampler of") != made:
            more = {} if drafting is None else {"drafting": networks["drafts"]}
            networks["sampler"], networks["sampler of"] = self.sampler(pipe, device, **more), made
        sampler: Sampler = networks["sampler"]
        return sampler

    def _loading_on(self, device: str) -> LoadOptions:
        return self.loading.model_copy(update={"device": device})

    @property
    def key(self) -> Any:
        """By which it is known which pipeline a worker has."""
        return self.model if isinstance(self.model, str) else "given", self.loading.model_dump_json()

    def with_pipeline(self, pipe: Any) -> dict[Any, Any]:
        """What a worker has whose pipeline is loaded already."""
        return {"model": self.key, "pipeline": pipe}

    def _verifier(self, given: Any, device: str, networks: dict[Any, Any]) -> Any:
        if not isinstance(given, str):
            return load_verifier(copy.deepcopy(given), device=device, image_model=self.image_model)
        key = "verifier", given
        if key not in networks:
            networks[key] = load_verifier(given, device=device, image_model=self.image_model)
        return networks[key]


class Crew:
    """The workers of one command, which serve one series of searches after the other; they go when it is left."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._transport: ThreadTransport | RayTransport | None = None
        self._pool: Pool | None = None
        self._head: tuple[Any, Any] = None, None

    def __reduce__(self) -> tuple[type[Crew], tuple[WorkerOptions]]:
        """A copy has workers of its own."""
        return type(self), (self._options,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.forget()

    @property
    def traffic(self) -> Traffic:
        """What has travelled so far."""
        return Traffic() if self._transport is None else self._transport.traffic

    def forget(self) -> None:
        """Have the networks copied again for the next series: they have changed."""
        if self._transport is not None:
            self._transport.close()
        self._transport, self._pool, self._head = None, None, (None, None)

    def serve(self, recipe: ModelRecipe, batch_size: int | None) -> tuple[Sampler, Pool | None]:
        """The sampler that searches use in this process, and the executor that computes what they ask for.

        That is None where this process computes it. Raises DiffscaleError for what cannot be loaded, copied or sent.
        """
        ray = self._options.ray
        if self._options.is_inline:
            return recipe.make_here(), None
        sampler = self._on_devices(recipe) if ray is None else self._on_ray(recipe, ray)
        assert self._transport is not None
        if self._pool is None:
            self._pool = Pool(self._transport, sampler, batch_size, self._transport.size)
        self._pool.serve(sampler, batch_size)
        return sampler, self._pool

    def _on_devices(self, recipe: ModelRecipe) -> Sampler:
        devices = list(self._options.devices)
        if self._head[0] != recipe.key:
            self.forget()
            self._head = recipe.key, _copies(recipe, devices)
            role: Role = "sampler" if self._options.verifiers else "both"
            hosts = {
                _named(device, i, devices): Host(device, recipe.with_pipeline(pipe), role)
                for i, (device, pipe) in enumerate(zip(devices, self._head[1], strict=True))
            }
            for i in range(self._options.verifiers):
                device = devices[i % len(devices)]
                hosts[f"verifier {i + 1} on {device}"] = Host(device, role="verifier")
            self._transport = ThreadTransport(hosts)
            weakref.finalize(self, self._transport.end)
        assert isinstance(self._transport, ThreadTransport)
        self._transport.rest()
        first = self._head[1][0]
        sampler = recipe.sampler(copy.copy(first) if isinstance(recipe.model, Sampler) else first, devices[0])
        self._transport.prepare(recipe)
        return _priced_by(self._transport, sampler)

    def _on_ray(self, recipe: ModelRecipe, settings: RaySettings) -> Sampler:
        if self._transport is None:
            self._transport = RayTransport(settings, self._options.verifiers)
        assert isinstance(self._transport, RayTransport)
        self._transport.prepare(recipe)
        if not isinstance(recipe.model, str):
            return recipe.sampler(recipe.model, "cpu")
        return _priced_by(self._transport, pickle.loads(self._transport.ask(sketch_of)))


def _copies(recipe: ModelRecipe, devices: Sequence[str]) -> list[Any]:
    if isinstance(recipe.model, str):
        return load_copies(recipe.model, recipe.loading, devices)
    if isinstance(recipe.model, Sampler):
        return [recipe.model, *(copy.deepcopy(recipe.model) for _ in devices[1:])]
    return copies_on(recipe.model, devices)


def _named(device: str, number: int, devices: Sequence[str]) -> str:
    """What a worker is called: its device, with a number where others have the same."""
    return device if devices.count(device) == 1 else f"{device} ({number + 1})"


@dataclass(frozen=True)
class _Price:
    """What a search needs to know of a Drafter that is elsewhere."""

    nfe: float
    steps: int


def _priced_by(transport: ThreadTransport | RayTransport, sampler: Any) -> Any:
    """`sampler`, whose drafts workers price: that may run networks, which are theirs."""
    if hasattr(sampler, "drafter"):
        sampler.drafter = partial(_drafter_of, transport, {})
    return sampler


def _drafter_of(
    transport: ThreadTransport | RayTransport, known: dict[tuple[int, str], _Price], steps: int, via: str = ""
) -> _Price:
    if (steps, via) not in known:
        known[steps, via] = transport.ask(partial(_price_of, steps, via))
    return known[steps, via]


def _price_of(steps: int, via: str, worker: Worker) -> _Price:
    assert worker.sampling is not None
    drafter = worker.sampling.sampler.drafter(steps, via)  # type: ignore[attr-defined]
    return _Price(drafter.nfe, drafter.steps)


def _is_pipeline(thing: Any) -> bool:
    return any(each.__name__ == "DiffusionPipeline" for each in type(thing).__mro__)


def _absent(what: str) -> Any:
    """In the place of what a sketch leaves out."""
    return None


def sketch_of(worker: Worker) -> bytes:
    """The sampler of a worker without its networks and what it has encoded: its grid, schedule and noise, pickled.

    A search needs no more of it where others compute. Raises DiffscaleError for a sampler that needs more.
    """
    from ray import cloudpickle

    class Sketcher(cloudpickle.Pickler):  # type: ignore[misc]
        def reducer_override(self, thing: Any) -> Any:
            if isinstance(thing, torch.nn.Module | WindowedPipeline) or _is_pipeline(thing):
                return _absent, (type(thing).__name__,)
            return super().reducer_override(thing)

    assert worker.sampling is not None
    sampler = worker.sampling.sampler
    if getattr(sampler, "mixes_noise", False):
        raise DiffscaleError(
            "A pipeline that starts from a picture mixes it with noise where the search is, so workers of Ray cannot "
            "compute it: give devices (--device cuda:0,cuda:1)."
        )
    file = io.BytesIO()
    Sketcher(file).dump(sampler)
    return file.getvalue()
