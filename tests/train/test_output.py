"""What a training leaves beside its weights, and trackers that do not begin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from diffscale._util.errors import DiffscaleError
from diffscale.train import configs, validation
from diffscale.train.run_directory import Log
from diffscale.train.validation import Validation


def test_pictures_of_a_run_that_was_killed_do_not_mix_with_the_next(tmp_path: Path) -> None:
    for count in (3, 2):
        validation.save(tmp_path, "before", Validation([torch.rand(3, 4, 4)] * count, {"clip": [0.5] * count}))
    found = validation.load(tmp_path, "before")
    assert found is not None and len(found.images) == len(found.scores["clip"]) == 2


def test_a_tracker_that_does_not_begin_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def init_trackers(*_: Any) -> None:
        raise RuntimeError("api_key not configured (no-tty)")

    accelerator = Accelerator(cpu=True)
    monkeypatch.setattr(accelerator, "init_trackers", init_trackers)
    given = {"pretrained_model_name_or_path": "base", "train_data_dir": "data", "report_to": ["wandb"]}
    config = configs.resolve("sft", None, {**given, "output_dir": str(tmp_path)})
    with pytest.raises(DiffscaleError, match=r"Reporting to wandb cannot begin.*api_key"):
        Log(accelerator, config, 0)
