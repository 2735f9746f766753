"""Guards: what a held-out verifier decides, what is kept of the way, and how alike pictures have become."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file
from test_train_methods import GROUPS, given

from diffscale._util.errors import DiffscaleError
from diffscale.train import configs, guards
from diffscale.train.guards import Guard


def weights(value: float) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor([value])}


def test_the_best_weights_are_kept_and_a_fall_while_the_reward_rises_ends_it() -> None:
    guard = Guard({"clip": 1.0, "other": 2.0}, "held", keep_best=True, patience=2)
    # In deviations of the first pictures, other counts 2 * 10 times as much as clip.
    told = [
        ([1.0, 3.0], [0.0, 0.2], [5.0, 5.0]),
        ([2.0, 3.0], [0.0, 0.2], [6.0, 6.0]),
        ([3.0, 3.0], [0.0, 0.2], [5.5, 5.5]),
        ([9.0, 9.0], [-0.5, -0.5], [5.0, 5.0]),  # the sum of rewards fell
        ([3.0, 3.0], [0.1, 0.2], [5.0, 5.0]),
        ([3.0, 3.0], [0.1, 0.2], [4.0, 4.0]),
    ]
    said = []
    for step, (clip, other, held) in enumerate(told):
        scores = {"clip": clip, "other": other, "held": held, "parts": [[1.0, 2.0]] * 2}
        said.append(guard.see(step, scores, {"recall": 0.5}, weights(step)))
    assert said[:5] == [""] * 5 and guard.best == weights(1.0)
    assert (
        said[5]
        == "The training stopped at step 5, since held fell from 6.0000 after step 1 to 4.0000 while the reward rose."
    )
    assert guard.seen[3] == {"step": 3, "clip": 9.0, "other": -0.5, "held": 5.0, "recall": 0.5}


def test_without_a_held_out_verifier_nothing_is_decided() -> None:
    guard = Guard({"clip": 1.0}, None)
    assert guard.see(0, {"clip": [1.0]}, {}, weights(0)) == guard.see(1, {"clip": [0.0]}, {}, weights(1)) == ""
    assert len(guard.seen) == 2 and not guard.best


def test_recall_and_diversity_by_hand() -> None:
    def corner(image: torch.Tensor) -> torch.Tensor:
        return image[:, :2, 0, 0]

    def pictures(*points: tuple[float, float]) -> list[torch.Tensor]:
        return [torch.tensor([*point, 0.0]).view(3, 1, 1) for point in points]

    base = pictures((0, 1), (1, 0), (0, 1), (5, 5))
    now = pictures((0, 1), (1, 0), (0, 1), (1, 0))
    found = guards.spread(corner, base, now, ["a", "a", "b", "b"])
    assert found == {"recall": 0.75, "diversity": pytest.approx(1.0)}  # three of four are within reach
    alike = guards.spread(corner, base, pictures(*[(0, 1)] * 4), ["a", "a", "b", "b"])
    assert alike["diversity"] == pytest.approx(0.0) and alike["recall"] == 0.5
    assert guards.spread(corner, base[:2], now[:2], ["a", "b"]) == {}


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"validation_verifier": ["clip model=x"]}, "clip model=x is a reward"),
        ({"keep_best": True, "validation_verifier": ["aesthetic"]}, "and validation_steps"),
        ({"patience": 2, "validation_steps": 5}, "go by a validation_verifier"),
    ],
)
def test_guards_that_cannot_be_met_are_refused(given: dict[str, Any], says: str) -> None:
    least = {"pretrained_model_name_or_path": "base", "train_prompts": "a.txt", "reward": ["clip weight=2"]}
    with pytest.raises(DiffscaleError, match=says):
        guards.check(configs.resolve("nft", None, least | given))


def test_the_best_weights_are_given_and_outlive_a_kill(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from diffscale.train import validation

    told, own, red = [0.1, 0.9, 0.5, 0.4, 0.3, 0.9], validation.save, tiny.redness
    made: list[str] = []  # of which step the pictures are

    def held(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return torch.full((len(images),), told[len(made)])

    def rising(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return red(images, prompts) - 10 * held(images, prompts)

    def save(folder: Path, name: str, *rest: Any) -> None:
        own(folder, name, *rest)
        made.append(name)

    monkeypatch.setattr(tiny, "numb", held)
    monkeypatch.setattr(tiny, "redness", rising)
    monkeypatch.setattr(validation, "save", save)
    whole = tmp_path / "whole"
    guarded = [*GROUPS, "--validation_steps", 1, "--validation_verifier", "tiny:numb", "--keep_best", "--patience", 3]
    guarded += ["--checkpointing_steps", 1, "--max_train_steps", 9]
    assert tiny.cli(monkeypatch, *given(data, "nft", whole, *guarded)) == 0
    result = json.loads((whole / "result.json").read_text())
    assert result["steps"] == 4 and "tiny:numb fell from 0.9000 after step 1 to 0.3000" in result["notes"][-1]
    assert "while the reward rose" in " ".join(capsys.readouterr().out.split())
    assert [each["step"] for each in result["validations"]] == [0, 1, 2, 3, 4] and made[-1] == "after"
    best, last = (load_file(whole / f"checkpoint-{step}" / "trained.safetensors") for step in (1, 4))
    lora = load_file(whole / "pytorch_lora_weights.safetensors")
    numbers = [torch.cat([each.flatten() for each in found.values()]).sort().values for found in (lora, best, last)]
    assert torch.equal(numbers[0], numbers[1]) and not torch.equal(numbers[0], numbers[2])
    # A checkpoint is of before its own pictures, so those of step 2 are made again.
    made[:] = made[:2]
    cut = tmp_path / "cut"
    cut.mkdir()
    for name in ("config.yaml", "log.jsonl", "checkpoint-2", "validation"):
        (shutil.copytree if (whole / name).is_dir() else shutil.copyfile)(whole / name, cut / name)
    assert tiny.cli(monkeypatch, *given(data, "nft", cut, *guarded, "--resume", "latest")) == 0
    again = json.loads((cut / "result.json").read_text())
    assert again["validations"] == result["validations"] and made[2:] == ["step-2", "step-3", "step-4", "after"]
    same = load_file(cut / "pytorch_lora_weights.safetensors")
    assert all(torch.equal(same[name], lora[name]) for name in lora)
