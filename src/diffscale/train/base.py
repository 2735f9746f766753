"""The base model of a training: loaded, its denoiser made trainable, and run in mixed precision."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError, explained, first_line
from diffscale.models.class_conditional import ClassModel
from diffscale.models.load import PlainCall, load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.models.shipped import locate
from diffscale.samplers.arguments import call_parameters
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.train.policy import Policy, switch_guidance_off
from diffscale.train.settings import TrainConfig
from diffscale.train.times import Times
from diffscale.train.traits import InnerEpochs, Noised, Sampling

DTYPES: Final = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}
ATTENTION: Final = ("to_q", "to_k", "to_v", "to_out.0")
"""The layers that diffusers' training scripts put a LoRA on."""


@dataclass(frozen=True)
class Base:
    """A pipeline whose denoiser is trained.

    `name`: of the base, so that it can be loaded again from any folder. `call`: how samples are called. `policy`: what
    is trained, unguided. `sampler`: plain samples of it, guided as the call says; `own`: in as many steps as samples
    to learn from take.
    """

    name: str
    pipe: Any
    call: PlainCall
    policy: Policy
    sampler: DiffusersSampler
    own: DiffusersSampler

    @property
    def trainable(self) -> dict[str, nn.Parameter]:
        """All that is trained, by network and name."""
        return {
            f"{network}.{name}": parameter
            for network, module in self.policy.networks.items()
            for name, parameter in module.named_parameters()
            if parameter.requires_grad
        }

    def load_trainable(self, tensors: dict[str, Tensor]) -> None:
        """Fill in what `trainable` gave; raises DiffscaleError if it was of another training."""
        own = self.trainable
        if own.keys() != tensors.keys() or any(own[name].shape != tensors[name].shape for name in own):
            raise DiffscaleError(
                "The checkpoint has other weights than are trained here: give the same model and rank."
            )
        with torch.no_grad():
            for name, tensor in tensors.items():
                own[name].copy_(tensor)

    def save_lora(self, folder: Path) -> None:
        """Write `pytorch_lora_weights.safetensors` as diffusers' own scripts do."""
        from peft.utils import get_peft_model_state_dict  # an extra

        layers = {
            f"{name}_lora_layers": {
                key: tensor.detach().cpu().contiguous()
                for key, tensor in get_peft_model_state_dict(module, adapter_name=self.policy.adapter).items()
            }
            for name, module in self.policy.networks.items()
        }
        type(self.pipe).save_lora_weights(folder, **layers, safe_serialization=True)


def load_base(settings: TrainConfig, precision: str, device: str) -> Base:
    """Load the base and make it trainable as `settings` say; `precision`: no, fp16 or bf16.

    Frozen weights are in that precision and trained ones in float32; the denoiser runs under autocast, all else as it
    is. Raises DiffscaleError for models that cannot be trained.
    """
    given = settings.pretrained_model_name_or_path
    options = LoadOptions(device=device, dtype=DTYPES[precision], revision=settings.revision, variant=settings.variant)
    pipe = load_pipeline(given, options)
    if isinstance(pipe, ClassModel):
        raise DiffscaleError(f"{given} is told classes, and trainings here are of models that are told prompts.")
    if settings.adapter is not None and not hasattr(type(pipe), "save_lora_weights"):
        raise DiffscaleError(f"{type(pipe).__name__} of diffusers takes no LoRA: train all weights with --full.")
    call = plain_call(pipe)
    if hasattr(pipe, "get_list_adapters") and pipe.get_list_adapters():
        # A LoRA that the base came with is part of it.
        pipe.fuse_lora()
        pipe.unload_lora_weights()
    sized = {} if settings.resolution is None else {"height": settings.resolution, "width": settings.resolution}
    call = PlainCall(call.steps, {**call.args, **sized, **_guidance(pipe, settings)})
    steps = (settings.sample_steps if isinstance(settings, Sampling) else None) or call.steps
    gamma = settings.snr_gamma if isinstance(settings, Noised) else None
    try:
        policy = Policy(pipe, [""], steps, call.args, settings.adapter, gamma)
    except ValueError as error:
        if settings.resolution is None:
            raise
        raise DiffscaleError(
            f"{given} makes no pictures of {settings.resolution} pixels a side ({first_line(error)}): give another "
            "--resolution."
        ) from error
    if isinstance(settings, Noised):
        policy.times = _biased(policy.times, settings)
    _make_trainable(pipe, policy, settings)
    if precision != "no":
        for module in (*policy.networks.values(), *policy.copies.values()):
            _autocast(module, torch.device(device).type, getattr(torch, DTYPES[precision]))
    sampler = DiffusersSampler(pipe, [""], call.steps, call.args)
    own = sampler if steps == call.steps else DiffusersSampler(pipe, [""], steps, call.args)
    name = str(Path(locate(given)).resolve()) if Path(given).expanduser().is_dir() else given
    return Base(name, pipe, call, policy, sampler, own)


def _guidance(pipe: Any, settings: TrainConfig) -> dict[str, float]:
    """The arguments by which samples are guided as `settings` say; empty where the model's own call decides."""
    if not isinstance(settings, InnerEpochs):
        return {}
    off = switch_guidance_off(pipe) if settings.unguided else {}
    if settings.guidance_scale is None:
        return off
    if "guidance_scale" in off:
        raise DiffscaleError("Samples without guidance have no scale of it: leave unguided or guidance_scale out.")
    if "guidance_scale" not in call_parameters(pipe):
        raise DiffscaleError(f"{type(pipe).__name__} takes no guidance_scale: leave it out.")
    return {"guidance_scale": settings.guidance_scale, **off}


def _make_trainable(pipe: Any, policy: Policy, settings: TrainConfig) -> None:
    """Freeze all but what is trained: a new LoRA of the networks, or all of their weights, in float32."""
    networks, adapter = list(policy.networks.values()), settings.adapter
    if adapter is not None:
        torch.manual_seed(settings.seed % 2**63)  # the LoRA starts alike in every process
        add_lora(networks, settings.rank, name=adapter)
    for module in pipe.components.values():
        if isinstance(module, nn.Module):
            for name, parameter in module.named_parameters():
                parameter.requires_grad_(adapter is not None and f".{adapter}." in f".{name}.")
    if adapter is None:
        for module in networks:
            module.requires_grad_(True).float()
        if settings.compares:
            policy.freeze()
    cast_training_params(networks, torch.float32)
    if settings.gradient_checkpointing:
        for module in networks:
            unable = f"{type(module).__name__} cannot recompute its activations: leave --gradient_checkpointing out."
            with explained(unable, ValueError):
                module.enable_gradient_checkpointing()  # type: ignore[operator]


def add_lora(
    networks: Iterable[nn.Module], rank: int, targets: Sequence[str] = ATTENTION, name: str = "default"
) -> None:
    """Freeze diffusers `networks` and give each a LoRA called `name`, which alone is trained; it starts as no change.

    Its scale is 1. Raises DiffscaleError if peft is not installed, for networks that have none of the layers `targets`,
    and for a rank above the widths of all of them, where a LoRA has more numbers than the weights themselves.
    """
    with explained('LoRA training needs the library peft: pip install "diffscale[lora]".', ImportError):
        from peft import LoraConfig
    for network in networks:
        network.requires_grad_(False)
        chosen = [
            layer for name, layer in network.named_modules() if any(f".{name}".endswith(f".{t}") for t in targets)
        ]
        widest = max((min(layer.weight.shape[:2]) for layer in chosen if hasattr(layer, "weight")), default=rank)
        if rank > widest:
            raise DiffscaleError(f"A LoRA of {type(network).__name__} has a rank of {widest} at most, not {rank}.")
        lora = LoraConfig(r=rank, lora_alpha=rank, init_lora_weights="gaussian", target_modules=list(targets))
        unable = f"{type(network).__name__} takes no LoRA on {', '.join(targets)} ({{why}}): "
        with explained(unable + "train all weights with --full.", ValueError):
            network.add_adapter(lora, adapter_name=name)  # type: ignore[operator]


def _biased(times: Times, settings: Noised) -> Times:
    """`times` as `--timestep_bias_strategy` and its kin have them drawn."""
    part = int(settings.timestep_bias_portion * times.count)
    match settings.timestep_bias_strategy:
        case "none":
            return times
        case "earlier":
            begin, end = 0, part
        case "later":
            begin, end = times.count - part, times.count
        case "range":
            begin, end = settings.timestep_bias_begin, settings.timestep_bias_end
    if begin >= min(end, times.count):
        raise DiffscaleError(
            f"None of the model's {times.count} times is drawn more often: give a larger timestep_bias_portion, or a "
            f"timestep_bias_begin below {times.count}."
        )
    return times.biased(settings.timestep_bias_multiplier, begin, end)


def _autocast(module: nn.Module, device: str, dtype: torch.dtype) -> None:
    """Have `module` run under autocast."""
    module.forward = torch.autocast(device, dtype)(module.forward)  # type: ignore[method-assign]
