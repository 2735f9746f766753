"""Spend compute at inference, get better samples: search over noises and sampling trajectories."""

from diffscale.api import search
from diffscale.types import Result

__all__ = ["Result", "search"]
__version__ = "0.1.0"
