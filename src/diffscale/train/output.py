"""What a finished training leaves: weights, the model card, pictures, plots and figures."""

from __future__ import annotations

import json
import resource
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.report.plots import training_curve
from diffscale.train import validation
from diffscale.train.base import Base
from diffscale.train.card import card
from diffscale.train.checkpoint_state import Progress
from diffscale.train.checkpoints import UNWRITTEN, last_good, sync, whole
from diffscale.train.configs import METHODS, TrainConfig
from diffscale.train.rewards import Reward
from diffscale.train.training_data import Materials


def write(
    settings: TrainConfig,
    base: Base,
    materials: Materials,
    rewards: Sequence[Reward],
    progress: Progress,
    lines: Sequence[dict[str, Any]],
) -> dict[str, Any]:
    """Write all of it to the folder of the run, `result.json` last, and return what that holds.

    Raises DiffscaleError if the disk does not take it; the last checkpoint has the weights.
    """
    folder = settings.output_dir
    try:
        _weights(folder, settings, base)
        result = _result(settings, base, materials, progress, lines)
        _pictures(folder, settings, base, materials)
        title = f"{settings.method} of {Path(base.name).name}"
        training_curve(lines, "loss", title, folder / "loss.png")
        rewarded = training_curve(lines, "reward", f"{title}, by {', '.join(settings.reward)}", folder / "rewards.png")
        (folder / "README.md").write_text(card(settings, base.name, materials.dataset, result, rewarded))
        whole(folder / "result.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    except UNWRITTEN as error:
        raise DiffscaleError(
            f"The training is done, but {folder} cannot be written to ({first_line(error)}): {last_good(folder)}; make "
            "room and give the same command with --resume_from_checkpoint latest."
        ) from error
    return result


def _weights(folder: Path, settings: TrainConfig, base: Base) -> None:
    """A LoRA, or a whole pipeline; beside their place first."""
    fresh = folder / ".weights.new"
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    described = {"description": f"{METHODS[settings.method]}, of {base.name}"}
    if settings.adapter is not None:
        base.save_lora(fresh)
        read_manifest: dict[str, Any] = {**described, "base": base.name}
    else:
        base.pipe.save_pretrained(fresh)
        read_manifest = {**described, "call": {"num_inference_steps": base.call.steps, **base.call.args}}
    (fresh / "diffscale.json").write_text(json.dumps(read_manifest, indent=2) + "\n")
    for path in sorted(fresh.iterdir()):
        if path.is_file():
            sync(path)
        else:
            shutil.rmtree(folder / path.name, ignore_errors=True)
        path.replace(folder / path.name)
    fresh.rmdir()
    sync(folder)


def _pictures(folder: Path, settings: TrainConfig, base: Base, materials: Materials) -> None:
    before, after = (validation.saved(folder, name) for name in ("before", "after"))
    if before is None or after is None or len(before[0]) != len(after[0]):
        return
    captions = validation.asked(materials, settings)
    title = f"{settings.method} of {Path(base.name).name}: the same seeds before and after"
    validation.strip(before[0], after[0], captions, title).save(folder / "validation.png")


def _result(
    settings: TrainConfig, base: Base, materials: Materials, progress: Progress, lines: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    before, after = (validation.saved(settings.output_dir, name) for name in ("before", "after"))
    leaked = materials.dataset.leaked
    steps = max(1, progress.step)
    own = [line["seconds"] for line in lines]
    return {
        "method": settings.method,
        "base": base.name,
        "steps": progress.step,
        "seconds": round(progress.seconds, 3),
        "seconds_per_step": progress.seconds / steps,
        # The first steps warm caches up.
        "median_seconds_per_step": sorted(own)[len(own) // 2] if own else None,
        "reward": {
            "verifiers": settings.reward,
            "seconds_per_step": progress.reward_seconds / steps,
            "decode_seconds_per_step": progress.decode_seconds / steps,
            "share_of_time": (progress.reward_seconds + progress.decode_seconds) / max(progress.seconds, 1e-9),
            "pictures": progress.pictures,
        },
        "peak_memory_bytes": _peak(),
        "trained_parameters": sum(p.numel() for p in base.trainable.values()),
        "rows": len(materials.dataset),
        "dropped_evaluation_prompts": {"rows": leaked.count, "suites": leaked.suites, "first": list(leaked.first)},
        "notes": list(materials.dataset.notes),
        "gains": {} if before is None or after is None else validation.gains(before[1], after[1]),
        "last": {name: value for name, value in (lines[-1] if lines else {}).items() if name != "step"},
    }


def _peak() -> int:
    """Most memory held so far by this process: of its GPU where it has one, else in all."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held if sys.platform == "darwin" else held * 1024
