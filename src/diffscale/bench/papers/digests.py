"""What changes when weights do."""

import hashlib
from functools import cache
from pathlib import Path
from typing import Final

from diffscale._util.fingerprints import json_digest
from diffscale.models.shipped import locate, read_manifest, shipped_folders

_SUFFIXES: Final = (".safetensors", ".json", ".txt")


@cache
def weights_digest(model: str) -> str:
    """Twelve digits that change with what decides the results of a shipped model or a folder; empty for a Hub id.

    These are its weights and configurations, and of its `diffscale.json` the `call` alone: a description, or what
    else a later version states there, makes no results stale.
    """
    folder = Path(locate(model))
    if not folder.is_dir():
        return ""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.suffix in _SUFFIXES and path.name != "figures.json"):
        manifest = path == folder / "diffscale.json"
        content = json_digest(read_manifest(str(folder)).get("call", {})).encode() if manifest else path.read_bytes()
        digest.update(f"{path.relative_to(folder)} {len(content)}".encode())
        digest.update(content)
    return digest.hexdigest()[:12]


def shipped_verifiers() -> dict[str, str]:
    """Digests of all shipped networks that are no pipelines: what scores of Shapes depend on."""
    folders = (path for path in shipped_folders().values() if (path / "model.safetensors").exists())
    return {path.name: weights_digest(path.name) for path in folders}
