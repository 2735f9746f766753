"""LoRA weights added to a pipeline, through diffusers and peft."""

import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from diffscale._util.errors import DiffscaleError, UnknownName, explained
from diffscale.models.loading import LOADING_ERRORS
from diffscale.models.quantization import installed
from diffscale.models.shipped import locate


def split_weight(text: str) -> tuple[str, float]:
    """Source and weight of "ID_OR_FOLDER[:weight]"; raises DiffscaleError for a weight that is not finite."""
    source, colon, last = text.rpartition(":")
    try:
        weight = float(last) if colon else 1.0
    except ValueError:
        source, colon, weight = text, "", 1.0  # a colon of the path's own
    if not math.isfinite(weight) or (colon and not source):
        raise DiffscaleError(
            f"Write a LoRA as ID_OR_FOLDER or ID_OR_FOLDER:weight, such as owner/name:0.8, not {text!r}."
        )
    return (source if colon else text), weight


def check_loras(texts: list[str]) -> None:
    """Raises DiffscaleError for what is known to be wrong before anything is loaded."""
    for text in texts:
        _find(split_weight(text)[0])
    if texts and not installed("peft"):
        raise DiffscaleError(
            'LoRA weights need the library peft, which is not installed: pip install "diffscale[lora]".'
        )


def add_loras(pipe: Any, texts: list[str]) -> None:
    """Load the LoRAs `texts` into `pipe` and set their weights.

    Only safetensors are read. Raises DiffscaleError for what cannot be loaded or does not fit.
    """
    if not texts:
        return
    if not hasattr(pipe, "load_lora_weights"):
        raise DiffscaleError(f"{type(pipe).__name__} of diffusers takes no LoRA: leave the option lora out.")
    weights: dict[str, float] = {}
    for number, text in enumerate(texts):
        source, weight = split_weight(text)
        folder, file = _find(source)
        name = f"lora_{number}"
        mend = "check its name, and that it is for this model ({why})."
        with explained(f"The LoRA {source!r} could not be loaded; {mend}", *LOADING_ERRORS), _quiet():
            pipe.load_lora_weights(folder, weight_name=file, adapter_name=name, use_safetensors=True)
        # Keys that fit nothing are only logged by diffusers.
        if not any(name in adapters for adapters in pipe.get_list_adapters().values()):
            raise DiffscaleError(f"The LoRA {source!r} has no weights for any network of {type(pipe).__name__}.")
        weights[name] = weight
    pipe.set_adapters(list(weights), list(weights.values()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Within it diffusers does not warn of each network that a LoRA leaves alone, as most do with text encoders."""

    def telling(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No LoRA keys associated")

    with ExitStack() as stack:
        for module in ("lora_base", "lora_pipeline", "peft"):
            logger = logging.getLogger(f"diffusers.loaders.{module}")
            logger.addFilter(telling)
            stack.callback(logger.removeFilter, telling)
        yield


def _find(source: str) -> tuple[str, str | None]:
    """Folder or Hub id, and the file in it where one is named; raises UnknownName for a plain word."""
    path = Path(source).expanduser()
    if path.is_file():
        return str(path.parent), path.name
    if source.endswith(".safetensors") and source.count("/") > 1 and not source.startswith((".", "/", "~")):
        owner, name, file = source.split("/", 2)
        return f"{owner}/{name}", file
    try:
        return locate(source), None
    except UnknownName as error:
        raise UnknownName(
            f"Unknown LoRA {source!r}, which is neither shipped, nor a folder, nor a Hub id owner/name: check it, and "
            "write a weight as a number behind a colon, such as ./mine:0.8."
        ) from error
