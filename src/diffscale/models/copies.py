"""A pipeline on several devices: copies of its networks, made from one that lies on the CPU."""

import copy
from collections.abc import Sequence
from typing import Any, Final

import torch

from diffscale._util.errors import DiffscaleError
from diffscale.models import memory
from diffscale.models.class_conditional import ClassModel
from diffscale.models.load import best_device, load_pipeline
from diffscale.models.options import LoadOptions

_ONE_DEVICE: Final = ("offload", "quantize")


def devices_of(asked: str | None) -> list[str]:
    """The devices that `asked` names: several by commas, or "cuda:all"; None is the best one, see `best_device`.

    Raises DiffscaleError for a device that is not there.
    """
    if asked == "cuda:all":
        if not (count := torch.cuda.device_count()):
            raise DiffscaleError("There is no device 'cuda:all': give cuda, mps or cpu.")
        return [f"cuda:{number}" for number in range(count)]
    return [best_device(asked)] if asked is None else [best_device(each.strip()) for each in asked.split(",")]


def load_copies(model: str, options: LoadOptions, devices: Sequence[str]) -> list[Any]:
    """The pipeline of a name, loaded once, on each of `devices`; raises DiffscaleError as `load_pipeline`."""
    for name in _ONE_DEVICE:
        if getattr(options, name):
            raise DiffscaleError(
                f"The option {name} ties networks to one device: leave it out, give one device, or use workers of Ray."
            )
    pipe = load_pipeline(model, options.model_copy(update={"device": "cpu", "compile": False}))
    copies = copies_on(pipe, devices)
    if options.compile:
        for each in copies:
            memory.compile_denoisers(each)
    return copies


def copies_on(pipe: Any, devices: Sequence[str]) -> list[Any]:
    """`pipe` itself on the first of `devices`, and copies of it on the others.

    Raises DiffscaleError for a pipeline that cannot be copied or moved.
    """
    try:
        _place(pipe, "cpu")
        copies = [copy.deepcopy(pipe) for _ in devices[1:]]
        for each, device in zip([pipe, *copies], devices, strict=True):
            _place(each, device)
    except (TypeError, ValueError, AttributeError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise DiffscaleError(
            f"{type(pipe).__name__} cannot be copied to several devices ({error}): give its name instead, or one "
            "device."
        ) from error
    return [pipe, *copies]


def _place(pipe: Any, device: str) -> None:
    if isinstance(pipe, ClassModel):
        pipe.denoiser.network.to(device)
        if isinstance(pipe.vae, torch.nn.Module):
            pipe.vae.to(device)
    else:
        pipe.to(device)
