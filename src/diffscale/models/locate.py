"""Where networks lie: the shipped ones by name, local folders, Hub ids."""

from __future__ import annotations

import json
from pathlib import Path

from diffscale._util.errors import unknown
from diffscale.registry import plugins


def shipped_folders() -> dict[str, Path]:
    """The folder of every pipeline and verifier network that an installed package brings along, by name."""
    folders = (folder for home in plugins("models").values() for folder in sorted(Path(home).iterdir()))
    return {folder.name: folder for folder in folders if (folder / "diffscale.json").exists()}


def shipped() -> dict[str, str]:
    """The one-line description of every network of `shipped_folders`, by name."""
    return {
        name: json.loads((folder / "diffscale.json").read_text(encoding="utf-8"))["description"]
        for name, folder in shipped_folders().items()
    }


def locate(model: str) -> str:
    """The folder of a shipped model or of a local path, or the Hub id unchanged.

    Raises UnknownName for a plain word that is neither (a Hub id has an owner: `owner/name`).
    """
    if model in (folders := shipped_folders()):
        return str(folders[model])
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise unknown("model (neither shipped, nor a folder, nor a Hub id owner/name):", model, shipped())
    return model
