"""Shapes: a small world of procedural scenes, the networks that were trained on it, and its exact judge."""

from pathlib import Path
from typing import Final

MODELS: Final = Path(__file__).parent / "weights"
"""The folder of the networks, a folder each."""
