"""Networks in 8 or 4 bits, by the libraries that diffusers loads them with."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Literal

import torch
from diffusers import PipelineQuantizationConfig

from diffscale._util.errors import DiffscaleError, unknown
from diffscale.registry import parse

_DENOISERS: Final = ("transformer", "unet", "prior", "decoder")


def denoisers(names: Iterable[str]) -> list[str]:
    """Which of a pipeline's components denoise, by what diffusers calls them."""
    return [name for name in names if name.startswith(_DENOISERS)]


@dataclass(frozen=True)
class _BitsAndBytes4:
    """Dettmers et al. 2023, QLoRA."""

    components: str = ""
    quant_type: Literal["nf4", "fp4"] = "nf4"
    double_quant: bool = False
    package: ClassVar[str] = "bitsandbytes"

    def config(self, library: Any, dtype: torch.dtype) -> Any:
        return library.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=self.quant_type,
            bnb_4bit_use_double_quant=self.double_quant,
            bnb_4bit_compute_dtype=dtype,
        )


@dataclass(frozen=True)
class _BitsAndBytes8:
    """Dettmers et al. 2022, LLM.int8()."""

    components: str = ""
    threshold: float = 6.0
    package: ClassVar[str] = "bitsandbytes"

    def config(self, library: Any, dtype: torch.dtype) -> Any:
        return library.BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=self.threshold)


@dataclass(frozen=True)
class _TorchAo:
    components: str = ""
    config_class: str = "Int8WeightOnlyConfig"
    package: ClassVar[str] = "torchao"

    def config(self, library: Any, dtype: torch.dtype) -> Any:
        import torchao.quantization as ao

        known = {name: getattr(ao, name) for name in dir(ao) if name.endswith("Config")}
        if self.config_class not in known:
            raise unknown("configuration of torchao", self.config_class, known)
        return library.TorchAoConfig(known[self.config_class]())


@dataclass(frozen=True)
class _Quanto:
    components: str = ""
    weights: Literal["int8", "int4", "int2", "float8"] = "int8"
    package: ClassVar[str] = "optimum.quanto"

    def config(self, library: Any, dtype: torch.dtype) -> Any:
        argument = "weights_dtype" if library.__name__ == "diffusers" else "weights"
        return library.QuantoConfig(**{argument: self.weights})


QUANTIZERS: Final[dict[str, Any]] = {
    "bitsandbytes_4bit": _BitsAndBytes4,
    "bitsandbytes_8bit": _BitsAndBytes8,
    "torchao": _TorchAo,
    "quanto": _Quanto,
}


def choose(text: str, device: str) -> Any:
    """The quantiser of "name key=value ..."; raises DiffscaleError if it is not there or does not run on `device`."""
    name, options = parse(text, "quantisation", QUANTIZERS)
    chosen = QUANTIZERS[name](**options)
    if not installed(chosen.package):
        library = {"optimum.quanto": "optimum-quanto"}.get(chosen.package, chosen.package)
        raise DiffscaleError(
            f"Quantisation {name} needs the library {library}, which is not installed: pip install {library}."
        )
    if chosen.package == "bitsandbytes" and torch.device(device).type == "cpu":
        raise DiffscaleError(f"Quantisation {name} needs a GPU, and the device is {device}: use torchao or quanto.")
    return chosen


def installed(package: str) -> bool:
    """Whether the dotted name can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # its parent is not there
        return False


def configuration(chosen: Any, index: Mapping[str, Any], dtype: torch.dtype) -> PipelineQuantizationConfig:
    """What `from_pretrained` takes, for the components that `chosen` names, or the denoiser.

    `index`: the pipeline's model_index.json, component to (library, class). `dtype`: in which it computes.
    Raises DiffscaleError if there is no such component.
    """
    import diffusers
    import transformers

    libraries = {"diffusers": diffusers, "transformers": transformers}
    known = {
        name: libraries[entry[0]]
        for name, entry in index.items()
        if isinstance(entry, list | tuple) and entry[0] in libraries and name not in ("scheduler", "tokenizer")
    }
    named = [name for name in chosen.components.split(",") if name] or denoisers(known)
    if not named:
        raise DiffscaleError(
            f"Name what to quantise with components=..., by commas; this model has {', '.join(sorted(known))}."
        )
    for name in named:
        if name not in known:
            raise unknown("component to quantise", name, known)
    return PipelineQuantizationConfig(quant_mapping={name: chosen.config(known[name], dtype) for name in named})
