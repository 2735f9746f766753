"""The losses on groups of own samples: by hand, by finite differences, and where they are those of other methods."""

import math
from types import SimpleNamespace

import pytest
import torch
from policies import ToyPolicy
from test_losses import PREDICTIONS, by_differences, gradient

from diffscale.engine import noise
from diffscale.train import configs
from diffscale.train.groups import MOST
from diffscale.train.methods.awm import Awm, awm_loss
from diffscale.train.methods.dpo import diffusion_dpo_loss
from diffscale.train.methods.group_dpo import GroupDpo, dgpo_loss, held, pair_numbers
from diffscale.train.methods.grouped import NoisedGroups, noise_groups
from diffscale.train.methods.nft import Nft
from diffscale.train.methods.raft import Raft
from diffscale.train.methods.sft import sft_loss

KEYS, GROUP = torch.tensor([11, 12]), torch.tensor([0, 0, 0, 1, 1])
ADVANTAGE = torch.tensor([2.0, 0.5, -1.5, 1.0, -1.0]).double()
KINDS = {"group-dpo": GroupDpo, "nft": Nft, "awm": Awm, "raft": Raft}


def samples(count=5, seed=1):
    return torch.randn(count, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def method(name, policy, **settings):
    """The method of that name, which trains `policy`; its lagging weights are those of now."""
    base = SimpleNamespace(policy=policy, trainable=dict(policy.network.items()))
    least = {"pretrained_model_name_or_path": "base", "train_prompts": "a.txt", "reward": ["clip"]}
    given = configs.resolve(name, None, least | settings)
    return KINDS[name](SimpleNamespace(settings=given, data=SimpleNamespace(base=base)))


def noised(policy, shared=True, x0=None, advantage=ADVANTAGE, group=GROUP, keys=KEYS) -> NoisedGroups:
    return noise_groups(policy, samples(len(group)) if x0 is None else x0, advantage, group, keys, shared)


def errors_of(policy, groups):
    return policy.errors(groups.x, groups.time, groups.rows, groups.target)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_two_samples_of_a_prompt_are_a_pair_of_diffusion_dpo(prediction):
    policy, both = ToyPolicy(prediction), samples(4)
    policy.change()
    two, even = torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
    groups = noised(policy, x0=both, advantage=even, group=two)
    wanted, logs = diffusion_dpo_loss(policy, both[::2], both[1::2], torch.tensor([0, 1]), KEYS, 40.0)
    loss, own = method("group-dpo", policy, beta=40.0).group_loss(groups)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-12) and own["accuracy"] == logs["accuracy"]
    assert torch.allclose(gradient(policy, loss), gradient(policy, wanted), rtol=1e-12)
    # By advantages it has that gradient, of twice the beta, up to the factor that log-sigmoid brings along.
    by_advantage = method("group-dpo", policy, beta=20.0, preference="group").group_loss(groups)[0]
    wanted = diffusion_dpo_loss(policy, both[::2], both[1::2], torch.tensor([0, 1]), KEYS, 40.0)[0]
    assert torch.allclose(20.0 * gradient(policy, by_advantage), gradient(policy, wanted), rtol=1e-9)


def test_pairs_are_the_best_and_the_worst_from_both_ends():
    best, worst = pair_numbers(noised(ToyPolicy()))
    assert best.tolist() == [0, 3] and worst.tolist() == [2, 4]
    six = torch.zeros(6, dtype=torch.int64)
    best, worst = pair_numbers(noised(ToyPolicy(), group=six, advantage=torch.zeros(6), keys=KEYS[:1]))
    assert best.tolist() == [0, 1, 2] and worst.tolist() == [5, 4, 3]


def test_dgpo_by_hand():
    groups = noised(ToyPolicy())
    now = torch.tensor([0.10, 0.20, 0.30, 0.40, 0.50], dtype=torch.float64, requires_grad=True)
    before = torch.tensor([0.12, 0.20, 0.25, 0.45, 0.48]).double()
    loss = dgpo_loss(groups, now, before, 10.0)
    inside = [2 * -0.02 + 0 - 1.5 * 0.05, -0.05 - 0.02]
    weights = [1 / (1 + math.exp(-10 * each)) for each in inside]
    sums = [2 * 0.10 + 0.5 * 0.20 - 1.5 * 0.30, 0.40 - 0.50]
    assert float(loss) == pytest.approx((weights[0] * sums[0] + weights[1] * sums[1]) / 2)
    (slope,) = torch.autograd.grad(loss, now)  # none through the weights
    assert slope.tolist() == pytest.approx([weights[g] * a / 2 for g, a in zip(GROUP, ADVANTAGE.tolist(), strict=True)])


def test_samples_that_have_changed_enough_are_held():
    now = torch.tensor([0.1, 0.3, 0.3, 0.1], requires_grad=True)
    lagging, advantage = torch.full((4,), 0.2), torch.tensor([1.0, 1.0, -1.0, -1.0])
    errors, enough = held(now, lagging, advantage, 0.05)
    assert enough.tolist() == [True, False, True, False]  # better, and worse, than was wanted
    (slope,) = torch.autograd.grad(errors.sum(), now)
    assert slope.tolist() == [0, 1, 0, 1] and torch.equal(errors, now)
    assert held(now, lagging, advantage, 0.2)[1].tolist() == [False] * 4


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_nft_loss_by_hand(prediction):
    policy = ToyPolicy(prediction)
    learner = method("nft", policy, beta=0.5, kl_beta=0.0)
    policy.change()
    groups = noised(policy, shared=False)
    loss = learner.group_loss(groups)[0]
    total = 0.0
    for i in range(5):
        time, row = float(groups.time[i]), int(groups.rows[i])
        if policy.times.table is None:
            alpha, sigma = 1 - time / 1000, time / 1000
        else:
            alpha, sigma = (float(v) ** 0.5 for v in (policy.times.table[int(time)], 1 - policy.times.table[int(time)]))
        new, old = (
            (net["a"] * groups.x[i] + net["b"] * time + net["c"][row]).detach()
            for net in (policy.network, policy.before)
        )
        r = 0.5 + float(ADVANTAGE[i]) / 10
        for sign, share in ((1, r), (-1, 1 - r)):
            v = old + sign * 0.5 * (new - old)
            x0 = {
                "epsilon": (groups.x[i] - sigma * v) / alpha,
                "v_prediction": alpha * groups.x[i] - sigma * v,
                "flow_prediction": groups.x[i] - sigma * v,
            }[prediction]
            away = x0 - samples()[i]
            total += share * float(away.square().mean() / away.abs().mean())
    assert float(loss) == pytest.approx(5 / 0.5 * total / 5, rel=1e-9)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_nft_that_has_no_preference_has_no_gradient_where_it_begins(prediction):
    policy = ToyPolicy(prediction)
    learner = method("nft", policy, kl_beta=0.0)
    groups = noised(policy, advantage=torch.zeros(5).double())
    assert float(gradient(policy, learner.group_loss(groups)[0]).abs().max()) < 1e-12
    preferring = learner.group_loss(noised(policy))[0]
    assert float(gradient(policy, preferring).abs().max()) > 1e-3
    policy.change()
    assert float(gradient(policy, learner.group_loss(groups)[0]).abs().max()) > 1e-3  # it is pulled back


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_awm_begins_at_ratio_one_with_the_gradient_of_advantage_weighted_regression(prediction):
    policy = ToyPolicy(prediction)
    policy._gamma = 5.0  # with the same weights of times
    groups = noised(policy, shared=False)
    loss = method("awm", policy, kl_beta=0.0, snr_gamma=5.0).group_loss(groups)[0]
    share = ADVANTAGE / MOST
    assert float(loss) == pytest.approx(-float(share.mean()))
    regression = (share * errors_of(policy, groups)).mean()
    assert torch.allclose(gradient(policy, loss), gradient(policy, regression), rtol=1e-9)


def test_awm_clips_the_ratio_and_holds_to_what_it_was():
    now, old = torch.tensor([0.1, 0.3, 0.3, 0.1]).double(), torch.full((4,), 0.2).double()
    advantage = torch.tensor([1.0, 1.0, -1.0, -1.0]).double()
    ratios = [math.exp(0.1), math.exp(-0.1), math.exp(-0.1), math.exp(0.1)]
    loss, ratio = awm_loss(now, old, advantage, 0.05)
    assert ratio.tolist() == pytest.approx(ratios)
    assert float(loss) == pytest.approx((-1.05 - ratios[1] + 0.95 + ratios[3]) / 4)
    assert float(awm_loss(now, old, advantage, 0.0)[0]) == pytest.approx(
        (-ratios[0] - ratios[1] + ratios[2] + ratios[3]) / 4
    )
    policy = ToyPolicy()
    learner = method("awm", policy, kl_beta=0.25, lag_kl_beta=2.0, clip_range=0.0)
    policy.change()
    groups = noised(policy, advantage=torch.zeros(5).double())
    given = groups.x, groups.time, groups.rows
    with torch.no_grad():
        moved = (policy.output(*given) - (0.6 * groups.x + _shift(policy, groups))).square().mean()
    assert float(learner.group_loss(groups)[0].detach()) == pytest.approx(2.25 * float(moved), rel=1e-9)


def _shift(policy, groups):
    shift = policy.before["b"] * groups.time + policy.before["c"][groups.rows]
    return shift[:, None, None, None].detach()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_raft_is_fine_tuning_on_what_was_kept(prediction):
    policy, x0 = ToyPolicy(prediction), samples(2)
    one = torch.tensor([0, 1])
    groups = noised(policy, x0=x0, group=one, advantage=torch.ones(2).double())
    loss = method("raft", policy).group_loss(groups)[0]
    wanted = sft_loss(policy, x0, one, KEYS)[0]
    assert float(loss) == pytest.approx(float(wanted), rel=1e-12)
    assert torch.allclose(gradient(policy, loss), gradient(policy, wanted))


CHANGED = {
    "pairs": ("group-dpo", {"beta": 20.0, "kl_beta": 0.5}),
    "lagging": ("group-dpo", {"beta": 20.0, "reference": "lagging"}),
    "nft": ("nft", {"kl_beta": 0.5}),
    "awm": ("awm", {"clip_range": 0.01, "kl_beta": 0.5}),
    "raft": ("raft", {}),
}


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("case", CHANGED)
def test_gradients_are_those_of_finite_differences(case, prediction):
    name, settings = CHANGED[case]
    policy = ToyPolicy(prediction)
    learner = method(name, policy, **settings)
    policy.change(0.01)
    groups = noised(policy)
    scales = []
    own = torch.Tensor.clamp

    def once(self, *args, **kwargs):
        # The distances that nft divides by have no gradient, so that they stay what they are where it is taken.
        if kwargs.get("min") != 1e-5:
            return own(self, *args, **kwargs)
        scales.append(own(self, *args, **kwargs))
        return scales[(len(scales) - 1) % 2]

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.Tensor, "clamp", once)
        wanted = gradient(policy, learner.group_loss(groups)[0])
        found = by_differences(policy, lambda: learner.group_loss(groups)[0])
    assert torch.allclose(wanted, found, rtol=1e-5, atol=1e-8)


def test_groups_are_noised_alike_where_that_is_asked_for():
    policy = ToyPolicy("flow_prediction")
    alike, each = noised(policy), noised(policy, shared=False)
    for groups in (alike, each):
        assert all(len(groups.time[g == GROUP].unique()) == 1 for g in (0, 1)) and len(groups.time.unique()) == 2
        assert torch.equal(groups.rows, GROUP)
    eps = [groups.target + groups.x0 for groups in (alike, each)]  # of a flow
    assert torch.allclose(eps[0][:3], eps[0][:1].expand(3, -1, -1, -1)) and not torch.allclose(eps[0][2], eps[0][3])
    assert len({tuple(one.flatten().tolist()) for one in eps[1]}) == 5
    # Functions of the keys alone: a group is noised so whatever is beside it.
    alone = noise_groups(policy, samples()[3:], ADVANTAGE[3:], GROUP[3:] - 1, KEYS[1:], False)
    assert torch.equal(alone.x, each.x[3:]) and torch.equal(alone.time, each.time[3:])
    assert torch.equal(each.time[0], policy.times.draw(noise.fold_rows(KEYS, "time"))[0])
