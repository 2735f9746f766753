"""shapes-sdxl-sharpened: a LoRA of shapes-sdxl that puts search by shapes-clip into the weights.

RLHF Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146), with the settings of B.table1 and a number of steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from diffscale.bench.papers import trainings
from diffscale.bench.papers.recipe import RECIPES

NAME: Final = "shapes-sdxl-sharpened"
STEPS: Final = 400


def train(folder: Path, steps: int = STEPS) -> Path:
    """Train on captions of the data set `plain`, or go on from the checkpoint in `folder`; the folder of the run."""
    return trainings.make(settings(steps), NAME, folder)


def settings(steps: int = STEPS) -> dict[str, Any]:
    """Those of the recipes, but so many steps whatever their time, so that each is a function of those before."""
    given = {"like": "sharpen-rlhf", "max_train_seconds": None, "max_train_steps": steps}
    return trainings.expanded({NAME: given}, RECIPES, "B", "shapes")[NAME]
