"""Drafts: a sampler's noises, sampled the whole way in a cheaper manner.

A draft by fewer steps is a sampler of its own, on a coarser grid of the same schedule and solver. Of the same noise it
gives much the same picture (docs/frontier.md), so its score tells which noises are worth all steps. Other ways of
drafting are attached to a sampler, see `cached_drafts` and `sibling_drafts`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, Protocol

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, unknown
from diffscale.types import FEWER_STEPS, State

Around = Callable[[Any], AbstractContextManager[Any]]
"""What a call of a pipeline runs within; it is given the pipeline that is called."""


@dataclass(eq=False)
class SamplerDrafter:
    """A Drafter by the sampler `cheap` of the same noises, which `noise_ratio` scales to what it starts from.

    `nfe`: see `Drafter`. `finished`: the step at which the drafted sampler's trajectories end. `decoder`: the network
    that decodes in the place of the pipeline's `vae`, None for that. `measured`: rows through the network and their
    operations, in one draft of one row that was made to measure its price; None where the sampler knows it.
    """

    cheap: "DraftingSampler"
    nfe: float
    noise_ratio: float
    finished: int
    decoder: Any = None
    measured: tuple[int, float] | None = None

    @property
    def steps(self) -> int:
        return self.cheap.steps

    @property
    def forwards(self) -> int:
        return self.cheap.forwards - (0 if self.measured is None else self.measured[0])

    @property
    def flops_per_forward(self) -> float:
        return self.cheap.flops_per_forward if self.measured is None else self.measured[1] / self.measured[0]

    def run(self, state: State, record: float | None = None) -> State:
        start = replace(state, x=(state.x * self.noise_ratio).to(first_noise(self.cheap)))
        return replace(self.cheap.run(start, None, record), step=self.finished)

    def decode(self, latents: Tensor) -> Tensor:
        with nullcontext() if self.decoder is None else self.cheap.decoded_by(self.decoder):
            return self.cheap.decode(latents)


class Way(Protocol):
    """A further way of drafting, which is attached to a sampler by a name."""

    def steps(self, sampler: "DraftingSampler") -> int:
        """The number of steps of a draft where none is asked for."""

    def drafter(self, sampler: "DraftingSampler", steps: int) -> SamplerDrafter:
        """The drafter of about that many `steps`; raises DiffscaleError where there is none."""


class DraftingSampler(ABC):
    """A Sampler that can be made anew on a grid of fewer steps.

    `ways`: further ways of drafting by their names. `draft_decoder`: see `SamplerDrafter.decoder`; of all ways.
    """

    steps: int
    prompts: Sequence[str]
    forwards_per_nfe: float
    """Rows through the network in one evaluation of the denoiser of one row; more than 1 with guidance."""
    flops_per_forward: float
    intervals: int
    """What its maker takes as the number of steps; evaluations of the denoiser can be more (Heun) or fewer."""
    ways: Mapping[str, Way] = MappingProxyType({})
    draft_decoder: Any = None

    @property
    @abstractmethod
    def forwards(self) -> int: ...

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """What unit noise is multiplied with at step 0."""

    @abstractmethod
    def in_steps(self, intervals: int) -> "DraftingSampler":
        """This sampler with another number of `intervals`; it shares the network, and what was encoded."""

    @abstractmethod
    def prior(self, keys: Tensor, rows: Tensor) -> State: ...

    @abstractmethod
    def run(self, state: State, to: int | None = None, record: float | None = None) -> State: ...

    @abstractmethod
    def decode(self, latents: Tensor) -> Tensor: ...

    @property
    def denoisers(self) -> Sequence[torch.nn.Module]:
        """The networks of a diffusers pipeline that denoise; none of other samplers."""
        return ()

    def call_within(self, around: Around) -> None:
        """From now on each call of the pipeline runs within `around`; of samplers with `denoisers`."""
        raise NotImplementedError

    def decoded_by(self, network: Any) -> AbstractContextManager[None]:
        """Within it `network` decodes in the place of the pipeline's `vae`; raises DiffscaleError without one."""
        raise DiffscaleError(
            "A decoder for drafts takes the place of the vae of a diffusers pipeline whose steps can be run in pieces, "
            "and this model has none: leave the draft decoder out."
        )

    @property
    def drafts(self) -> Sequence[str]:
        return (FEWER_STEPS, *self.ways)

    def _check_way(self, via: str) -> None:
        if via not in self.drafts:
            none = "" if self.ways else "There is none but fewer steps: leave via out, or give a draft model or cache."
            raise unknown("way of drafting", via, self.ways, none)

    def draft_steps(self, via: str = FEWER_STEPS) -> int:
        self._check_way(via)
        return max(1, round(self.steps / 4)) if via == FEWER_STEPS else self.ways[via].steps(self)

    def drafter(self, steps: int, via: str = FEWER_STEPS) -> SamplerDrafter:
        self._check_way(via)
        made: dict[tuple[int, str], SamplerDrafter] = self.__dict__.setdefault("_drafters", {})
        found = made.get((steps, via))
        if found is None or list(found.cheap.prompts) != list(self.prompts):
            found = self._in_fewer_steps(steps) if via == FEWER_STEPS else self.ways[via].drafter(self, steps)
            found.decoder, made[steps, via] = self.draft_decoder, found
        return found

    def shortened(self, steps: int) -> "DraftingSampler":
        """This sampler on a grid of about that many evaluations of the denoiser."""
        intervals = max(1, round(steps * self.intervals / self.steps))
        cheap = self.in_steps(intervals)
        if cheap.steps < steps and (closer := self.in_steps(intervals + 1)).steps <= steps:
            cheap = closer  # solvers of two evaluations take one in some intervals
        elif cheap.steps > steps and intervals > 1 and (fewer := self.in_steps(intervals - 1)).steps < cheap.steps:
            cheap = fewer  # pipelines that begin within their grid round up
        if cheap.steps >= self.steps > steps:
            raise DiffscaleError(
                "Fewer steps make no draft of this model, as its call states each of them: leave timesteps and sigmas "
                "out of its arguments, or use another search."
            )
        cheap.__dict__.pop("_drafters", None)  # which a copy has from its model
        return cheap

    def _in_fewer_steps(self, steps: int) -> SamplerDrafter:
        cheap = self.shortened(steps)
        return SamplerDrafter(cheap, cheap.steps, cheap.noise_scale / self.noise_scale, self.steps)


def first_noise(sampler: DraftingSampler) -> Tensor:
    """A noise of `sampler` [1, ...], which shows the shape, type and device of all."""
    one = torch.zeros(1, dtype=torch.int64)
    return sampler.prior(one, one).x
