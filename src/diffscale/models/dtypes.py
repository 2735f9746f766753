"""Which dtype `auto` stands for.

On a GPU it is the one that the weights are published in. On a CPU it is bfloat16 where the processor multiplies it in
hardware, else float32. What was chosen is written down, and a run that goes on keeps it.
"""

import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from diffusers import DiffusionPipeline
from huggingface_hub import parse_local_safetensors_file_metadata
from huggingface_hub.errors import SafetensorsParsingError

from diffscale._util.errors import explained
from diffscale._util.files import read_config
from diffscale._util.hardware import fast_bfloat16
from diffscale.models.loading import LOADING_ERRORS
from diffscale.models.options import AUTO, LoadOptions
from diffscale.models.quantization import denoiser_names

_NAMES: Final = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}


@dataclass(frozen=True)
class DtypeChoice:
    """The `dtype` that is used. `why`: a sentence that says so, empty where the user named it.

    `slow`: whether a run that goes on keeps a dtype that this processor is slow in.
    """

    dtype: str
    why: str = ""
    slow: bool = False


def choose(options: LoadOptions, device: str, where: Callable[[], str], recorded: str | None = None) -> DtypeChoice:
    """The dtype that a model is loaded in on `device`: the one that `options` name, or what `auto` stands for.

    `where`: gives the folder or Hub id of the model, which is read on a GPU alone. `recorded`: the dtype that the run
    was begun in, None for a new one. Raises DiffscaleError for a model that cannot be read.
    """
    if options.dtype != AUTO:
        return DtypeChoice(options.dtype)
    on_cpu = torch.device(device).type == "cpu"
    if recorded is not None:
        slow = on_cpu and recorded != "float32" and not fast_bfloat16()
        said = f"The dtype is {recorded}, in which this run was begun"
        if slow:
            said += (
                " and which is slow on this processor: go on where it is fast, or begin another run with dtype float32 "
                "and another output"
            )
        return DtypeChoice(recorded, f"{said}.", slow)
    if not on_cpu:
        published = published_dtype(where(), options)
        if published is None:
            return DtypeChoice("float32", "The dtype is float32, as the weights do not say what they are published in.")
        more = " (bfloat16 and float16 would take half of the memory)" if published == "float32" else ""
        return DtypeChoice(published, f"The dtype is {published}, which the weights are published in{more}.")
    if fast_bfloat16():
        return DtypeChoice("bfloat16", "The dtype is bfloat16, which this processor multiplies in hardware.")
    return DtypeChoice("float32", "The dtype is float32, since this processor does not multiply bfloat16 in hardware.")


def published_dtype(where: str, options: LoadOptions) -> str | None:
    """The dtype of most weights of the denoiser in the files that would be loaded; None where these do not tell.

    `where`: a folder, or a Hub id, of which all files are fetched, as loading would. Weights published in float32 are
    told as that, and so they are loaded by diffusers itself; `variant` may have others. Pickles do not tell. Raises
    DiffscaleError for a model that cannot be read.
    """
    with explained(
        f"The model {where!r} could not be loaded; check its name, the network and the files ({{why}}).",
        *LOADING_ERRORS, SafetensorsParsingError,
    ):  # fmt: skip
        folder = Path(where)
        if not folder.is_dir():
            folder = Path(DiffusionPipeline.download(where, **options.of_files()))
        counts: Counter[str] = Counter()
        for file in _weight_files(folder, options.variant):
            counts.update(parse_local_safetensors_file_metadata(file).parameter_count)
    known = {_NAMES[name]: count for name, count in counts.items() if name in _NAMES}
    return max(known, key=known.__getitem__) if known else None


def _weight_files(folder: Path, variant: str | None) -> list[Path]:
    """The files of weights of the denoiser, or of all components where none is known by its name."""
    index = folder / "model_index.json"
    parts = [folder / name for name in read_config(index)] if index.is_file() else [folder]
    parts = [part for part in parts if part.is_dir()]
    named = denoiser_names(part.name for part in parts)
    files = [file for part in parts if not named or part.name in named for file in part.glob("*.safetensors")]
    plain = [file for file in files if re.fullmatch(r"[^.]+\.safetensors", file.name)]
    varied = [file for file in files if variant and f".{variant}." in re.sub(r"-\d+-of-\d+", "", file.name)]
    return varied or plain
