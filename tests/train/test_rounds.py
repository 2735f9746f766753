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

    class Placed(SharpenRlhf):
        def use_batch(self, number: int) -> Any:
            seen.append(number)
            return SimpleNamespace(captions=["a", "b"])

        def keys(self, *_: Any) -> torch.Tensor:
            return torch.arange(2)

        def select(self, *_: Any) -> Any:
            return None

        def make_samples(self, keys: torch.Tensor) -> list[torch.Tensor]:
            made.append(seen[-1])
            return [keys]

    base = SimpleNamespace(policy=SimpleNamespace(like=torch.empty(0)))
    data: Any = SimpleNamespace(set_own_prompts=lambda _: None, base=base)
    method = Placed(configs.resolve("sharpen-rlhf", None, {**LEAST, **more}), data, [], None)
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
    monkeypatch.setattr(iterpo.Iterpo, "use_batch", lambda *_: batch)
    monkeypatch.setattr(iterpo.Iterpo, "keys", lambda *_: torch.arange(2))
    data: Any = SimpleNamespace(base=SimpleNamespace(policy=None))
    method = iterpo.Iterpo(configs.resolve("iterpo", None, LEAST), data, [], None)
    method.loss(method.gather(0))
    assert told == [batch.captions]
