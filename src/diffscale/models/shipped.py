"""Which networks installed packages bring along, where models lie, and what their folders say of themselves.

Nothing here imports a library of networks, so that names are listed and checked at once.
"""

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field

from diffscale._util.errors import DiffscaleError, UnknownName, unknown
from diffscale._util.files import checked, read_config
from diffscale.registry import DEFAULT_MODEL, HOW_TO_GET_SHAPES, plugins


def shipped_folders() -> dict[str, Path]:
    """The folder of every pipeline and verifier network that an installed package brings along, by name.

    A name that two packages use is told apart as `package/name`.
    """
    homes = plugins("models")
    found = [(homes.source(home).split()[0], folder) for home in homes for folder in _folders_of(home)]
    found = [(package, folder) for package, folder in found if (folder / "diffscale.json").exists()]
    uses = Counter(folder.name for _, folder in found)
    return {folder.name if uses[folder.name] == 1 else f"{package}/{folder.name}": folder for package, folder in found}


@cache
def _folders_of(home: str) -> list[Path]:
    """What lies in a folder of models; nothing, with a warning, where that cannot be had."""
    try:
        return sorted(Path(plugins("models")[home]).iterdir())
    except (DiffscaleError, OSError, TypeError) as error:
        warnings.warn(f"The models {home} of {plugins('models').source(home)} are left out: {error}", stacklevel=2)
        return []


def shipped() -> dict[str, str]:
    """The one-line description of every network of `shipped_folders`, by name."""
    return {name: read_manifest(str(folder))["description"] for name, folder in shipped_folders().items()}


def source(name: str) -> str:
    """The package that a shipped network comes from, with its version."""
    homes, folder = plugins("models"), shipped_folders()[name]
    return next(homes.source(home) for home in homes if folder in _folders_of(home))


def locate(model: str) -> str:
    """The folder of a shipped model or of a local path, or the Hub id unchanged.

    Raises UnknownName for a plain word that is neither (a Hub id has an owner: `owner/name`).
    """
    if model in (folders := shipped_folders()):
        return str(folders[model])
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    if model == DEFAULT_MODEL:
        raise UnknownName(f"The model {model} {HOW_TO_GET_SHAPES}")
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise _unknown_model(model)
    return model


def _unknown_model(model: str) -> UnknownName:
    """The error for what is no model; a folder with almost that name, beside the one that was meant, is named."""
    path, names = Path(model).expanduser(), shipped()
    if "/" in model or not get_close_matches(model, names, n=1):
        with suppress(OSError):
            folders = [each.name for each in path.parent.iterdir() if each.is_dir()]
            if near := get_close_matches(path.name, folders, n=1):
                return UnknownName(f"There is no folder {model}, did you mean {str(path.parent / near[0])!r}?")
    return unknown("model (neither shipped, nor a folder, nor a Hub id owner/name):", model, names)


def local_path(model: str) -> Path | None:
    """The file or folder that `model` means on this machine; None for a Hub id.

    Raises UnknownName for a plain word that is nothing of these.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path
    where = Path(locate(model))
    return where if where.is_dir() else None


class _Call(BaseModel, extra="allow"):
    num_inference_steps: int = Field(default=1, ge=1)


class _Manifest(BaseModel, extra="allow"):
    description: str = ""
    base: str = ""
    world: str = ""
    verifier: str = ""
    counterparts: dict[str, str] = {}
    vae: str = "vae"
    classes: str | list[str] = "imagenet"
    call: _Call = _Call()


def read_manifest(folder: str) -> dict[str, Any]:
    """What `diffscale.json` in `folder` says; nothing where there is none. Raises DiffscaleError for what is wrong."""
    path = Path(folder) / "diffscale.json"
    return checked(_Manifest, read_config(path), path).model_dump(exclude_unset=True) if path.exists() else {}


def manifests(model: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """`model` and what its folder says of itself, then the same of the model that its `base` names, and so on.

    A folder with a LoRA names the model that it belongs to. Raises DiffscaleError for one that comes back to itself,
    and as `locate` and `read_manifest` do.
    """
    seen: list[str] = []
    while model:
        where = locate(model)
        if where in seen:
            raise DiffscaleError(
                f"The base of {model} is {model} itself, or comes back to it: mend its diffscale.json."
            )
        seen.append(where)
        manifest = read_manifest(where)
        yield model, manifest
        model = str(manifest.get("base", ""))


@cache
def verifier_networks() -> dict[str, str]:
    """The shipped networks that are verifiers by their own names, and the factory that loads each.

    A network's folder states its factory in diffscale.json, as `verifier`.
    """
    manifests = {name: read_manifest(str(folder)) for name, folder in shipped_folders().items()}
    return {name: manifest["verifier"] for name, manifest in manifests.items() if manifest.get("verifier")}


def verifier_names() -> list[str]:
    """All names of verifiers, sorted: what packages offer, and shipped networks that are verifiers."""
    return sorted({*plugins("verifiers"), *verifier_networks()})
