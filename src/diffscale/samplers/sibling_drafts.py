"""Drafts by a smaller or distilled model that shares its noises with the sampler: the way `model`."""

from collections.abc import Callable, Sequence

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.drafts import DraftingSampler, SamplerDrafter, first_noise
from diffscale.types import Sampler


class SiblingDrafts:
    """A Way by another model, which samples the same noises, scaled to its own prior, and decodes them itself.

    `make`: gives its sampler for prompts, on the grid that suits it. `name`: what messages call it. A draft costs its
    floating point operations as a share of those of one evaluation of the sampler. Raises DiffscaleError for a model
    that cannot draft for `sampler`.
    """

    def __init__(self, sampler: DraftingSampler, make: Callable[[Sequence[str]], Sampler], name: str) -> None:
        self._make, self._name = make, name
        self._sibling = self._checked(sampler)

    def steps(self, sampler: DraftingSampler) -> int:
        return self._of(sampler).steps

    def drafter(self, sampler: DraftingSampler, steps: int) -> SamplerDrafter:
        cheap = self._of(sampler).shortened(steps)
        draft = cheap.steps * cheap.flops_per_forward * cheap.forwards_per_nfe
        nfe = draft / (sampler.flops_per_forward * sampler.forwards_per_nfe)
        return SamplerDrafter(cheap, nfe, cheap.noise_scale / sampler.noise_scale, sampler.steps)

    def _of(self, sampler: DraftingSampler) -> DraftingSampler:
        if list(self._sibling.prompts) != list(sampler.prompts):
            self._sibling = self._checked(sampler)
        return self._sibling

    def _checked(self, sampler: DraftingSampler) -> DraftingSampler:
        sibling = self._make(sampler.prompts)
        if not isinstance(sibling, DraftingSampler):
            raise DiffscaleError(f"The draft model {self._name} cannot be sampled in its own steps: give another.")
        theirs, ours = (list(first_noise(each).shape[1:]) for each in (sibling, sampler))
        if theirs != ours:
            raise DiffscaleError(
                f"The draft model {self._name} starts from noise shaped {theirs}, and the model from {ours}: give one "
                "that shares its latents."
            )
        if list(sibling.prompts) != list(sampler.prompts):
            raise DiffscaleError(f"The draft model {self._name} has other classes: give one of the same.")
        return sibling
