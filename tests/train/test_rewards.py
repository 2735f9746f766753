"""Rewards: mixtures in units of their deviation, checked and counted."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import tiny
import torch

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError
from diffscale.train import rewards
from diffscale.train.rewards import BadReward, Mixture, Reward
from diffscale.verifiers.function import FunctionVerifier


def mixture(*weights: float) -> Mixture:
    functions = (tiny.redness, tiny.darkness)
    return Mixture([Reward(FunctionVerifier(f.__name__, f), w) for f, w in zip(functions, weights, strict=True)])


def pictures(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def standard(values: torch.Tensor, of: torch.Tensor) -> torch.Tensor:
    return (values.double() - of.double().mean()) / of.double().std(correction=0)


def test_a_mixture_is_the_weighted_sum_in_units_of_what_came_before() -> None:
    mixed, first, then = mixture(1.0, 0.5), pictures(6), pictures(3, 1)
    prompts = [""] * 6
    own = standard(tiny.redness(first, prompts), tiny.redness(first, prompts))
    own += 0.5 * standard(tiny.darkness(first, prompts), tiny.darkness(first, prompts))
    torch.testing.assert_close(mixed(first, prompts), own)
    mixed.end_step(mixed.new)
    wanted = standard(tiny.redness(then, prompts), tiny.redness(first, prompts))
    wanted += 0.5 * standard(tiny.darkness(then, prompts), tiny.darkness(first, prompts))
    torch.testing.assert_close(mixed(then, prompts[:3]), wanted)
    # Within a step nothing moves: the order in which pictures are scored does not matter.
    apart = torch.cat([mixed(then[i : i + 1], [""]) for i in range(3)])
    torch.testing.assert_close(apart, wanted)


def test_its_state_is_kept() -> None:
    mixed, other, prompts = mixture(1.0, 1.0), mixture(1.0, 1.0), [""] * 5
    mixed(pictures(5), prompts)
    mixed.end_step(mixed.new)
    other.load_state_dict(mixed.state_dict())
    assert torch.equal(mixed(pictures(5, 2), prompts), other(pictures(5, 2), prompts))


def test_a_reward_is_checked_counted_and_differentiable() -> None:
    reward, images = Reward(FunctionVerifier("red", tiny.redness)), pictures(4).requires_grad_()
    reward(images, [""] * 4).sum().backward()
    assert images.grad is not None and reward.cost.pictures == 4 and reward.cost.seconds > 0
    with torch.no_grad():
        images[2] = torch.nan
    with pytest.raises(BadReward, match="'third'"):
        reward(images, ["", "", "third", ""])


def test_verifiers_of_more_than_single_pictures_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    recording = SimpleNamespace(name="pairs", record_level=0.4)
    monkeypatch.setattr(verifiers, "load", lambda *_, **__: recording)
    with pytest.raises(DiffscaleError, match="more than single pictures"):
        rewards.load(["clip_ssl"], "cpu", "")


def test_text_and_weight() -> None:
    assert rewards.split_weight("clip model=a weight=0.5") == ("clip model=a", 0.5)
    assert rewards.split_weight("clip") == ("clip", 1.0)
    found = rewards.load(["tiny:redness", "tiny:darkness weight=2"], "cpu", "")
    assert [(one.name, one.weight) for one in found] == [("tiny:redness", 1.0), ("tiny:darkness", 2.0)]
