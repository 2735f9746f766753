"""How a verifier is built by its factory, and which network it takes if none is named."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from diffscale.models.shipped import manifests


def counterpart(image_model: str, kind: str) -> str | None:
    """The network of a `kind`, such as `clip`, for pictures of `image_model`; None if that names none.

    `image_model`: a shipped name, a folder, a Hub id or nothing. A folder names its networks in diffscale.json, as
    `counterparts`: {"clip": "shapes-clip"}; where it names none of the kind, as that of a LoRA, its `base` does.
    """
    named = (manifest.get("counterparts", {}) for _, manifest in manifests(image_model))
    return next((str(counterparts[kind]) for counterparts in named if kind in counterparts), None)


def build(factory: Callable[..., Any], given: Mapping[str, Any], kind: str | None, **context: Any) -> Any:
    """What `factory` makes of the arguments `given`, without a `model` of the `counterpart` of that kind, if there is.

    `context`: `device` and `image_model`, each passed on to a factory that has an argument of the name.
    """
    takes = inspect.signature(factory).parameters
    usual = {name: value for name, value in context.items() if name in takes}
    if kind is not None and "model" in takes.keys() - given and (model := counterpart(context["image_model"], kind)):
        usual["model"] = model
    return factory(**usual, **given)
