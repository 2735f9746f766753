"""shapes-sdxl-sharpened: a LoRA of shapes-sdxl that puts search by shapes-clip into the weights.

RLHF Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146), with the settings of B.table1 and a number of steps.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from safetensors.torch import load_file, save_file

from diffscale.bench.papers import trainings
from diffscale.bench.papers.recipe import RECIPES

NAME: Final = "shapes-sdxl-sharpened"
STEPS: Final = 400


def train(checkpoints: Path, folder: Path, steps: int | None = None) -> dict[str, Any]:
    """A LoRA of shapes-sdxl, trained on captions of the data set `plain`; returns what the run measured."""
    # So many steps whatever their time, so that each is a function of those before.
    given = {"like": "sharpen-rlhf", "max_train_seconds": None, "max_train_steps": steps or STEPS}
    settings = trainings.expanded({NAME: given}, RECIPES, "B", "shapes")[NAME]
    run = trainings.make(settings, NAME, checkpoints / "sdxl-sharpened")
    file = "pytorch_lora_weights.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: t.half() for name, t in load_file(run / file).items()}, folder / file, {"format": "pt"})
    result = json.loads((run / "result.json").read_text())
    return {name: result[name] for name in ("steps", "seconds_per_step", "reward", "peak_memory_bytes", "last")}
