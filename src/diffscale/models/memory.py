"""Where a pipeline's networks lie and how they run: none of it changes the result but for rounding."""

from typing import Any

import torch
from diffusers import ModelMixin
from diffusers.models.attention_dispatch import AttentionBackendName, attention_backend

from diffscale._util.errors import DiffscaleError, explained, unknown
from diffscale.models.quantization import denoiser_names


def save_decoding(pipe: Any, slicing: bool, tiling: bool) -> None:
    """Have the VAE decode by slices (one picture at a time) or tiles; raises DiffscaleError if it cannot."""
    for wanted, what in ((slicing, "slicing"), (tiling, "tiling")):
        if wanted:
            vae = getattr(pipe, "vae", None)
            try:
                getattr(vae, f"enable_{what}")()
            except (AttributeError, NotImplementedError) as error:
                owner = f"The VAE of {type(pipe).__name__}" if vae is not None else type(pipe).__name__
                raise DiffscaleError(f"{owner} has no {what}: leave the option vae_{what} out.") from error


def check_attention(backend: str | None) -> None:
    """Raises UnknownName for a backend that diffusers does not know."""
    names = [each.value for each in AttentionBackendName]
    if backend is not None and backend.lower() not in names:
        raise unknown("attention backend", backend, names)


def use_attention(pipe: Any, backend: str) -> None:
    """Have the denoiser's attention computed by `backend`; raises DiffscaleError if it or its library cannot."""
    taken = False
    # set_attention_backend also changes the default of all networks in the process; that is put back.
    with attention_backend("native"):
        for network in _denoisers(pipe):
            unusable = f"The attention backend {backend!r} cannot be used: {{why}}"
            with explained(unusable, RuntimeError, ValueError, ImportError):
                network.set_attention_backend(backend)
            processors = (getattr(module, "processor", None) for module in network.modules())
            taken |= any(hasattr(processor, "_attention_backend") for processor in processors)
    if not taken:
        raise DiffscaleError(
            f"The denoiser of {type(pipe).__name__} does not let its attention backend be chosen: leave the option "
            "attention out."
        )


def compile_denoisers(pipe: Any) -> None:
    """torch.compile the denoiser: its repeated blocks where it names them, else its whole forward."""
    for network in _denoisers(pipe):
        blocks = network._repeated_blocks or []
        if any(type(module).__name__ in blocks for module in network.modules()):
            network.compile_repeated_blocks()
        else:
            compile_whole(network)


def compile_whole(network: torch.nn.Module) -> None:
    """torch.compile all of `network`."""
    # Its forward, not its __call__ as network.compile() does: hooks that offload and count rows stay outside.
    network.forward = torch.compile(network.forward)  # type: ignore[method-assign]


def compile_alike(network: torch.nn.Module, copied: torch.nn.Module) -> None:
    """torch.compile what of a `copied` network is compiled of `network`, whose compiled forward it would call."""
    for one, other in zip(network.modules(), copied.modules(), strict=True):
        if one._compiled_call_impl is not None:
            other.compile()  # type: ignore[no-untyped-call]
        if hasattr(vars(one).get("forward"), "_torchdynamo_orig_callable"):
            del other.forward
            compile_whole(other)


def check_offload(offload: str | None, device: str) -> None:
    """Raises DiffscaleError where there is nothing to offload from."""
    if offload is not None and torch.device(device).type == "cpu":
        raise DiffscaleError(
            "Offload keeps networks on the CPU while a GPU does not need them, and the device is cpu: leave the option "
            "offload out, or give device cuda."
        )


def place_networks(pipe: Any, offload: str | None, device: str) -> None:
    """Put the networks on `device`, or have them moved there when they are needed."""
    if offload is None:
        pipe.to(device)
        return
    unable = f"{type(pipe).__name__} cannot be offloaded ({{why}}); leave the option offload out."
    with explained(unable, ValueError, NotImplementedError):
        if offload == "model":
            pipe.enable_model_cpu_offload(device=device)
        else:
            pipe.enable_sequential_cpu_offload(device=device)


def _denoisers(pipe: Any) -> list[Any]:
    """The networks that denoise; raises DiffscaleError if none is known by its name."""
    found = [pipe.components[name] for name in denoiser_names(pipe.components)]
    networks = [network for network in found if isinstance(network, ModelMixin)]
    if not networks:
        raise DiffscaleError(
            f"{type(pipe).__name__} has no denoiser that is known by its name: leave the options compile and attention "
            "out."
        )
    return networks
