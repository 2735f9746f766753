"""A pipeline on several devices: copies of its networks, made from one that lies on the CPU."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

import torch

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.engine.batching import out_of_memory
from diffscale.models import memory
from diffscale.models.class_conditional import ClassModel
from diffscale.models.drafting import DraftOptions
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions

_ONE_DEVICE: Final = ("offload", "quantize")


def load_copies(model: str, options: LoadOptions, devices: Sequence[str]) -> list[Any]:
    """The pipeline of a name, loaded once, on each of `devices`; raises DiffscaleError as `load_pipeline`."""
    for name in _ONE_DEVICE:
        if getattr(options, name):
            raise DiffscaleError(
                f"The option {name} ties networks to one device: leave it out, give one device, or use workers of Ray."
            )
    return copies_on(load_pipeline(model, options.model_copy(update={"device": "cpu"})), devices)


def copies_on(pipe: Any, devices: Sequence[str]) -> list[Any]:
    """`pipe` itself on the first of `devices`, and copies of it on the others.

    Raises DiffscaleError for a pipeline that cannot be copied or moved.
    """
    with _explained(pipe):
        _place(pipe, "cpu")
        copies = [_copied(pipe) for _ in devices[1:]]
        for each, device in zip([pipe, *copies], devices, strict=True):
            _place(each, device)
    return [pipe, *copies]


def drafts_on(drafting: DraftOptions, device: str) -> DraftOptions:
    """`drafting` with copies on `device` of the networks that are loaded; raises DiffscaleError as `copies_on`."""

    def copied(given: Any) -> Any:
        if given is None or isinstance(given, str):
            return given
        with _explained(given):
            own = _copied(given)
            _place(own, device)
            return own

    return replace(drafting, model=copied(drafting.model), decoder=copied(drafting.decoder))


@contextmanager
def _explained(pipe: Any) -> Iterator[None]:
    """Have it told where `pipe` cannot be copied or moved."""
    try:
        yield
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if out_of_memory(error):
            raise
        raise DiffscaleError(
            f"{type(pipe).__name__} cannot be copied to several devices ({first_line(error)}): give its name instead, "
            "or one device."
        ) from error


def _copied(pipe: Any) -> Any:
    """A copy whose networks are compiled where those of `pipe` are."""
    own = copy.deepcopy(pipe)
    for one, other in zip(_networks(pipe), _networks(own), strict=True):
        memory.compile_alike(one, other)
    return own


def _networks(pipe: Any) -> list[torch.nn.Module]:
    if isinstance(pipe, ClassModel):
        parts = [pipe.denoiser.network, pipe.vae]
    elif isinstance(pipe, torch.nn.Module):
        parts = [pipe]
    else:
        parts = list(getattr(pipe, "components", {}).values())
    return [part for part in parts if isinstance(part, torch.nn.Module)]


def _place(pipe: Any, device: str) -> None:
    if isinstance(pipe, ClassModel):
        for network in _networks(pipe):
            network.to(device)
    else:
        pipe.to(device)
