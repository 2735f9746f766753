"""An example of a plug-in for diffscale."""

from pathlib import Path
from typing import Final

MODELS: Final = Path(__file__).parent / "models"
"""A folder with a folder for each model: a pipeline of diffusers with a `diffscale.json` that describes it."""


def weather() -> list[str]:
    """Four prompts of weather."""
    return ["rain", "snow at night", "fog over a lake", "a thunderstorm"]
