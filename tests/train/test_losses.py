"""The loss of every method, against hand-computed values, finite differences and each other; in float64."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from policies import Red, ToyPolicy

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.engine import noise
from diffscale.train.methods.d3po import d3po_loss, preferences
from diffscale.train.methods.ddpo import PromptStatistics, ddpo_loss
from diffscale.train.methods.dpo import diffusion_dpo_loss, dpo_loss
from diffscale.train.methods.iterpo import iterpo_loss
from diffscale.train.methods.on_policy import log_prob, rollout
from diffscale.train.methods.sft import sft_loss
from diffscale.train.methods.sharpen import sharpen_rlhf_loss, sharpen_sft_loss
from diffscale.train.selection import select_trajectories
from diffscale.train.trajectories import batch_of

ROWS, KEYS = torch.tensor([1, 0, 1]), torch.tensor([11, 12, 13])
PREDICTIONS = ["epsilon", "v_prediction", "flow_prediction"]


def data(seed=1):
    return torch.randn(3, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def gradient(policy, loss):
    return torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.network.values()))])


def by_differences(policy, value, step=1e-5):
    found = []
    for parameter in policy.network.values():
        flat = parameter.detach().view(-1)
        for i in range(len(flat)):
            held, sides = float(flat[i]), []
            for sign in (1, -1):
                flat[i] = held + sign * step * max(abs(held), 1e-3)
                sides.append(float(value()))
            flat[i] = held
            found.append((sides[0] - sides[1]) / (2 * step * max(abs(held), 1e-3)))
    return torch.tensor(found, dtype=torch.float64)


def step_errors(policy, visits, x0, row, form, network):
    """|network - target|^2 at each visit, by the definitions."""

    def at(time):
        if policy.times.table is None:
            return 1 - time / 1000, time / 1000
        kept = float(policy.times.table[int(time)])
        return kept**0.5, (1 - kept) ** 0.5

    errors = []
    for x, time in zip(visits.x, visits.time.tolist(), strict=True):
        alpha, sigma = at(time)
        eps = (x - alpha * x0) / sigma
        if form == "published":
            eps, (alpha, sigma) = visits.eps, at(float(visits.time[0]))
        target = {"epsilon": eps, "v_prediction": alpha * eps - sigma * x0, "flow_prediction": eps - x0}
        out = network["a"] * x + network["b"] * time + network["c"][row]
        errors.append(float((out - target[policy.times.prediction]).square().mean().detach()))
    return errors


def mean(values):
    return sum(values) / len(values)


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("form", ["consistent", "published"])
def test_sharpening_losses_by_hand(prediction, form):
    policy, x0, beta = ToyPolicy(prediction), data(), 3.0
    policy.change()
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, 4, 3)
    assert all(len(one.time) == 3 for one in chosen.best)
    sft, rlhf = [], []
    for i in range(3):
        row = int(ROWS[i])
        mod_w, mod_l, ref_w, ref_l = (
            step_errors(policy, visits, x0[i], row, form, network)
            for network in (policy.network, policy.before)
            for visits in (chosen.best[i], chosen.worst[i])
        )
        sft.append(mean(mod_w))
        # The authors take the reference at the first step only.
        ref = mean(ref_w) - mean(ref_l) if form == "consistent" else ref_w[0] - ref_l[0]
        gap = float(chosen.reward[i] - chosen.lowest[i])
        inside = beta * (ref - (mean(mod_w) - mean(mod_l)))
        if form == "consistent":
            rlhf.append(math.log1p(math.exp(-(inside - gap))))
        else:
            rlhf.append(math.log1p(math.exp(-inside)) + gap)
    loss, logs = sharpen_sft_loss(policy, chosen, form)
    assert loss.item() == pytest.approx(mean(sft), rel=1e-9)
    assert logs["reward"] == pytest.approx(float(chosen.reward.mean()))
    loss, logs = sharpen_rlhf_loss(policy, chosen, beta, form)
    assert float(loss) == pytest.approx(mean(rlhf), rel=1e-9)
    assert logs["reward_gap"] == pytest.approx(float((chosen.reward - chosen.lowest).mean())) and logs["reward_gap"] > 0


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("form", ["consistent", "published"])
def test_the_gradient_of_the_rlhf_loss_is_that_of_finite_differences(prediction, form):
    policy = ToyPolicy(prediction)
    policy.change()
    chosen = select_trajectories(policy, Red(), data(), ROWS, KEYS, 4, 3)

    def value():
        return sharpen_rlhf_loss(policy, chosen, 2.0, form)[0]

    assert torch.allclose(gradient(policy, value()), by_differences(policy, value), rtol=1e-6, atol=1e-9)
    assert all(p.grad is None for p in policy.before.values())


def test_the_reward_gap_has_a_gradient_inside_the_sigmoid_and_none_outside():
    policy = ToyPolicy()
    policy.change()
    chosen = select_trajectories(policy, Red(), data(), ROWS, KEYS, 4, 3)
    more = replace(chosen, reward=chosen.reward + 0.5)
    for form, alike in (("consistent", False), ("published", True)):
        one, other = (gradient(policy, sharpen_rlhf_loss(policy, c, 2.0, form)[0]) for c in (chosen, more))
        assert torch.allclose(one, other) == alike


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("form", ["consistent", "published"])
def test_one_trajectory_of_one_step_is_plain_fine_tuning(prediction, form):
    policy, x0 = ToyPolicy(prediction), data()
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, 1, 1)
    loss = sharpen_sft_loss(policy, chosen, form)[0]
    time = torch.cat([one.time for one in chosen.best])
    eps = torch.stack([one.eps for one in chosen.best])
    # What fine-tuning does with these times and noises.
    plain = ToyPolicy(prediction)
    own = policy.times
    plain.times = SimpleNamespace(noised=own.noised, target=own.target, draw=lambda keys: time)
    plain.prior = lambda keys: eps
    wanted = sft_loss(plain, x0, ROWS, KEYS)[0]
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)
    assert torch.allclose(gradient(policy, loss), gradient(plain, wanted))
    assert torch.equal(time, own.draw(noise.fold_rows(KEYS, "time")))  # which fine-tuning draws too


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_without_the_gap_and_of_one_step_rlhf_is_diffusion_dpo_at_twice_beta(prediction):
    policy, x0, beta = ToyPolicy(prediction), data(), 2.5
    policy.change()
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, 4, 1)
    flat = replace(chosen, reward=torch.zeros(3).double(), lowest=torch.zeros(3).double())
    loss = sharpen_rlhf_loss(policy, flat, beta)[0]

    def errors(which):
        steps = batch_of(which, ROWS)
        eps = torch.stack([one.eps for one in which])
        return policy.errors(steps.x, steps.time, steps.rows, policy.times.target(x0, eps, steps.time))

    with policy.reference():
        before = errors(chosen.best), errors(chosen.worst)
    wanted = dpo_loss((errors(chosen.best), errors(chosen.worst)), before, 2 * beta)
    assert float(loss) == pytest.approx(float(wanted), rel=1e-9)
    assert torch.allclose(gradient(policy, loss), gradient(policy, wanted))


def test_preferring_needs_two():
    policy = ToyPolicy()
    chosen = select_trajectories(policy, Red(), data(), ROWS, KEYS, 1, 2)
    with pytest.raises(DiffscaleError, match="two"):
        sharpen_rlhf_loss(policy, chosen, 1.0)
    with pytest.raises(UnknownName, match="published"):
        sharpen_sft_loss(policy, chosen, "publshed")


def test_the_dpo_loss_is_the_published_one():
    won, lost, won_before, lost_before = 0.10, 0.30, 0.15, 0.28
    margin = -0.5 * 5000 * ((won - won_before) - (lost - lost_before))
    pairs = [tuple(torch.tensor([x]).double() for x in two) for two in ((won, lost), (won_before, lost_before))]
    assert dpo_loss(pairs[0], pairs[1], 5000).item() == pytest.approx(math.log1p(math.exp(-margin)), rel=1e-9)
    assert dpo_loss(pairs[0], pairs[0], 5000).item() == pytest.approx(math.log(2), rel=1e-12)


def test_diffusion_dpo_shares_time_and_noise_and_prefers_the_chosen():
    policy, chosen, other = ToyPolicy(), data(1), data(2)
    seen = []
    own = policy.output
    policy.output = lambda x, time, rows: (seen.append((x, time, rows)), own(x, time, rows))[1]
    loss = diffusion_dpo_loss(policy, chosen, other, ROWS, KEYS, 10.0)[0]
    (x, time, rows), _ = seen
    assert float(loss) == pytest.approx(math.log(2)) and torch.equal(time[:3], time[3:])
    assert torch.equal(rows, ROWS.repeat(2))
    eps = [(part - policy.times.marginals(time[:3], x)[0] * x0) / policy.times.marginals(time[:3], x)[1]
           for part, x0 in ((x[:3], chosen), (x[3:], other))]  # fmt: skip
    assert torch.allclose(eps[0], eps[1])
    gradients = gradient(policy, loss)
    assert float(gradients.norm()) > 0
    with torch.no_grad():
        at = 0
        for parameter in policy.network.values():
            parameter -= 1e-4 * gradients[at : at + parameter.numel()].view(parameter.shape)
            at += parameter.numel()
    assert float(diffusion_dpo_loss(policy, chosen, other, ROWS, KEYS, 10.0)[0]) < math.log(2)


def of_moves(values):
    """`values` of three samples, for each of their five moves."""
    return values.repeat_interleave(5)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_ddpo_begins_at_ratio_one_with_the_gradient_of_reinforce(prediction):
    policy = ToyPolicy(prediction)
    moves = rollout(policy, ROWS, KEYS)[1]
    assert (
        len(moves.x) == 3 * 5
        and torch.equal(moves.x[1], moves.after[0])
        and not torch.equal(moves.x[5], moves.after[4])
    )
    now = log_prob(policy, moves)
    assert torch.allclose((now - moves.log_prob).exp(), torch.ones(15).double(), atol=1e-12)
    advantages = of_moves(torch.tensor([1.5, -0.5, 9.0]).double())
    loss, logs = ddpo_loss(policy, moves, advantages)
    reinforce = -(advantages.clamp(-5, 5) * now).mean()
    assert torch.allclose(gradient(policy, loss), gradient(policy, reinforce), rtol=1e-9)
    assert logs["clipped"] == 0 and float(loss) == pytest.approx(-(1.5 - 0.5 + 5) / 3)


def test_ddpo_is_the_clipped_loss_of_ppo():
    policy = ToyPolicy()
    moves = rollout(policy, ROWS, KEYS)[1]
    policy.change(0.2)
    advantages = torch.linspace(-2, 2, 15).double()
    loss = ddpo_loss(policy, moves, advantages, clip=0.05)[0]
    ratios = (log_prob(policy, moves) - moves.log_prob).exp().tolist()
    assert min(ratios) < 0.95 or max(ratios) > 1.05
    each = [max(-a * r, -a * min(max(r, 0.95), 1.05)) for a, r in zip(advantages.tolist(), ratios, strict=True)]
    assert float(loss) == pytest.approx(mean(each), rel=1e-9)


def test_a_move_is_as_likely_as_its_normal_density():
    policy = ToyPolicy("flow_prediction", steps=3)
    moves = rollout(policy, ROWS, KEYS)[1]
    for i in range(len(moves.x)):
        t, s = float(moves.time[i]) / 1000, float(moves.to[i]) / 1000
        network, x, row = policy.network, moves.x[i], int(moves.rows[i])
        v = network["a"] * x + network["b"] * 1000 * t + network["c"][row]
        x0, eps = x - t * v, x + (1 - t) * v
        spread = s * math.sqrt(1 - ((1 - t) * s / ((1 - s) * t)) ** 2)
        centre = (1 - s) * x0 + math.sqrt(s**2 - spread**2) * eps
        density = torch.distributions.Normal(centre.detach(), spread).log_prob(moves.after[i]).mean()
        assert float(moves.log_prob[i]) == pytest.approx(float(density), rel=1e-9)


def test_rollouts_are_functions_of_their_keys_and_may_share_their_start():
    policy = ToyPolicy()
    one, same = rollout(policy, ROWS, KEYS), rollout(policy, ROWS[1:], KEYS[1:])
    assert torch.allclose(one[0][1:], same[0])
    shared = rollout(policy, ROWS, KEYS + 100, start=KEYS)
    first = torch.arange(3) * 5
    assert torch.equal(shared[1].x[first], one[1].x[first])
    assert not torch.allclose(shared[1].after[first], one[1].after[first])


def test_advantages_are_measured_by_the_prompts_own_rewards_once_they_are_enough():
    statistics = PromptStatistics(memory=4, enough=3)
    prompts, rewards = ["a", "a", "b"], torch.tensor([1.0, 3.0, 8.0]).double()
    first = statistics.advantages(prompts, rewards)
    assert torch.allclose(first, (rewards - 4) / rewards.std(correction=0), atol=1e-5)
    again = PromptStatistics(memory=4, enough=3)
    again.load_state_dict(statistics.state_dict())
    for each in (statistics, again):
        second = each.advantages(["a", "b"], torch.tensor([5.0, 9.0]).double())
        own = torch.tensor([1.0, 3.0, 5.0]).double()
        both = torch.tensor([5.0, 9.0]).double()
        assert float(second[0]) == pytest.approx(float((5 - own.mean()) / own.std(correction=0)), abs=1e-5)
        assert float(second[1]) == pytest.approx(float((9 - both.mean()) / both.std(correction=0)), abs=1e-5)


def test_d3po_by_hand_and_its_clip():
    policy = ToyPolicy()
    first, second = rollout(policy, ROWS, KEYS)[1], rollout(policy, ROWS, KEYS + 50, start=KEYS)[1]
    preferred = of_moves(preferences(torch.tensor([2.0, 1.0, 3.0]), torch.tensor([1.0, 1.0, 5.0])))
    assert preferred.tolist() == [1.0] * 5 + [0.0] * 5 + [-1.0] * 5
    loss = d3po_loss(policy, first, second, preferred, 0.1)[0]
    assert float(loss) == pytest.approx(math.log(2))
    now = [log_prob(policy, moves) for moves in (first, second)]
    wanted = -0.05 * (preferred * (now[0] - now[1])).mean()  # beta / 2, as sigmoid(0) is a half
    assert torch.allclose(gradient(policy, loss), gradient(policy, wanted), rtol=1e-9)
    policy.change(0.2)
    loss = d3po_loss(policy, first, second, preferred, beta=2.0, clip=0.1)[0]
    each = []
    for i in range(15):
        logs = []
        for moves in (first, second):
            ratio = math.exp(float(log_prob(policy, moves)[i].detach()) - float(moves.log_prob[i]))
            logs.append(math.log(min(max(ratio, 0.9), 1.1)))
        each.append(math.log1p(math.exp(-2.0 * float(preferred[i]) * (logs[0] - logs[1]))))
    assert float(loss) == pytest.approx(mean(each), rel=1e-9)


class Blind(Red):
    def __call__(self, images, prompts):
        return super().__call__(images.detach(), prompts)


class Twice(Red):
    name = "twice"

    def __call__(self, images, prompts):
        return 2 * super().__call__(images, prompts)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_iterpo_follows_the_rewards_through_one_late_step(prediction):
    policy = ToyPolicy(prediction, steps=8)
    seen = []
    own = policy.output
    policy.output = lambda x, time, rows: (seen.append((x, float(time[0]))), own(x, time, rows))[1]
    stops = set()
    for keys in (KEYS + shift for shift in range(8)):
        seen.clear()
        loss, logs = iterpo_loss(policy, [Red(), Twice()], ROWS, keys, scale=0.5)
        red = logs["reward_red"]
        assert float(loss) == pytest.approx(0.5 * ((2 - red) + (2 - 2 * red)), rel=1e-6)
        stops.add(seen[-1][1])
        x, time = seen[-1]
        assert not x.requires_grad
        out = own(x, torch.full((3,), time).double(), ROWS)
        x0 = policy.times.clean(x, out, torch.full((3,), time).double())
        again = 0.5 * (4 - 3 * Red()(policy.decode(x0), []).double()).mean()
        assert torch.allclose(gradient(policy, loss), gradient(policy, again), rtol=1e-6)
        assert float(gradient(policy, iterpo_loss(policy, [Red()], ROWS, keys)[0]).norm()) > 0
    assert stops == set(policy.grid()[-2:].tolist())


def test_iterpo_tells_rewards_the_captions_and_gives_their_spread():
    told = []

    class Listening(Red):
        def __call__(self, images, prompts):
            told.append(prompts)
            return super().__call__(images, prompts)

    policy = ToyPolicy()
    logs = iterpo_loss(policy, [Listening(), Twice()], ROWS, KEYS, captions=["x", "y", "z"])[1]
    iterpo_loss(policy, [Listening()], ROWS, KEYS)
    assert told == [["x", "y", "z"], [policy.prompts[row] for row in ROWS]]
    assert logs["reward"] == pytest.approx(1.5 * logs["reward_red"]) and logs["reward_std"] > 0


def test_iterpo_refuses_rewards_without_gradient():
    with pytest.raises(DiffscaleError, match="gradient"):
        iterpo_loss(ToyPolicy(), [Blind()], ROWS, KEYS)
