"""Which samples a pass learns from, and what its rewards are told."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from diffscale.train import configs
from diffscale.train.methods import iterpo
from diffscale.train.methods.sharpen import SharpenRlhf

LEAST = {"pretrained_model_name_or_path": "base", "train_prompts": "a.txt", "reward": ["clip"], "train_batch_size": 2}


@pytest.mark.parametrize(
    ("samples", "places"), [(None, [0, 1, 0, 1, 2, 3, 2, 3]), (8, [0, 1, 2, 3, 0, 1, 2, 3])], ids=["step", "two steps"]
)
def test_own_samples_are_those_of_whole_steps(samples: int | None, places: list[int]) -> None:
    more = {"gradient_accumulation_steps": 2, "num_inner_epochs": 2, "samples_per_round": samples}
    seen: list[int] = []

    def at(place: int) -> SimpleNamespace:
        seen.append(place)
        return SimpleNamespace(captions=["a", "b"])

    class NeedsIntermediateX0(SharpenRlhf):
        def chosen(self, *_: Any) -> Any:
            return None

        def _sampled(self, unit: torch.Tensor, *_: Any) -> torch.Tensor:
            return unit

    stage: Any = SimpleNamespace(
        settings=configs.resolve("sharpen-rlhf", None, {**LEAST, **more}),
        materials=SimpleNamespace(batches=SimpleNamespace(at=at), tell=lambda _: None, tell_own=lambda _: None),
        policy=SimpleNamespace(prior=lambda keys: keys, like=torch.empty(0)),
        keys=lambda *_: torch.arange(2),
        rows=torch.arange(2),
    )
    method = NeedsIntermediateX0(stage)
    for number in range(8):
        method.gather(number)
    assert seen == places


def test_iterpo_tells_rewards_the_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def loss(*_: Any, captions: list[str]) -> tuple[torch.Tensor, dict[str, float]]:
        told.append(captions)
        return torch.zeros(()), {}

    monkeypatch.setattr(iterpo, "iterpo_loss", loss)
    batch = SimpleNamespace(captions=["a tree", "a hill"], prompts=["", "a hill"])
    stage: Any = SimpleNamespace(
        settings=configs.resolve("iterpo", None, LEAST),
        rewards=[],
        batch=lambda _: batch,
        keys=lambda _: torch.arange(2),
        rows=torch.arange(2),
        policy=None,
    )
    method = iterpo.Iterpo(stage)
    method.loss(method.gather(0))
    assert told == [batch.captions]
