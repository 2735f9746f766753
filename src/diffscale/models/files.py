"""Where networks lie (shipped by name, in local folders, on the Hub), files of published ones, and the weights there.

Weights are read from safetensors. Where a publisher has only a pickle, it is opened with `weights_only=True`, and only
if its SHA-256 digest is the one that was stated. Nothing is fetched when `HF_HUB_OFFLINE` is set.
"""

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import read_config, write_json
from diffscale.models.loading import LOADING_ERRORS, loading
from diffscale.models.shipped import local_path, locate


def fetch(model: str, name: str) -> Path:
    """The file `name` of a Hub repository or folder, or `model` itself where that is a file.

    Raises DiffscaleError if there is no such file or it cannot be had.
    """
    if (path := local_path(model)) is not None:
        file = path if path.is_file() else path / name
        if not file.is_file():
            raise DiffscaleError(f"The folder {model!r} has no file {name}; give a folder or file of this network.")
        return file
    mend = "could not be fetched; check the name and the network, or give a local path ({why})."
    with explained(f"The file {name} of {model!r} {mend}", OSError, ValueError, EntryNotFoundError):
        return Path(hf_hub_download(model, name))


def download(url: str, sha256: str) -> Path:
    """A published file that is not on the Hub, kept where torch.hub keeps such files.

    Raises DiffscaleError if it cannot be had; whoever reads it checks its digest again.
    """
    path = Path(torch.hub.get_dir()) / "checkpoints" / url.rsplit("/", 1)[-1]
    if path.is_file():
        return path
    mend = f"check the network, or fetch it elsewhere and put it at {path} ({{why}})."
    with explained(f"{url} could not be fetched; {mend}", OSError, RuntimeError):
        if constants.HF_HUB_OFFLINE:
            raise OSError("HF_HUB_OFFLINE is set")
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.hub.download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    return path


def load_state(path: Path, sha256: str | None = None) -> dict[str, Any]:
    """What a file of weights holds, on the CPU: tensors by name, for a pickle whatever its author put in.

    `sha256` is the digest (64 hex digits) that a pickle must have. Raises DiffscaleError for a pickle without one, for
    another digest, and for a file that cannot be read.
    """
    if path.suffix != ".safetensors":
        _check_digest(path, sha256)
    unreadable = f"The weights in {path} could not be read; fetch the file anew ({{why}})."
    with explained(unreadable, *LOADING_ERRORS):
        if path.suffix == ".safetensors":
            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)


def load_into(net: nn.Module, state: dict[str, Tensor], path: Path) -> None:
    """Fill `net` with `state`, every name and shape as it must be; raises DiffscaleError if they are not."""
    try:
        net.load_state_dict(state)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        raise DiffscaleError(f"The weights in {path} are not those of a {type(net).__name__}: {reason}") from error


def pretrained(family: Any, model: str | Path, what: str, **options: Any) -> Any:
    """What `family.from_pretrained` loads of `model`, a Hub id, folder or shipped name; its errors as one sentence.

    `model`: a Path is a folder. `what`: the kind of network, as users call it.
    """
    where = model if isinstance(model, Path) else locate(model)
    mend = "give a Hub id, or a folder with config.json and safetensors weights ({why})."
    with loading(f"The {what} {str(model)!r} could not be loaded: {mend}"):
        return family.from_pretrained(where, **options)


def pretrained_network(family: Any, model: str, what: str, device: Any) -> Any:
    """The network that `pretrained` loads, in float32 and frozen, on `device`."""
    net = pretrained(family, model, what, dtype=torch.float32, use_safetensors=True)
    return net.to(device).eval().requires_grad_(False)


def saved_config(model: str) -> dict[str, Any] | None:
    """The config.json of the folder that `model` means; None for a file, a Hub id and a folder without one."""
    where = local_path(model)
    return read_config(where / "config.json") if where is not None and (where / "config.json").is_file() else None


def save_network(net: nn.Module, config: Mapping[str, Any], folder: str | Path) -> None:
    """Write config.json and model.safetensors into `folder`."""
    write_json(Path(folder) / "config.json", dict(config))
    state = {name: value.detach().cpu().contiguous() for name, value in net.state_dict().items()}
    save_file(state, Path(folder) / "model.safetensors")


def renamed(state: Mapping[str, Tensor], patterns: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """`state` in float32, its names changed by all regular expressions and replacements of `patterns` in turn."""
    out = {}
    for name, value in state.items():
        for pattern, replacement in patterns:
            name = re.sub(pattern, replacement, name)
        out[name] = value.to(torch.float32)
    return out


def _check_digest(path: Path, sha256: str | None) -> None:
    if sha256 is None:
        raise DiffscaleError(
            f"{path.name} is a pickle and is opened only if its SHA-256 digest is known: pass sha256=... with the "
            "digest that its publisher states (the Hub shows it on the file's page)."
        )
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256.lower():
        raise DiffscaleError(
            f"{path} was not opened: its SHA-256 digest is {found}, but {sha256.lower()} was expected; fetch the file "
            "anew or pass sha256=... of the file that you trust."
        )
