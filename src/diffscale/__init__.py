"""Spend compute at inference, get better samples: search over noises and sampling trajectories."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffscale.api import search
    from diffscale.engine.results import Result
    from diffscale.models.options import LoadOptions

__all__ = ["LoadOptions", "Result", "search"]
__version__ = "0.1.0"

_HOMES = {"LoadOptions": "diffscale.models.options", "Result": "diffscale.engine.results", "search": "diffscale.api"}


def __getattr__(name: str) -> Any:
    """What the package offers is imported when it is first used: torch and diffusers take seconds."""
    if name not in _HOMES:
        raise AttributeError(f"module 'diffscale' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
