"""Further ways of drafting a model's samples, as users ask for them: a cache, a smaller model, a cheap decoder."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import AutoModel

from diffscale._util.errors import DiffscaleError, explained
from diffscale.models.load import dtype_of_pipeline, load_pipeline
from diffscale.models.loading import loading
from diffscale.models.options import AUTO, LoadOptions
from diffscale.samplers.cached_drafts import CachedDrafts, cache_in_words, cache_of
from diffscale.samplers.drafts import DraftingSampler, first_noise
from diffscale.samplers.sibling_drafts import SiblingDrafts
from diffscale.types import Sampler

_RUNS: tuple[type[Exception], ...] = (RuntimeError, ValueError, TypeError, AttributeError, LookupError)


@dataclass(frozen=True)
class DraftOptions:
    """What else than fewer steps drafts are made by, see `types.Draft`; None for what is not wanted.

    `model`: for `via=model`, a smaller or distilled model that shares the latents: a shipped name, folder or Hub id, or
    one that is loaded. `cache`: for `via=cache`, one of `cached_drafts.STEP_CACHES` as "taylorseer cache_interval=5",
    or its configuration of diffusers. `decoder`: what decodes drafts of all ways in the place of the pipeline's vae, an
    AutoencoderTiny or another autoencoder of diffusers, as a folder, a Hub id or loaded.
    """

    model: Any = None
    cache: Any = None
    decoder: Any = None

    def check(self, options: LoadOptions) -> None:
        """Raises DiffscaleError for a cache that is none, or does not go with `options`; loads nothing."""
        if self.cache is not None:
            cache_of(self.cache)
            if options.compile:
                # Every draft would be compiled anew, and soon none, as a cache changes what is compiled.
                raise DiffscaleError("A compiled network takes no draft cache: leave compile or the draft cache out.")

    def decisive(self) -> dict[str, str]:
        """What of these makes a run the same run, by the names that users give them; empty without any."""
        told = {
            "draft_model": _name(self.model),
            "draft_cache": None if self.cache is None else cache_in_words(cache_of(self.cache)),
            "draft_decoder": _name(self.decoder),
        }
        return {name: value for name, value in told.items() if value is not None}

    def loaded(self, pipe: Any, options: LoadOptions) -> "DraftOptions":
        """These with the model and the decoder of the names loaded, where and as `pipe` is, which `options` loaded."""
        model, decoder = self.model, self.decoder
        if isinstance(model, str):
            dtype = dtype_of_pipeline(pipe) if options.dtype == AUTO else options.dtype
            # What is of the one model alone, such as its LoRAs and its files, is not of the other.
            own: dict[str, Any] = {"lora": [], "scheduler": None, "variant": None, "revision": None, "dtype": dtype}
            if options.device is None and (where := getattr(pipe, "_execution_device", None)) is not None:
                own["device"] = str(where)
            model = load_pipeline(model, options.model_copy(update=own))
        if isinstance(decoder, str):
            decoder = _load_decoder(decoder, pipe, options)
        return replace(self, model=model, decoder=decoder)

    def attach(self, sampler: Sampler, sibling: Callable[[Sequence[str]], Sampler]) -> None:
        """Have `sampler` draft in these ways too; they are `loaded`. `sibling` makes its model's sampler for prompts.

        Raises DiffscaleError for what does not suit the sampler.
        """
        if self == DraftOptions():
            return
        if not isinstance(sampler, DraftingSampler):
            raise DiffscaleError("This model cannot be drafted: leave the options of drafts out.")
        ways: dict[str, Any] = {}
        if self.cache is not None:
            ways["cache"] = CachedDrafts(sampler, cache_of(self.cache))
        if self.model is not None:
            ways["model"] = SiblingDrafts(sampler, sibling, _name(self.model) or "")
        sampler.ways = ways
        if self.decoder is not None:
            _check_decoder(sampler, self.decoder)
            sampler.draft_decoder = self.decoder


def _name(thing: Any) -> str | None:
    if thing is None or isinstance(thing, str):
        return thing
    return str(getattr(thing, "name_or_path", "") or type(thing).__name__)


def _load_decoder(name: str, pipe: Any, options: LoadOptions) -> Any:
    vae = getattr(pipe, "vae", None)
    if not isinstance(vae, torch.nn.Module):
        raise DiffscaleError("A decoder for drafts takes the place of a vae, which this model has not: leave it out.")
    mend = "give the folder or Hub id of an autoencoder of diffusers, such as an AutoencoderTiny"
    with loading(f"The draft decoder {name!r} could not be loaded ({{why}}): {mend}."):
        safe = None if options.allow_pickles else True
        network = AutoModel.from_pretrained(name, torch_dtype=vae.dtype, use_safetensors=safe)
        return network.to(getattr(pipe, "_execution_device", vae.device)).eval()


def _check_decoder(sampler: DraftingSampler, decoder: Any) -> None:
    if not hasattr(decoder, "decode"):
        raise DiffscaleError(f"{type(decoder).__name__} decodes nothing: give an autoencoder of diffusers.")
    with explained("The draft decoder does not decode the latents of this model ({why}): give one that does.", *_RUNS):
        trial = copy.copy(sampler)  # which keeps what it finds out of pictures to itself
        with trial.decoded_by(decoder), torch.no_grad():
            trial.decode(first_noise(sampler) / sampler.noise_scale)
