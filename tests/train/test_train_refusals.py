"""What makes no sense is refused before anything is trained, in a sentence; a reward that fails ends it in one."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch
from diffscale_shapes.commands import app
from test_train_methods import METHODS, given
from typer.testing import CliRunner

from diffscale.train.run_directory import list_checkpoints

FOREIGN = {
    "thesis": {"thesis.tex": "all of it"},
    "folders": {"photos/a.txt": "x"},
    "generate": {"config.yaml": "prompt: a red tree\nbudget: 4\n", "journal.sqlite": ""},
    "another tool": {"config.yaml": "method: magic\n"},
}


def refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert tiny.cli(monkeypatch, *arguments) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert error.count("error:") == 1 and "Traceback" not in error
    return error


def files(folder: Path) -> dict[str, str]:
    there = (path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock")
    return {str(path.relative_to(folder)): path.read_text() for path in there}


@pytest.mark.parametrize("what", FOREIGN)
@pytest.mark.parametrize("resumed", [False, True])
def test_a_folder_with_other_things_is_left_as_it_is(
    what: str,
    resumed: bool,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, text in FOREIGN[what].items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    more = ["--resume", "latest"] if resumed else []
    error = refused(monkeypatch, capsys, *given(data, "sft", tmp_path, *more))
    assert f"{tmp_path} exists and is not a training" in error
    assert files(tmp_path) == FOREIGN[what]


@pytest.mark.parametrize("method", ["sft", "sharpen-sft", "sharpen-rlhf", "ddpo", "d3po", "iterpo"])
@pytest.mark.parametrize("flag", ["--image_column", "--caption_column"])
def test_a_column_that_is_not_there_is_told(
    method: str,
    flag: str,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if flag == "--image_column" and method not in ("sft", "sharpen-sft"):
        return  # they have no such flag
    error = refused(monkeypatch, capsys, *given(data, method, tmp_path / "out", *METHODS[method], flag, "nope"))
    assert "'nope'" in error and f"leave {flag} out" in error


def test_a_rank_above_all_layers_is_told(
    data: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = refused(monkeypatch, capsys, *given(data, "sft", tmp_path / "out", "--rank", 100_000))
    assert "A LoRA of UNet2DConditionModel has a rank of " in error and "at most, not 100000" in error


@pytest.mark.parametrize("steps", ["0", "-3"])
def test_a_recipe_has_steps(steps: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["train", "sit-s", "--steps", steps, "--output", str(tmp_path)])
    assert done.exit_code == 2 and "--steps" in done.output and not list(tmp_path.iterdir())


@pytest.mark.parametrize("method", [name for name in METHODS if name not in ("sft", "dpo", "spin")])
@pytest.mark.parametrize("late", [False, True])
def test_a_reward_that_raises_ends_every_method_in_a_sentence(
    method: str,
    late: bool,
    data: SimpleNamespace,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out, own = tmp_path / "out", tiny.redness

    def failing(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        if not late or list_checkpoints(out):
            raise KeyError("colour")
        return own(images, prompts)

    monkeypatch.setattr(tiny, "redness", failing)
    error = refused(
        monkeypatch,
        capsys,
        *given(data, method, out, *METHODS[method], "--checkpointing_steps", 1, "--max_train_steps", 3),
    )
    assert "the reward 'tiny:redness' raised KeyError: 'colour', in line" in error
    if late:
        assert f"the last good checkpoint is {list_checkpoints(out)[-1]}: go on from there" in error
    else:
        assert "Training stopped at step 0" in error and "there is no checkpoint yet: begin again" in error
