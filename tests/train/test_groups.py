"""Groups of own samples: which are learned from, how good each is, rounds, rewards of several, and lagging weights."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from policies import policy_of
from torch import nn

from diffscale._util.errors import BudgetTooSmall, DiffscaleError
from diffscale.engine import noise
from diffscale.searches import SEARCHES
from diffscale.train import configs
from diffscale.train.groups import Group, advantages, deviation_of, moments, sample_groups
from diffscale.train.lagging import LaggingWeights
from diffscale.train.methods import METHODS
from diffscale.train.methods.grouped import GroupMethod
from diffscale.train.rewards import Reward
from diffscale.verifiers.function import FunctionVerifier

KEYS = torch.tensor([5, 9])
LEAST = {"pretrained_model_name_or_path": "base", "train_prompts": "a.txt", "reward": ["clip"], "train_batch_size": 2}


def redness(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images[:, 0].mean((1, 2)).double()


RED = FunctionVerifier("red", redness)


def by_hand(sampler: Any, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Latents and rewards of the first samples of each prompt, the best first."""
    made = []
    for row, key in enumerate(KEYS.tolist()):
        keys = torch.tensor([noise.fold(key, "candidate", i) for i in range(count)])
        latents = sampler.run(sampler.prior(keys, torch.full((count,), row))).x
        rewards = redness(sampler.decode(latents), [])
        order = rewards.argsort(descending=True)
        made.append((latents[order].float(), rewards[order]))
    return made


@pytest.mark.parametrize(
    ("kept", "both_ends", "places"), [(6, True, range(6)), (4, True, [0, 1, 4, 5]), (2, False, [0, 1])]
)
def test_the_best_and_the_worst_are_learned_from(kept: int, both_ends: bool, places: list[int]) -> None:
    sampler = policy_of("sdxl")[1].sampler
    groups = sample_groups(sampler, RED, KEYS, 6, kept, both_ends=both_ends)
    for group, (latents, rewards) in zip(groups, by_hand(sampler, 6), strict=True):
        assert torch.allclose(group.x0, latents[list(places)], atol=1e-5)
        assert torch.allclose(group.rewards[group.chosen], rewards[list(places)], atol=1e-7)
        assert len(group.rewards) == 6 and group.nfe == 6 * sampler.steps


def test_a_search_makes_groups_within_their_budget() -> None:
    sampler = policy_of("sdxl", steps=4)[1].sampler
    search = partial(SEARCHES["draft"], steps=(1,), finals=4, both_ends=True)
    drafted = sample_groups(sampler, RED, KEYS, 6, 6, search=search)
    for group in drafted:
        assert len(group.rewards) == len(group.x0) == 4 and 20 < group.nfe <= 24
    # Those that drafts tell apart differ more than four at random.
    plain = sample_groups(sampler, RED, KEYS, 4, 4)
    spread = [sum(float(group.rewards.std()) for group in groups) for groups in (drafted, plain)]
    assert spread[0] > spread[1]
    with pytest.raises(BudgetTooSmall):
        sample_groups(sampler, RED, KEYS, 2, 2, search=partial(SEARCHES["draft"], n=20, finals=2))
    with pytest.raises(DiffscaleError, match="two finished samples"):
        sample_groups(sampler, RED, KEYS, 2, 2, search=partial(SEARCHES["random"], n=1))


def test_what_was_dropped_is_in_no_group() -> None:
    def picky(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        scores = redness(images, prompts)
        return scores.masked_fill(scores == scores.min(), torch.nan)

    sampler = policy_of("sdxl")[1].sampler
    (one, _) = sample_groups(sampler, FunctionVerifier("picky", picky), KEYS, 4, 4)
    assert len(one.rewards) == len(one.x0) < 4 and one.rewards.isfinite().all()


def group(*rewards: float, chosen: list[int] | None = None) -> Group:
    places = list(range(len(rewards))) if chosen is None else chosen
    return Group(torch.zeros(len(places), 1), torch.tensor(rewards).double(), torch.tensor(places), 0)


def test_advantages_by_hand() -> None:
    groups = [group(3.0, 1.0, 2.0, chosen=[0, 1]), group(5.0, 5.0)]
    total = moments(groups[:1]) + moments(groups[1:])  # as processes add them up
    deviation = torch.tensor([3.0, 1, 2, 5, 5]).double().std(correction=0)
    assert torch.allclose(deviation_of(total), deviation)
    found = advantages(groups, deviation)
    assert torch.allclose(found[0], torch.tensor([1.0, -1.0]).double() / deviation, atol=1e-5)
    assert found[1].tolist() == [0, 0]
    assert torch.allclose(advantages(groups, None)[0], torch.tensor([1.0, -1.0]).double() / (2 / 3) ** 0.5, atol=1e-5)
    many = advantages([group(*[0.0] * 99, 1.0)], None)[0]
    assert float(many.max()) == 5.0  # cut off; it is 9.9 deviations off


def test_of_several_rewards_none_starves() -> None:
    def tiny_red(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return 1e-6 * redness(images, prompts)

    def blue(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return 50 * images[:, 2].mean((1, 2)).double()

    sampler = policy_of("sdxl")[1].sampler
    rewards = [Reward(FunctionVerifier("red", tiny_red)), Reward(FunctionVerifier("blue", blue), 2.0)]
    both = METHODS["nft"].combined(rewards)
    (found, _) = sample_groups(sampler, both, KEYS, 6, 6)  # type: ignore[arg-type]
    keys = torch.tensor([noise.fold(5, "candidate", i) for i in range(6)])
    images = sampler.decode(sampler.run(sampler.prior(keys, torch.zeros(6, dtype=torch.int64))).x)
    z = [(s - s.mean()) / s.std(correction=0) for s in (redness(images, []), blue(images, []))]
    assert torch.allclose(found.rewards.sort().values, ((z[0] + 2 * z[1]) / 3).sort().values, atol=1e-5)


def test_a_round_is_sampled_once_and_gone_over_in_every_inner_epoch() -> None:
    sampled: list[int] = []

    class Placed(GroupMethod):
        def sample_batch(self, number: int) -> list[Group]:
            sampled.append(number)
            return [group(float(number), 0.0), group(float(number), 0.0)]

        def group_loss(self, groups: Any) -> Any:
            return groups.x0.sum(), {}

    policy = SimpleNamespace(
        like=torch.empty(0),
        prior=lambda keys: keys[:, None].double(),
        times=SimpleNamespace(
            draw=lambda keys: keys, noised=lambda x0, eps, time: eps, target=lambda x0, eps, time: eps
        ),
    )
    used: list[int] = []
    settings = configs.resolve("raft", None, LEAST | {"num_inner_epochs": 2, "gradient_accumulation_steps": 2})
    context: Any = SimpleNamespace(
        settings=settings,
        data=SimpleNamespace(base=SimpleNamespace(policy=policy)),
        use_batch=used.append,
        keys=lambda number: torch.tensor([number, number + 100]),
    )
    method = Placed(context)
    told = []
    noises = set()
    for number in range(8):
        gathered = method.gather(number)
        told.append("reward" in method.loss(gathered)[1])
        noises.add(tuple(gathered.x.flatten().tolist()))
    assert used == [0, 1, 0, 1, 2, 3, 2, 3] and sampled == [0, 1, 2, 3]
    assert told == [True, False, False, False, True, False, False, False] and len(noises) == 8


def test_lagging_weights_take_the_place_of_those_that_autocast_has_cast() -> None:
    layer, x = nn.Linear(1, 1, bias=False), torch.ones(1, 1)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    lagging = LaggingWeights({"w": layer.weight}, rate=0.0, most=0.0)
    with torch.no_grad():
        layer.weight.fill_(2.0)
    with torch.autocast("cpu", torch.bfloat16):
        own = layer(x)
        with lagging.used():
            before = layer(x)
        after = layer(x)
    assert [float(each) for each in (own.detach(), before, after.detach())] == [2.0, 1.0, 2.0]
    own.sum().backward()
    assert layer.weight.grad is not None and float(layer.weight.grad) == 1.0


def test_lagging_weights_follow_and_take_the_place_of_the_others() -> None:
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    lagging = LaggingWeights({"w": layer.weight}, rate=0.25, most=0.4)
    for number, decay, now in ((0, 0.0, 2.0), (1, 0.25, 3.0), (2, 0.4, 4.0), (9, 0.4, 5.0)):
        wanted = decay * float(lagging.state_dict()["lagging.w"]) + (1 - decay) * now
        with torch.no_grad():
            layer.weight.fill_(now)
        lagging.update(number)
        assert float(lagging.state_dict()["lagging.w"]) == pytest.approx(wanted)
    x = torch.ones(1, 1)
    with lagging.used():
        seen = layer(x)
    assert float(seen) == pytest.approx(wanted) and not seen.requires_grad
    own = layer(x)
    assert float(own.detach()) == 5.0
    with lagging.used():
        layer(x)
    own.sum().backward()  # the graph is of the weights themselves
    assert layer.weight.grad is not None and float(layer.weight.grad) == 1.0
    other = LaggingWeights({"w": layer.weight}, 0.25, 0.4)
    other.load_state_dict({"round": torch.tensor(1), **lagging.state_dict()})
    assert other.state_dict().keys() == {"lagging.w"} and float(other.state_dict()["lagging.w"]) == pytest.approx(
        wanted
    )
    with pytest.raises(KeyError):
        other.load_state_dict({})


@pytest.mark.parametrize(
    ("method", "given", "says"),
    [
        ("nft", {"group_kept": 3}, "an even number"),
        ("awm", {"group_kept": 20}, "an even number up to 16"),
        ("awm", {"clip_range": 0.0, "kl_beta": 0.0, "lag_kl_beta": 0.0}, "runs away"),
        ("raft", {"group_kept": 20}, "20 of 16 samples"),
        ("raft", {"beta": 3.0}, "makes no use of beta"),
        ("group-dpo", {"reward": []}, "needs a reward"),
    ],
)
def test_settings_that_do_not_go_together(method: str, given: dict[str, Any], says: str) -> None:
    with pytest.raises(DiffscaleError, match=says):
        configs.resolve(method, None, LEAST | given)


def test_defaults_are_those_of_the_authors() -> None:
    nft, awm, dgpo = (configs.resolve(name, None, LEAST) for name in ("nft", "awm", "group-dpo"))
    assert (nft.beta, nft.kl_beta, nft.lag_rate, nft.lag_most, nft.learning_rate) == (1.0, 1e-4, 1e-3, 0.5, 3e-4)
    assert (awm.clip_range, awm.lag_kl_beta, awm.lag_most, awm.kl_beta) == (1.0, 1.0, 0.3, 1e-4)
    assert (dgpo.beta, dgpo.lag_most, dgpo.clip_range, dgpo.reference) == (100.0, 0.3, 0.0, "frozen")
