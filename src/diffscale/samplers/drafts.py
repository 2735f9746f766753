"""Drafts: a sampler's noises, sampled the whole way in a cheaper manner.

A draft by fewer steps is a sampler of its own, on a coarser grid of the same schedule and solver. Of the same noise it
gives much the same picture (SPEC, drafts), so its score tells which noises are worth all steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.types import Sampler, State

FEWER_STEPS: Final = ""


@dataclass(eq=False)
class SamplerDrafter:
    """A Drafter by the sampler `cheap` of the same noises, which `noise_ratio` scales to what it starts from.

    `nfe`: see `Drafter`. `finished`: the step at which the drafted sampler's trajectories end.
    """

    cheap: Sampler
    nfe: float
    noise_ratio: float
    finished: int

    @property
    def steps(self) -> int:
        return self.cheap.steps

    @property
    def forwards(self) -> int:
        return self.cheap.forwards

    @property
    def flops_per_forward(self) -> float:
        return self.cheap.flops_per_forward

    def run(self, state: State, record: float | None = None) -> State:
        start = replace(state, x=state.x * self.noise_ratio)
        return replace(self.cheap.run(start, None, record), step=self.finished)

    def decode(self, latents: Tensor) -> Tensor:
        return self.cheap.decode(latents)


class DraftingSampler(ABC):
    """A part of a Sampler that can be made anew on a grid of fewer steps."""

    steps: int
    prompts: Sequence[str]
    intervals: int
    """What its maker takes as the number of steps; evaluations of the denoiser can be more (Heun) or fewer."""

    @property
    @abstractmethod
    def noise_scale(self) -> float:
        """What unit noise is multiplied with at step 0."""

    @abstractmethod
    def in_steps(self, intervals: int) -> "Sampler":
        """This sampler with another number of `intervals`; it shares the network, and what was encoded."""

    @property
    def drafts(self) -> Sequence[str]:
        return (FEWER_STEPS,)

    def drafter(self, steps: int, via: str = FEWER_STEPS) -> SamplerDrafter:
        check_name("way of drafting", via, self.drafts)
        made: dict[tuple[int, str], SamplerDrafter] = self.__dict__.setdefault("_drafters", {})
        found = made.get((steps, via))
        if found is None or list(found.cheap.prompts) != list(self.prompts):
            found = made[steps, via] = self._made(steps)
        return found

    def _made(self, steps: int) -> SamplerDrafter:
        intervals = max(1, round(steps * self.intervals / self.steps))
        cheap = self.in_steps(intervals)
        if cheap.steps < steps and (closer := self.in_steps(intervals + 1)).steps <= steps:
            cheap = closer  # solvers of two evaluations take one in some intervals
        if cheap.steps >= self.steps > steps:
            raise DiffscaleError(
                "Fewer steps make no draft of this model, as its call states each of them: leave timesteps and sigmas "
                "out of its arguments, or use another search."
            )
        assert isinstance(cheap, DraftingSampler)
        cheap.__dict__.pop("_drafters", None)  # which a copy has from its model
        return SamplerDrafter(cheap, cheap.steps, cheap.noise_scale / self.noise_scale, self.steps)
