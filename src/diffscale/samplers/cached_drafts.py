"""Drafts under a cache of diffusers, which leaves out a part of the network in most steps: the way `cache`.

Only caches whose decisions follow from the number of a step, or its timestep, and never from what the latents are, are
taken: under these a row's draft is the same in every batch. FirstBlockCache, SeaCache and FasterCache decide by what
they see of the whole batch, or mix what they keep.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import fields, replace
from inspect import Parameter, signature
from types import MappingProxyType
from typing import Any, Final, Literal

import torch
from diffusers.hooks import MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.fingerprints import described
from diffscale.engine.flops import count_flops
from diffscale.registry.arguments import parse
from diffscale.samplers.drafts import DraftingSampler, SamplerDrafter, first_noise
from diffscale.types import State

_NOT_TYPED: Final = ("num_inference_steps", "calibrate", "current_timestep_callback")
"""What no user types: the first and the last are the draft's own, and calibration is no draft."""
_FROM_ONE: Final = (
    "cache_interval", "max_skip_steps", "spatial_attention_block_skip_range", "temporal_attention_block_skip_range",
    "cross_attention_block_skip_range",
)  # fmt: skip
_FROM_ZERO: Final = ("disable_cache_before_step", "disable_cache_after_step", "max_order", "threshold")


def _ratios(text: str) -> Tensor:
    if text == "flux":
        return FLUX_MAG_RATIOS
    with explained(
        f"The cache magcache takes mag_ratios as flux, or as numbers such as 1,1.05,0.98, not {text!r}.", ValueError
    ):
        return torch.tensor([float(each) for each in text.split(",")])


def _dtype(name: str) -> torch.dtype:
    found: torch.dtype = getattr(torch, name)
    return found


_READ: Final = {
    "mag_ratios": (str, _ratios),
    "taylor_factors_dtype": (Literal["float32", "bfloat16", "float16"], _dtype),
}
"""What a user types for values that no text is, and what is made of it."""


class _Typed:
    """A configuration class of diffusers as a factory whose arguments can be typed."""

    def __init__(self, kind: type) -> None:
        self._kind = kind
        known = [each for each in signature(kind).parameters.values() if each.name not in _NOT_TYPED]
        typed = [each.replace(annotation=_READ[each.name][0]) if each.name in _READ else each for each in known]
        self.__signature__ = signature(kind).replace(parameters=typed, return_annotation=Parameter.empty)

    def __call__(self, **given: Any) -> Any:
        made: dict[str, Any] = given | {name: _READ[name][1](given[name]) for name in given if name in _READ}
        if "mag_ratios" in made:  # which are spread over the steps of a draft once these are known
            made["num_inference_steps"] = len(made["mag_ratios"])
        if self._kind is TaylorSeerCacheConfig:
            # diffusers keeps them in bfloat16, whose rounding makes a thousandth of a row depend on its batch.
            made.setdefault("taylor_factors_dtype", torch.float32)
        return self._kind(**made)


STEP_CACHES: Final = MappingProxyType(
    {
        "taylorseer": TaylorSeerCacheConfig,
        "magcache": MagCacheConfig,
        "pyramid_attention_broadcast": PyramidAttentionBroadcastConfig,
    }
)
"""The caches that a draft can run under, by the names that users type; they take the arguments of these classes.

Where nothing is said, TaylorSeer's factors are float32, and no bfloat16.
"""


def cache_of(given: Any) -> Any:
    """The configuration that "name key=value ..." says, or a configuration of diffusers as it is.

    Raises DiffscaleError, or UnknownName, for a cache that is none of `STEP_CACHES`, and for values that it cannot run
    with.
    """
    if isinstance(given, str):
        name, options = parse(given, "cache", {name: _Typed(kind) for name, kind in STEP_CACHES.items()})
        with explained(f"The cache {name} cannot be made so ({{why}}): change its arguments.", ValueError, TypeError):
            given = _Typed(STEP_CACHES[name])(**options)
    if not isinstance(given, tuple(STEP_CACHES.values())):
        raise DiffscaleError(
            f"A draft runs under a cache that decides by the step alone ({', '.join(STEP_CACHES)}), not "
            f"{type(given).__name__}."
        )
    for least, names in ((1, _FROM_ONE), (0, _FROM_ZERO)):
        for name in names:
            if (value := getattr(given, name, None)) is not None and not value >= least:
                raise DiffscaleError(f"The draft cache takes {name} from {least} on, not {value}.")
    if getattr(given, "calibrate", False):
        raise DiffscaleError("A cache that calibrates leaves nothing out, so it makes no draft: give mag_ratios.")
    return given


def cache_in_words(config: Any) -> str:
    """A configuration, without what a draft sets itself, in words that the next process gives it too."""
    names = [each.name for each in fields(config) if each.name not in _NOT_TYPED]
    told = [f"{name}={described(getattr(config, name))}" for name in names]
    return f"{type(config).__name__}({', '.join(told)})"


class CachedDrafts:
    """A Way by the sampler itself, in all of its steps, under the cache `config`, which is on during a draft alone.

    A draft costs what was measured: its floating point operations as a share of those of one evaluation. Raises
    DiffscaleError for a sampler whose networks take no cache.
    """

    def __init__(self, sampler: DraftingSampler, config: Any) -> None:
        self._config = config
        if not sampler.denoisers:
            raise DiffscaleError("A cache for drafts needs a diffusers pipeline: leave the draft cache out.")
        if getattr(sampler, "caches", None):
            raise DiffscaleError(
                "The model has a cache already, under which every sample is made: disable that, or leave the draft "
                "cache out."
            )
        for network in sampler.denoisers:
            if not hasattr(network, "enable_cache"):
                raise DiffscaleError(
                    f"{type(network).__name__} takes no cache of diffusers, which are for transformers: leave the "
                    "draft cache out."
                )

    def steps(self, sampler: DraftingSampler) -> int:
        return sampler.steps

    def drafter(self, sampler: DraftingSampler, steps: int) -> SamplerDrafter:
        cheap = sampler.shortened(steps)
        config = self._config
        if isinstance(config, MagCacheConfig) and config.num_inference_steps != cheap.steps:
            config = replace(config, num_inference_steps=cheap.steps)

        @contextmanager
        def around(pipe: Any) -> Iterator[None]:
            with _cached(cheap.denoisers, _told_of_timesteps(config, pipe)):
                yield

        cheap.call_within(around)
        ratio = cheap.noise_scale / sampler.noise_scale
        one, before = torch.zeros(1, dtype=torch.int64), cheap.forwards
        with count_flops() as flops:
            cheap.run(State(first_noise(cheap), 0, one, one))
        rows = cheap.forwards - before
        nfe = flops.total / (sampler.flops_per_forward * sampler.forwards_per_nfe)
        if nfe >= cheap.steps:
            raise DiffscaleError(
                f"The draft cache leaves nothing out of {cheap.steps} steps of {type(cheap.denoisers[0]).__name__}: "
                "let it begin earlier or keep more, by its arguments, or draft in fewer steps."
            )
        return SamplerDrafter(cheap, nfe, ratio, sampler.steps, measured=(rows, float(flops.total)))


def _told_of_timesteps(config: Any, pipe: Any) -> Any:
    """`config` with a way to ask the pipeline that runs for its timestep, where it asks for that."""
    if not isinstance(config, PyramidAttentionBroadcastConfig):
        return config
    if not hasattr(type(pipe), "current_timestep"):
        raise DiffscaleError(
            f"{type(pipe).__name__} does not tell its timestep, which this cache decides by: draft under another."
        )
    return replace(config, current_timestep_callback=lambda: pipe.current_timestep)


@contextmanager
def _cached(networks: Sequence[Any], config: Any) -> Iterator[None]:
    """Within it the `networks` run under a fresh cache; afterwards they have none."""
    with ExitStack() as stack:
        for network in networks:
            stack.callback(_without_cache, network, config)
            refused = f"{type(network).__name__} does not take this cache ({{why}}): draft under another."
            with explained(refused, ValueError):
                network.enable_cache(config)
        yield


def _without_cache(network: Any, config: Any) -> None:
    # A cache that failed to begin has left some of its hooks, and is not said to be on.
    network._cache_config = config
    network.disable_cache()
