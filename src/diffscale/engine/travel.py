"""What travels between the driver and workers on other devices or machines: states there, answers back, by the CPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from diffscale.engine.output import Output, Sampled
from diffscale.engine.ties import Compare
from diffscale.engine.work import Job


@dataclass
class Traffic:
    """Bytes of tensors that went to workers (`sent`) and came back (`received`), and of how many `candidates`."""

    sent: int = 0
    received: int = 0
    candidates: int = 0

    @property
    def bytes_per_candidate(self) -> float:
        """Both ways; what the search asked for besides finished candidates is shared out among them."""
        return (self.sent + self.received) / max(1, self.candidates)

    def count_job(self, job: Job) -> None:
        """Count what goes to a worker."""
        self.sent += sum(map(_bytes, _tensors(job)))

    def count_output(self, output: Any) -> None:
        """Count what comes back; errors are small."""
        if isinstance(output, Output):
            self.received += sum(map(_bytes, _tensors(output)))
            self.candidates += len(output.pictures or ())


def job_on(job: Job, device: torch.device | str) -> Job:
    """The job with its state on `device`; pictures to compare stay on the CPU."""
    if isinstance(job.request, Compare):
        return job
    return replace(job, request=replace(job.request, state=job.request.state.to(device)))


def sampled_on(sampled: Sampled, device: torch.device | str) -> Sampled:
    """Pictures that are still to be scored, on `device`."""
    return replace(
        sampled,
        images=sampled.images.detach().to(device),
        recorded=[each.detach().to(device) for each in sampled.recorded],
        latents=None if sampled.latents is None else sampled.latents.detach().to(device),
        output=output_home(sampled.output),
    )


def output_home(output: Output) -> Output:
    """The output with all of its tensors on the CPU; its pictures are there already."""
    tensors = {name: tensor.detach().cpu() for name, tensor in output.tensors.items()}
    return replace(output, tensors=tensors, images=None if output.images is None else output.images.detach().cpu())


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _tensors(thing: Any) -> Iterator[Tensor]:
    """All tensors in what travels, each once."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Job):
        yield from _tensors(vars(thing.request.state))
        yield from (tensor for _, wanted in thing.wanted if wanted for tensor in (wanted.full, wanted.shown))
    elif isinstance(thing, Output):
        yield from _tensors([thing.tensors, thing.pictures, thing.images])
    elif isinstance(thing, dict):
        yield from (tensor for value in thing.values() for tensor in _tensors(value))
    elif isinstance(thing, list | tuple):
        yield from (tensor for value in thing for tensor in _tensors(value))
