"""Models by name: the shipped ones, a local folder, or a Hub id, all through the same diffusers loader."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
from diffusers import DiffusionPipeline

from diffscale._util.errors import DiffscaleError, UnknownName, check_name, explained
from diffscale._util.files import read_config
from diffscale.models import dtypes, loras, memory, quantization, schedulers
from diffscale.models.class_conditional import ClassModel, is_sit, load_sit
from diffscale.models.dtypes import DtypeChoice
from diffscale.models.loading import loading
from diffscale.models.options import ALL, LoadOptions
from diffscale.models.shipped import locate, manifests, read_manifest
from diffscale.registry import plugins
from diffscale.samplers.arguments import call_parameters
from diffscale.types import World

PICKLES: Final = (".bin", ".ckpt", ".pt", ".pth", ".pkl")
"""The suffixes of files of weights that are no safetensors."""
Options = TypeVar("Options", bound=LoadOptions)


@dataclass(frozen=True)
class PlainCall:
    """The call of a pipeline that its figures are made with.

    `steps`: num_inference_steps. `args`: the other arguments, such as height, width and guidance.
    """

    steps: int
    args: dict[str, Any] = field(default_factory=dict)


def best_device(asked: str | None = None) -> str:
    """`asked`, else cuda, else mps, else cpu.

    Raises DiffscaleError for a device that is not there, and for several.
    """
    if asked is not None:
        if asked == ALL or "," in asked:
            raise DiffscaleError(f"This is computed on one device: give one, such as cuda:1, not {asked!r}.")
        try:
            torch.device(asked)
        except RuntimeError as error:
            raise DiffscaleError(f"There is no device {asked!r}: give cuda, mps or cpu.") from error
        unusable = f"The device {asked!r} cannot be used ({{why}}): give cuda, mps or cpu."
        with explained(unusable, RuntimeError, AssertionError):
            torch.empty(1, device=asked)
        return asked
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def devices_of(asked: str | None) -> list[str]:
    """The devices that `asked` names: several by commas, or ALL; None is the best one, see `best_device`.

    Raises DiffscaleError for a device that is not there.
    """
    if asked == ALL:
        if not (count := torch.cuda.device_count()):
            raise DiffscaleError(f"There is no device {ALL!r}: give cuda, mps or cpu.")
        return [f"cuda:{number}" for number in range(count)]
    return [best_device(asked)] if asked is None else [best_device(each.strip()) for each in asked.split(",")]


def warn_of_slow_dtype(choice: DtypeChoice) -> None:
    """Warn where a run goes on in a dtype that is slow here."""
    if choice.slow:
        warnings.warn(choice.why, stacklevel=4)


def settle_dtype(
    model: str, options: Options, recorded: str | None = None, say: Callable[[DtypeChoice], None] = warn_of_slow_dtype
) -> Options:
    """`options` with the dtype that is used in the place of `auto`; those that name one stay as they are.

    `recorded`: the dtype that the run was begun in, which is kept; None for a new run. `say` is told what was chosen.
    Raises DiffscaleError where that is to be read from the model and it cannot be.
    """
    choice = dtypes.choose(options, devices_of(options.device)[0], lambda: locate(base_model(model)), recorded)
    say(choice)
    return options.model_copy(update={"dtype": choice.dtype})


def dtype_of_pipeline(pipe: Any) -> str:
    """The dtype that a loaded pipeline or ClassModel computes in: that of its denoiser's weights, such as "float32"."""
    parts = {"": pipe.denoiser.network} if isinstance(pipe, ClassModel) else getattr(pipe, "components", {})
    networks = {name: part for name, part in parts.items() if isinstance(part, torch.nn.Module)}
    for name in quantization.denoiser_names(networks) or networks:
        for parameter in networks[name].parameters():
            if parameter.is_floating_point():
                return str(parameter.dtype).removeprefix("torch.")
    return "float32"


def load_pipeline(model: str, options: LoadOptions) -> Any:
    """The diffusers pipeline, or ClassModel, of a shipped name, folder or Hub id, loaded as `options` say.

    A folder whose `diffscale.json` states a `base` holds a LoRA of that model, which is loaded with it.
    Raises DiffscaleError if it cannot be; what needs no weights to be told is told first.
    """
    device = best_device(options.device)
    where, chain = locate(model), list(manifests(model))
    if len(chain) > 1:
        pipe = load_pipeline(chain[1][0], options.model_copy(update={"lora": [where, *options.lora]}))
        if "call" in (manifest := chain[0][1]):
            pipe.diffscale_call = manifest["call"]  # in the place of what its base states
        return pipe
    if is_sit(where):
        return _sit(where, options, device, _used(where, options, device))
    scheduler = None if options.scheduler is None else schedulers.parse_scheduler(options.scheduler)
    quantizer = None if options.quantize is None else quantization.parse_quantizer(options.quantize, device)
    loras.check_loras(options.lora)
    memory.check_offload(options.offload, device)
    memory.check_attention(options.attention)
    pipe = _weights(model, where, options, _used(where, options, device), quantizer)
    if scheduler is not None:
        schedulers.replace_scheduler(pipe, *scheduler)
    loras.add_loras(pipe, options.lora)
    memory.save_decoding(pipe, options.vae_slicing, options.vae_tiling)
    if options.attention is not None:
        memory.use_attention(pipe, options.attention)
    if options.compile:
        memory.compile_denoisers(pipe)
    memory.place_networks(pipe, options.offload, device)
    return pipe


def _used(where: str, options: LoadOptions, device: str) -> torch.dtype:
    """The dtype that the model at `where`, which is nobody's LoRA, is loaded in."""
    used: torch.dtype = getattr(torch, dtypes.choose(options, device, lambda: where).dtype)
    return used


def _sit(folder: str, options: LoadOptions, device: str, dtype: torch.dtype) -> ClassModel:
    taken = {"device", "dtype", "compile", "vae_slicing", "vae_tiling"}
    if others := sorted(options.asked().keys() - taken):
        raise DiffscaleError(f"A SiT is loaded with {', '.join(sorted(taken))}: leave {', '.join(others)} out.")
    model = load_sit(folder, device, dtype)
    memory.save_decoding(model, options.vae_slicing, options.vae_tiling)
    if options.compile:
        memory.compile_whole(model.denoiser.network)
    return model


def _weights(model: str, folder: str, options: LoadOptions, dtype: torch.dtype, quantizer: Any) -> Any:
    more = options.of_files()
    mend = "check its name, the network and the files ({why})."
    if (pickle := _bare_pickle(folder)) and not options.allow_pickles:
        raise _pickles_refused(model, f" ({pickle})")
    with loading(f"The model {model!r} could not be loaded; {mend}"):
        if quantizer is not None:
            index = DiffusionPipeline.load_config(folder, revision=options.revision)
            more["quantization_config"] = quantization.configuration(quantizer, index, dtype)
        index = Path(folder, "model_index.json")
        if index.is_file() and not isinstance(read_config(index).get("_class_name"), str):
            raise ValueError("its model_index.json does not name the pipeline's class")
        try:
            return DiffusionPipeline.from_pretrained(folder, dtype=dtype, **more)
        except OSError as error:
            if "necessary `safetensors` weights" in str(error):  # what diffusers says of a repository on the Hub
                raise _pickles_refused(model) from error
            raise


def _bare_pickle(folder: str) -> Path | None:
    """A file of weights of a local model that is a pickle, where its network has no others."""
    index = Path(folder) / "model_index.json"
    parts = [index.parent / name for name in read_config(index)] if index.is_file() else []
    bare = [part for part in parts if not list(part.glob("*.safetensors"))]
    return next((file for part in bare for file in sorted(part.glob("*")) if file.suffix in PICKLES), None)


def _pickles_refused(model: str, where: str = "") -> DiffscaleError:
    return DiffscaleError(
        f"The model {model!r} has weights that are pickles{where}, which can hold code: get them as safetensors, or, "
        "if you trust where they come from, give --allow-pickles (allow_pickles=True)."
    )


def base_model(model: str) -> str:
    """The model that a folder with a LoRA is one of, in the end; any other as it is. It decides which verifiers suit.

    Raises UnknownName for a plain word that is no model.
    """
    return [name for name, _ in manifests(model)][-1] if model else model


def world_of(model: str) -> World | None:
    """The world that a model makes pictures of, as the manifest of its base states.

    It is None where none is stated, and for a model that is not there. Raises UnknownName for a world that no installed
    package offers.
    """
    try:
        name = read_manifest(locate(base_model(model))).get("world")
    except UnknownName:
        return None
    if name is None:
        return None
    check_name("world", name, plugins("worlds"))
    world: World = plugins("worlds")[name]
    return world


def check_negative(pipe: Any, args: Mapping[str, Any]) -> None:
    """Raises DiffscaleError for a negative prompt that the pipeline, called with `args`, would pass over."""
    if args.get("negative_prompt") is None:
        return
    known = call_parameters(pipe)
    # Pipelines of networks with distilled guidance do classifier-free guidance by another argument.
    scale = next((name for name in ("true_cfg_scale", "guidance_scale") if name in known), None)
    if scale is not None and isinstance(value := args.get(scale, known[scale].default), int | float) and value <= 1:
        raise DiffscaleError(
            f"A negative prompt has no effect on {type(pipe).__name__} while {scale} is {value}: leave it out, or give "
            f"{scale}=4 (--pipe-arg {scale}=4)."
        )


def plain_call(pipe: Any) -> PlainCall:
    """How figures call this pipeline: as the folder of it, or of its LoRA, states, else by the pipeline's defaults."""
    own = getattr(pipe, "diffscale_call", None)
    call = dict(own or read_manifest(str(getattr(pipe, "name_or_path", ""))).get("call", {}))
    if "num_inference_steps" in call:
        return PlainCall(call.pop("num_inference_steps"), call)
    if isinstance(pipe, ClassModel):
        return PlainCall(pipe.steps, call)
    taken = call_parameters(pipe).get("num_inference_steps")
    # Pipelines of several stages have a number for each, in `args`, and are told no other.
    return PlainCall(1 if taken is None else int(taken.default), call)
