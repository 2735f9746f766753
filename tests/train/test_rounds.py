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
    made: list[int] = []

    def use_batch(number: int) -> SimpleNamespace:
        seen.append(number)
        return SimpleNamespace(captions=["a", "b"])

    class Placed(SharpenRlhf):
        def select(self, *_: Any) -> Any:
            return None

        def make_samples(self, captions: list[str], keys: torch.Tensor) -> list[torch.Tensor]:
            made.append(seen[-1])
            return [keys]

    context: Any = SimpleNamespace(
        settings=configs.resolve("sharpen-rlhf", None, {**LEAST, **more}),
        data=SimpleNamespace(
            set_own_prompts=lambda _: None, base=SimpleNamespace(policy=SimpleNamespace(like=torch.empty(0)))
        ),
        use_batch=use_batch,
        keys=lambda *_: torch.arange(2),
    )
    method = Placed(context)
    for number in range(8):
        method.gather(number)
    assert seen == places and made == sorted(set(places))


def test_iterpo_tells_rewards_the_captions(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []

    def loss(*_: Any, captions: list[str]) -> tuple[torch.Tensor, dict[str, float]]:
        told.append(captions)
        return torch.zeros(()), {}

    monkeypatch.setattr(iterpo, "iterpo_loss", loss)
    batch = SimpleNamespace(captions=["a tree", "a hill"], prompts=["", "a hill"])
    context: Any = SimpleNamespace(
        settings=configs.resolve("iterpo", None, LEAST),
        rewards=[],
        use_batch=lambda _: batch,
        keys=lambda _: torch.arange(2),
        rows=torch.arange(2),
        data=SimpleNamespace(base=SimpleNamespace(policy=None)),
    )
    method = iterpo.Iterpo(context)
    method.loss(method.gather(0))
    assert told == [batch.captions]
