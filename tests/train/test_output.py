"""What a training leaves beside its weights, and trackers that do not begin."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from accelerate import Accelerator

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_json
from diffscale.report.text import NotDrawn
from diffscale.train import configs, output, run_directory, validation
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


def _fail(*_: Any, **__: Any) -> None:
    raise ValueError("odd")


@pytest.mark.parametrize("failing", ["nothing", "everything"])
def test_drawings_of_odd_prompts_or_none_at_all_cost_no_training(
    failing: str, data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if failing == "everything":
        for where, name in ((output.pictures, "grid"), (output, "training_curve"), (output, "_write_card")):
            monkeypatch.setattr(where, name, _fail)
    odd = ["a\nb $$", r"$\frac{1}$ 日本語", "x" * 5_000]
    given = ["--validation_prompt", odd[0], "--validation_prompt", odd[1], "--validation_prompt", odd[2]]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        code = tiny.cli(
            monkeypatch, "sft", "--pretrained_model_name_or_path", data.base, "--train_data_dir", data.pictures,
            "--output_dir", tmp_path, "--cache_dir", data.cache, "--max_train_steps", 1, "--rank", 2, *given,
        )  # fmt: skip
    assert code == 0 and output.read_result(tmp_path) is not None
    assert (tmp_path / "pytorch_lora_weights.safetensors").exists()
    told = [str(one.message) for one in caught if issubclass(one.category, NotDrawn)]
    assert len(told) == (0 if failing == "nothing" else 4) and all("all else is there" in each for each in told)
    files = [name for name in ("validation.png", "loss.png") if (tmp_path / name).exists()]
    assert files == ([] if told else ["validation.png", "loss.png"])
    if not told:  # the card shows what there is
        assert re.findall(r"!\[.*\]\((.*)\)", (tmp_path / "README.md").read_text(encoding="utf-8")) == files


def test_broken_pictures_of_before_cost_no_training(tmp_path: Path) -> None:
    validation.save(tmp_path, "before", Validation([torch.rand(3, 4, 4)], {"clip": [0.5]}))
    scores, picture = (tmp_path / "validation" / "before" / name for name in ("scores.json", "000.png"))
    for path in (scores, picture):
        whole = path.read_bytes()
        for content in (b"", whole[: len(whole) // 2], b"[]", b"null"):
            path.write_bytes(content)
            with pytest.warns(UserWarning, match="pictures of before are not compared"):
                assert validation.load(tmp_path, "before") is None
        path.write_bytes(whole)
    assert validation.load(tmp_path, "before") is not None


def test_a_checkpoint_whose_state_is_broken_is_told(tmp_path: Path) -> None:
    whole = {
        "step": 1,
        "seconds": 1.0,
        "rewards": {},
        "decoding": {},
        "processes": 1,
        "statistics": [],
        "mixture": None,
        "validations": [],
    }
    text = json.dumps(whole)
    (tmp_path / "state.json").write_text(text, encoding="utf-8")
    assert read_json(tmp_path / "state.json", run_directory._Saved) == whole
    for content in [*(text[:n] for n in range(len(text))), "[]", "{}", "null", '{"step": 1}']:
        (tmp_path / "state.json").write_text(content, encoding="utf-8")
        assert read_json(tmp_path / "state.json", run_directory._Saved) is None
