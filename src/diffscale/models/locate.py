"""Where networks lie: the shipped ones by name, local folders, Hub ids."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

from diffscale._util.errors import unknown

WEIGHTS: Final = Path(__file__).parents[1] / "shapes" / "weights"
"""Where the shipped networks lie."""


def shipped() -> dict[str, str]:
    """Name and one-line description of every shipped pipeline and verifier network."""
    return {
        folder.name: json.loads((folder / "diffscale.json").read_text())["description"]
        for folder in sorted(WEIGHTS.iterdir())
        if (folder / "diffscale.json").exists()
    }


def locate(model: str) -> str:
    """The folder of a shipped model or of a local path, or the Hub id unchanged.

    Raises UnknownName for a plain word that is neither (a Hub id has an owner: `owner/name`).
    """
    if (WEIGHTS / model / "diffscale.json").exists():
        return str(WEIGHTS / model)
    if Path(model).expanduser().is_dir():
        return str(Path(model).expanduser())
    if model.count("/") != 1 or model.startswith((".", "/", "~")):
        raise unknown("model (neither shipped, nor a folder, nor a Hub id owner/name):", model, shipped())
    return model
