"""Trajectories from noised data, chosen by searches: by hand on a toy, and on tiny pipelines."""

from functools import partial

import pytest
import torch
from policies import FAMILIES, Red, ToyPolicy, policy_of, red

from diffscale._util.errors import BudgetTooSmall, DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.formulas import Marginal, denoise
from diffscale.searches import SEARCHES
from diffscale.train.selection import make_trajectories, select_samples, select_trajectories
from diffscale.train.trajectories import TrajectorySampler
from diffscale.verifiers.ensemble import Ensemble

ROWS = torch.tensor([1, 0, 1])
KEYS = torch.tensor([11, 12, 13])
PREDICTIONS = ["epsilon", "v_prediction", "flow_prediction"]


def data(seed=1, rows=3):
    return 2 * torch.randn(rows, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def parts(prediction, x, out, at):
    alpha, sigma = at
    return {
        "epsilon": lambda: (x - sigma * out) / alpha,
        "v_prediction": lambda: alpha * x - sigma * out,
        "flow_prediction": lambda: x - sigma * out,
    }[prediction]()


def by_hand(policy, x0, eps, time, row, steps):
    """Visited latents, and x0-predictions, of one trajectory in steps of 40 timesteps."""
    visited, seen = [], []

    def at(time):
        if policy.times.table is None:
            return Marginal(1 - time / 1000, time / 1000)
        kept = float(policy.times.table[int(time)])
        return Marginal(kept**0.5, (1 - kept) ** 0.5)

    x = at(time).alpha * x0 + at(time).sigma * eps
    for i in range(steps):
        here, network = at(time - 40 * i), policy.network
        out = network["a"] * x + network["b"] * (time - 40 * i) + network["c"][row]
        visited.append(x)
        seen.append(parts(policy.times.prediction, x, out, here))
        if i + 1 < steps:
            x = denoise(x, seen[-1], here, at(time - 40 * (i + 1)))
    return torch.stack(visited).detach(), torch.stack(seen).detach()


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_best_and_worst_trajectories_and_their_rewards_by_hand(prediction):
    policy = ToyPolicy(prediction)
    x0, n, m = data(), 4, 3
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, n, m)
    for i, key in enumerate(KEYS.tolist()):
        time = float(policy.times.draw(noise.fold_rows(KEYS[[i]], "time")))
        assert time >= 81  # else the trajectory would be shorter
        eps = policy.prior(torch.tensor([noise.fold(key, "candidate", c) for c in range(n)]))
        made = [by_hand(policy, x0[i], eps[c], time, int(ROWS[i]), m) for c in range(n)]
        rewards = [float(red(seen).mean()) for _, seen in made]
        order = sorted(range(n), key=lambda c: rewards[c])
        assert float(chosen.reward[i]) == pytest.approx(rewards[order[-1]], abs=1e-6)
        assert float(chosen.lowest[i]) == pytest.approx(rewards[order[0]], abs=1e-6)
        assert float(chosen.mean[i]) == pytest.approx(sum(rewards) / n, abs=1e-6)
        assert rewards[order[-1]] - rewards[order[0]] > 1e-3 and chosen.count[i] == n
        for visits, c in ((chosen.best[i], order[-1]), (chosen.worst[i], order[0])):
            assert visits.time.tolist() == [time, time - 40, time - 80]
            assert torch.allclose(visits.x, made[c][0], atol=1e-9) and torch.allclose(visits.eps, eps[c])
            assert not visits.x.requires_grad


def test_samples_are_chosen_by_their_rewards():
    sampler = policy_of("sdxl")[1].sampler
    keys = torch.tensor([5, 9])
    best, worst, figures = select_samples(sampler, Red(), keys, 4)
    for i, key in enumerate(keys.tolist()):
        own = torch.tensor([noise.fold(key, "candidate", c) for c in range(4)])
        x = sampler.run(sampler.prior(own, torch.full((4,), i))).x
        rewards = Red()(sampler.decode(x), []).double()
        assert torch.allclose(best[i], x[rewards.argmax()], atol=1e-5)
        assert torch.allclose(worst[i], x[rewards.argmin()], atol=1e-5)
        wanted = [float(rewards.max()), float(rewards.min()), float(rewards.mean()), 4]
        assert figures[i].tolist() == pytest.approx(wanted, abs=1e-5)
    # Other searches end in samples, too.
    better = select_samples(sampler, Red(), keys, 4, SEARCHES["svdd"])[2]
    assert bool((better[:, 0] > figures[:, 1]).all())


def test_trajectories_without_a_choice_are_noised_by_their_keys_alone():
    policy, keys = ToyPolicy(), torch.arange(20) + 5
    rows, x0 = torch.zeros(20).long(), torch.randn(2, 20, 2, 2, 2).double()
    for data, other in ((x0[0], x0[1]), (x0[1], x0[0])):
        one, pair, again = (
            make_trajectories(policy, of, rows, by, 3) for of, by in ((data, keys), (other, keys), (data, keys + 100))
        )
        for i, (a, b, c) in enumerate(zip(one, pair, again, strict=True)):
            assert torch.equal(a.eps, b.eps) and a.time.tolist() == b.time.tolist() and not torch.equal(a.eps, c.eps)
            x, _ = by_hand(policy, data[i], a.eps, float(a.time[0]), 0, len(a.time))
            assert torch.allclose(a.x, x, atol=1e-9) and torch.equal(a.x0, data[i])
        assert len({len(a.time) for a in one}) > 1


def test_where_time_runs_out_a_trajectory_is_shorter():
    policy = ToyPolicy()
    keys = torch.arange(200)
    chosen = select_trajectories(
        policy, Red(), data(rows=1).expand(200, -1, -1, -1), torch.zeros(200).long(), keys, 2, 3
    )
    lengths = [len(one.time) for one in chosen.best]
    assert lengths == [min(3, 1 + int(one.time[0]) // 40) for one in chosen.best] and {1, 2, 3} == set(lengths)
    assert all(float(one.time.min()) >= 0 for one in [*chosen.best, *chosen.worst])
    with pytest.raises(DiffscaleError, match="fit"):
        TrajectorySampler(policy, data(), torch.tensor([79.0, 500.0, 600.0]), ROWS, 3)


SETTINGS = {
    "random": {},
    "zero_order": {"n": 2, "cosine": 0.8},
    "zero_order greedy": {"n": 2, "policy": "greedy"},
    "paths": {"n": 2, "m": 2},
    "svdd": {"b": 2},
    "fk": {"interval": 1},
    "demon": {},
    "free2guide": {},
    "first_order": {"rate": 0.3},
    "bayes": {"dimensions": 2, "n": 2, "initial": 4},
    "evolution": {},
    "dps": {},
    "spectral": {"n": 3},
    "pcn": {"chains": 2},
    "cma": {"n": 3},
}


@pytest.mark.parametrize(
    ("setting", "prediction"), [(s, p) for s in SETTINGS for p in PREDICTIONS if s != "bayes" or p == "epsilon"]
)
def test_any_search_makes_trajectories_whose_reward_is_the_mean_over_its_visits(setting, prediction):
    if setting == "bayes":
        pytest.importorskip("botorch")
    policy = ToyPolicy(prediction)
    search = partial(SEARCHES[setting.split()[0]], **SETTINGS[setting])
    x0 = data()
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, 20, 3, search)
    for i in range(3):
        for visits, reward in ((chosen.best[i], chosen.reward[i]), (chosen.worst[i], chosen.lowest[i])):
            with torch.no_grad():
                out = policy.output(visits.x, visits.time, ROWS[[i]].expand(len(visits.time)))
            seen = policy.times.clean(visits.x, out, visits.time)
            assert float(red(seen).mean()) == pytest.approx(float(reward), abs=1e-6)
            first = policy.times.noised(x0[[i]], visits.eps[None], visits.time[:1])
            assert torch.allclose(visits.x[:1], first, atol=1e-9)
            assert setting == "paths" or len(visits.time) == 3
    one = select_trajectories(policy, Red(), x0, ROWS, KEYS, 1, 3)
    if setting in ("random", "zero_order greedy", "first_order"):
        # They have the one noise among theirs.
        assert bool((chosen.reward >= one.reward - 1e-9).all()) and bool((chosen.reward > one.reward).any())


def test_a_stochastic_search_is_on_the_marginals_of_its_times():
    """Steps with fresh noise keep the latents of a perfect network where noised data are."""
    policy = ToyPolicy()
    x0 = data(rows=1)
    policy.output = lambda x, time, rows: policy.times.consistent_target(x, x0.expand_as(x), time)
    chosen = select_trajectories(
        policy, Red(), x0.expand(100, -1, -1, -1), torch.zeros(100).long(), torch.arange(100), 2, 3,
        partial(SEARCHES["svdd"], b=1, m=1),
    )  # fmt: skip
    noises = []
    for visits in chosen.best:
        alpha, sigma = policy.times.marginals(visits.time, visits.x)
        noises.append(((visits.x - alpha * x0) / sigma)[-1])
    found = torch.stack(noises).flatten()
    assert abs(float(found.mean())) < 0.12 and abs(float(found.std()) - 1) < 0.08


def test_rows_are_chosen_alike_alone_and_in_any_batch():
    policy = ToyPolicy()
    x0 = data()
    for search in (None, partial(SEARCHES["zero_order"], n=2), partial(SEARCHES["svdd"], b=2)):
        together = select_trajectories(policy, Red(), x0, ROWS, KEYS, 6, 3, search)
        halves = select_trajectories(policy, Red(), x0, ROWS, KEYS, 6, 3, search, batch_size=2)
        for i in range(3):
            alone = select_trajectories(policy, Red(), x0[[i]], ROWS[[i]], KEYS[[i]], 6, 3, search)
            for other in (alone.best[0], halves.best[i]):
                assert torch.allclose(other.x, together.best[i].x, atol=1e-12)
    changed = select_trajectories(policy, Red(), x0, ROWS, KEYS + 1, 6, 3)
    assert not torch.allclose(changed.best[0].x[0], together.best[0].x[0])


class Green:
    name = "green"

    def __call__(self, images, prompts):
        return -images[:, 1].amax((1, 2))


def test_an_ensemble_ranks_the_trajectories_of_a_row():
    policy = ToyPolicy()
    both = Ensemble("ensemble", [Red(), Green()], [1.0, 1.0])
    chosen = select_trajectories(policy, both, data(), ROWS, KEYS, 5, 2)
    reds, greens = (select_trajectories(policy, verifier, data(), ROWS, KEYS, 5, 2) for verifier in (Red(), Green()))
    assert bool((chosen.reward <= 1).all()) and bool((chosen.reward > chosen.lowest).all())
    for i in range(3):
        # Who is first by both is first of all.
        if torch.equal(reds.best[i].eps, greens.best[i].eps):
            assert torch.equal(chosen.best[i].eps, reds.best[i].eps) and chosen.reward[i] == 1


def test_what_cannot_be_rewarded_or_paid_is_refused():
    policy = ToyPolicy()

    class Recorder(Red):
        record_level = 0.4

    with pytest.raises(DiffscaleError, match="red"):
        select_trajectories(policy, Recorder(), data(), ROWS, KEYS)
    with pytest.raises(DiffscaleError, match="n=0"):
        select_trajectories(policy, Red(), data(), ROWS, KEYS, 0)
    with pytest.raises(BudgetTooSmall):
        select_trajectories(policy, Red(), data(), ROWS, KEYS, 2, 3, partial(SEARCHES["paths"], n=2, m=5))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("search", ["random", "zero_order", "paths", "svdd"])
def test_trajectories_of_pipelines(name, search):
    t, policy = policy_of(name)
    x0 = policy.prior(KEYS + 50)

    settings = {"paths": {"n": 2, "m": 1}}.get(search, {})
    chosen = select_trajectories(policy, Red(), x0, ROWS, KEYS, 12, 3, partial(SEARCHES[search], **settings))
    for i in range(3):
        visits = chosen.best[i]
        with torch.no_grad():
            out = policy.output(visits.x, visits.time, ROWS[[i]].expand(len(visits.time)))
            seen = policy.decode(policy.times.clean(visits.x, out, visits.time))
        assert float(Red()(seen, []).mean()) == pytest.approx(float(chosen.reward[i]), abs=1e-4)
        assert chosen.reward[i] >= chosen.mean[i] >= chosen.lowest[i]
    assert all(p.grad is None for p in t.net.parameters())
