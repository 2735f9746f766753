"""Spend compute at inference, get better samples: search over noises and sampling trajectories."""

from diffscale.api import search
from diffscale.engine.results import Result
from diffscale.models.options import LoadOptions

__all__ = ["LoadOptions", "Result", "search"]
__version__ = "0.1.0"
