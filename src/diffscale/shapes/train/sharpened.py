"""shapes-sdxl-sharpened: a LoRA of shapes-sdxl that puts search by shapes-clip into the weights.

RLHF Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146), with the settings of B.table1 and more steps.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from diffscale.errors import DiffscaleError
from diffscale.shapes import data
from diffscale.train.run import loop
from diffscale.train.run.settings import TrainConfig, resolve

STEPS: Final = 400
SETTINGS: Final = {
    "pretrained_model_name_or_path": "shapes-sdxl",
    "reward": ["clip"],
    "rank": 16,
    "learning_rate": 5e-4,
    "lr_scheduler": "constant_with_warmup",
    "lr_warmup_steps": 10,
    "mixed_precision": "bf16",
    "train_batch_size": 8,
    "checkpointing_steps": 25,
    "checkpoints_total_limit": 1,
    "n": 3,
    "m": 3,
    "beta": 1000.0,
    "snr_gamma": 5.0,
    "timestep_bias_strategy": "range",
    "timestep_bias_begin": 600,
    "timestep_bias_multiplier": 1000.0,
    "own_samples": "each",
    "sample_steps": 8,
    "samples_per_round": 128,
    "num_inner_epochs": 4,
}


def train(folder: Path, steps: int = STEPS) -> Path:
    """Train on captions of the data set `plain`, or go on from the checkpoint in `folder`; the folder of the run."""
    captions, run = folder / "plain", folder / "run"
    if not captions.exists():
        data.write("plain", captions)
    places = {"train_data_dir": str(captions), "cache_dir": str(folder / "encoded"), "output_dir": run}
    ended = loop.train(config(steps).model_copy(update={**places, "resume_from_checkpoint": "latest"}))
    if ended.how == "stopped":
        raise DiffscaleError(f"Training stopped at step {ended.step}, which is saved: give the same command again.")
    return run


def config(steps: int = STEPS) -> TrainConfig:
    """The settings of `steps` steps, of which each is a function of those before."""
    return resolve("sharpen-rlhf", None, {**SETTINGS, "train_data_dir": "plain", "max_train_steps": steps})
