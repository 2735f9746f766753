"""Networks in 8 or 4 bits, by the libraries that diffusers loads them with."""

import importlib.util
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any, Final, Literal

import torch
from diffusers import PipelineQuantizationConfig

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.registry.arguments import parse

_DENOISERS: Final = ("transformer", "unet", "prior", "decoder")


def denoiser_names(names: Iterable[str]) -> list[str]:
    """Which of a pipeline's components denoise, by what diffusers calls them."""
    return [name for name in names if name.startswith(_DENOISERS)]


# Each makes the configuration of one component, in the words of the library (diffusers or transformers) that loads it;
# `dtype` is the one it computes in. Which components these are is read by `configuration`.


def _bitsandbytes_4bit(
    library: Any,
    dtype: torch.dtype,
    components: str = "",
    quant_type: Literal["nf4", "fp4"] = "nf4",
    double_quant: bool = False,
) -> Any:
    """Dettmers et al. 2023, QLoRA."""
    return library.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=quant_type,
        bnb_4bit_use_double_quant=double_quant,
        bnb_4bit_compute_dtype=dtype,
    )


def _bitsandbytes_8bit(library: Any, dtype: torch.dtype, components: str = "", threshold: float = 6.0) -> Any:
    """Dettmers et al. 2022, LLM.int8()."""
    return library.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=threshold)


def _torchao(library: Any, dtype: torch.dtype, components: str = "", config_class: str = "Int8WeightOnlyConfig") -> Any:
    import torchao.quantization as ao

    known = {name: getattr(ao, name) for name in dir(ao) if name.endswith("Config")}
    check_name("configuration of torchao", config_class, known)
    return library.TorchAoConfig(known[config_class]())


def _quanto(
    library: Any, dtype: torch.dtype, components: str = "", weights: Literal["int8", "int4", "int2", "float8"] = "int8"
) -> Any:
    return library.QuantoConfig(**{"weights_dtype" if library.__name__ == "diffusers" else "weights": weights})


QUANTIZERS: Final[dict[str, Callable[..., Any]]] = {
    "bitsandbytes_4bit": _bitsandbytes_4bit,
    "bitsandbytes_8bit": _bitsandbytes_8bit,
    "torchao": _torchao,
    "quanto": _quanto,
}


def parse_quantizer(text: str, device: str) -> partial[Any]:
    """The quantiser of "name key=value ..."; raises DiffscaleError if it is not there or does not run on `device`."""
    name, options = parse(text, "quantisation", QUANTIZERS)
    library = {"torchao": "torchao", "quanto": "optimum-quanto"}.get(name, "bitsandbytes")  # by its name on PyPI
    if not installed(library.replace("-", ".")):
        raise DiffscaleError(
            f"Quantisation {name} needs the library {library}, which is not installed: pip install {library}."
        )
    if library == "bitsandbytes" and torch.device(device).type == "cpu":
        raise DiffscaleError(f"Quantisation {name} needs a GPU, and the device is {device}: use torchao or quanto.")
    return partial(QUANTIZERS[name], **{"components": ""} | options)


def installed(package: str) -> bool:
    """Whether the dotted name can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def configuration(chosen: partial[Any], index: Mapping[str, Any], dtype: torch.dtype) -> PipelineQuantizationConfig:
    """What `from_pretrained` takes, for the components that `chosen` names, or the denoiser.

    `index`: the pipeline's model_index.json, component to (library, class). `dtype`: in which it computes.
    Raises DiffscaleError if there is no such component.
    """
    libraries = {name: entry[0] for name, entry in index.items() if isinstance(entry, list | tuple)}
    known = {
        name: importlib.import_module(library)
        for name, library in libraries.items()
        if library in ("diffusers", "transformers") and name not in ("scheduler", "tokenizer")
    }
    named = [name for name in chosen.keywords["components"].split(",") if name] or denoiser_names(known)
    if not named:
        raise DiffscaleError(
            f"Name what to quantise with components=..., by commas; this model has {', '.join(sorted(known))}."
        )
    for name in named:
        check_name("component to quantise", name, known)
    return PipelineQuantizationConfig(quant_mapping={name: chosen(known[name], dtype) for name in named})
