"""Which network a verifier takes if none is named: the one for the pictures of a model, or the published one."""

from __future__ import annotations

from typing import TypeVar

from diffscale.models.files import locate, read_manifest

Published = TypeVar("Published", str, None)


def default_model(image_model: str, kind: str, published: Published) -> str | Published:
    """The network of a `kind`, such as `clip`, for pictures of `image_model`; `published` if that names none.

    `image_model`: a shipped name, a folder, a Hub id or nothing. A folder names its networks in diffscale.json, as
    `counterparts`: {"clip": "shapes-clip"}; where it names none of the kind, as that of a LoRA, its `base` does.
    """
    while image_model:
        manifest = read_manifest(locate(image_model))
        if kind in manifest.get("counterparts", {}):
            return str(manifest["counterparts"][kind])
        image_model = manifest.get("base", "")
    return published
