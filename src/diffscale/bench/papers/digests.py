"""What changes when settings or weights do."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any, Final

from diffscale.models.files import read_manifest
from diffscale.models.locate import WEIGHTS, locate

_WEIGHTS: Final = (".safetensors", ".json", ".txt")


def digest(made_of: Any) -> str:
    """Twelve hexadecimal digits of what JSON can hold."""
    return hashlib.sha256(json.dumps(made_of, sort_keys=True, default=str).encode()).hexdigest()[:12]


@cache
def weights_digest(model: str) -> str:
    """Twelve digits that change with what decides the results of a shipped model or a folder; empty for a Hub id.

    These are its weights and configurations, and of its `diffscale.json` the `call` alone: a description, or what
    else a later version states there, makes no results stale.
    """
    where = Path(locate(model))
    if not where.is_dir():
        return ""
    found = hashlib.sha256()
    for path in sorted(path for path in where.rglob("*") if path.suffix in _WEIGHTS and path.name != "figures.json"):
        manifest = path == where / "diffscale.json"
        content = digest(read_manifest(str(where)).get("call", {})).encode() if manifest else path.read_bytes()
        found.update(f"{path.relative_to(where)} {len(content)}".encode())
        found.update(content)
    return found.hexdigest()[:12]


def shipped_verifiers() -> dict[str, str]:
    """Digests of all shipped networks that are no pipelines: what scores of Shapes depend on."""
    folders = (path for path in sorted(WEIGHTS.iterdir()) if (path / "model.safetensors").exists())
    return {path.name: weights_digest(path.name) for path in folders}
