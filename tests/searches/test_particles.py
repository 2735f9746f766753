"""What particle methods promise: laws, constants and counts, against plain sampling and by hand."""

import math
import random
from dataclasses import replace
from importlib import import_module
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toys import Tilt, make, plain, same, task

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.formulas import marginal, step_mean_and_std
from diffscale.samplers.toy import ToySampler
from diffscale.searches import SEARCHES
from diffscale.searches.dts import Node, chosen, soft_value
from diffscale.searches.funnel import narrowing
from diffscale.searches.particles import steer
from diffscale.searches.rbf import beyond, vp_levels
from diffscale.searches.resampling import RESAMPLERS, ssp
from diffscale.testing import NearPoint as Near

STEPS = 10


@pytest.fixture
def clouds(monkeypatch):
    """Finished clouds of so many independent runs of a search on the toy."""

    def run(name, runs, **settings):
        found = []

        def recorded(*args, **more):
            found.append((yield from steer(*args, **more)))

        monkeypatch.setattr(import_module(f"diffscale.searches.{name}"), "steer", recorded)
        tasks = [Task(lambda env: SEARCHES[name](env, **settings), 0, noise.fold(7, i), 10_000) for i in range(runs)]
        run_searches(tasks, ToySampler(steps=STEPS), Tilt(), batch_size=4096)
        return found

    return run


# The settings, and how often its strength a method has in the end.
UNBIASED = [
    ("bfs", {}, 2),
    ("das", {}, 1),
    ("vasr", {}, 1),
    ("vasr", {"select": "max", "interval": 2}, 1),
    ("funnel", {}, 1),
    ("funnel", {"narrow": 0.01, "temperature": "constant", "ess": 1.0, "resampler": "ssp"}, 1),
]


@pytest.fixture(scope="module")
def samples():
    """Plain samples of the discretised sampler: points, and their rewards."""
    sampler, state = plain(8000, steps=STEPS)
    x = sampler.run(state).x
    return x, Tilt()(sampler.decode(x), [])


@pytest.mark.parametrize(("name", "settings", "times"), UNBIASED)
def test_the_normalising_constant_is_unbiased(samples, clouds, name, settings, times):
    """Its mean is that of exp(strength r) over plain samples, whatever was resampled on the way."""
    truth = (2.0 * samples[1]).exp()
    found = clouds(name, 120, k=4, strength=2.0 / times, units="raw", **settings)
    z = torch.tensor([math.exp(cloud.log_z) for cloud in found])
    error = math.hypot(float(z.std()) / len(z) ** 0.5, float(truth.std()) / len(truth) ** 0.5)
    assert abs(float(z.mean() - truth.mean())) < 4 * error < 0.2 * float(truth.mean())


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {"strength": 0.0, **settings}) for name, settings, _ in UNBIASED), ("beam", {"m": 1})],
)
def test_without_strength_the_law_is_that_of_plain_sampling(samples, clouds, name, settings):
    found = torch.cat([cloud.state.x for cloud in clouds(name, 10, k=150, **settings)])
    # Particles of equal weights are all kept, or so many of them: nothing is there twice.
    assert len(found.unique(dim=0)) == len(found) and (len(found) == 1500 or name == "funnel")
    for axis in (0, 1):
        assert stats.ks_2samp(found[:, axis].numpy(), samples[0][:, axis].numpy()).pvalue > 1e-3


def test_tempered_weights_are_those_of_the_target_now(clouds):
    """Never resampled, the product of all potentials is exp(strength r) of the finished sample."""
    (cloud,) = clouds("das", 1, k=6, strength=3.0, units="raw", ess=0.0)
    assert torch.allclose(cloud.log_weight, 3.0 * cloud.last)


def test_vasr_is_a_setting_of_fk():
    def result(search):
        return run_searches([task(search)], ToySampler(steps=6), Near())[0]

    fk = {"k": 5, "potential": "tempered", "interval": 1, "ess": 1.0}
    assert same(result(make("vasr")), result(lambda env: SEARCHES["fk"](env, **fk)))


def test_breadth_first_search_weighs_the_best_score_so_far_ever_more(monkeypatch):
    seen, scores = [], []

    class Watched(Tilt):
        def __call__(self, images, prompts):
            scores.append(super().__call__(images, prompts))
            return scores[-1]

    def recorded(env, log_weights, k):
        seen.append((log_weights.flatten(), ssp(env, log_weights, k)))
        return seen[-1][1]

    monkeypatch.setitem(RESAMPLERS, "ssp", recorded)
    search = lambda env: SEARCHES["bfs"](env, k=12, strength=3.0, units="raw", interval=2)  # noqa: E731
    run_searches([Task(search, 0, 5, 10_000)], ToySampler(steps=STEPS), Watched(), batch_size=100)
    best = torch.full((12,), -math.inf, dtype=torch.float64)
    assert len(seen) == 4
    for step, (log_weights, kept), now in zip((2, 4, 6, 8), seen, scores, strict=False):
        best = torch.maximum(best, now)
        assert torch.allclose(log_weights, 2 * 3.0 * step / STEPS * best)
        children = torch.bincount(kept, minlength=12)
        assert ((children - 12 * log_weights.softmax(0)).abs() < 1).all()
        best = best[kept]


def test_beams_are_the_best_of_all_children_whoever_their_parents_are(monkeypatch):
    seen = []
    beam = import_module("diffscale.searches.beam")

    def recorded(env, log_weights, k):
        seen.append((log_weights, top(env, log_weights, k)))
        return seen[-1][1]

    top = beam.top
    monkeypatch.setattr(beam, "top", recorded)
    run_searches([task(lambda env: SEARCHES["beam"](env, k=3, m=4, interval=3))], ToySampler(steps=STEPS), Tilt())
    assert [values.shape for values, _ in seen] == [(3, 4)] * 3
    for values, kept in seen:
        assert set(kept.tolist()) == set(values.flatten().argsort(descending=True)[:3].tolist())
    assert any(len(set((kept // 4).tolist())) < 3 for _, kept in seen)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 3000), st.floats(0.01, 1.0)
)  # fmt: skip
def test_a_funnel_narrows_and_spends_what_there_is(lengths, extra, narrow):
    nfe = sum(lengths) + extra
    sizes = narrowing(lengths, nfe, narrow)
    spent = sum(size * length for size, length in zip(sizes, lengths, strict=True))
    assert nfe - lengths[0] < spent <= nfe and min(sizes) >= 1
    assert sizes == sorted(sizes, reverse=True)
    if len(sizes) > 1 and sizes[0] > 50:
        assert sizes[-1] / sizes[0] == pytest.approx(narrow, abs=0.1)


def test_a_funnel_has_many_particles_early_few_late_and_the_same_nfe():
    rows = {}

    class Watched(ToySampler):
        def predict(self, state):
            rows[state.step] = rows.get(state.step, 0) + len(state)
            return super().predict(state)

    (result,) = run_searches([task("funnel")], Watched(steps=STEPS), Near())
    assert [rows[step] for step in range(STEPS)] == [9, 9, 9, 6, 6, 5, 5, 4, 4, 3]
    assert result.ledger.nfe == 6 * STEPS and result.candidates == 3


class Scripted(Near):
    """Gives the next of its scores to each picture, whatever that shows; the last of them to all after."""

    def __init__(self, *scores):
        super().__init__()
        self.scores = list(scores)

    def __call__(self, images, prompts):
        given = [self.scores.pop(0) if len(self.scores) > 1 else self.scores[0] for _ in images]
        return torch.tensor(given, dtype=torch.float64)


class Watched(ToySampler):
    """Remembers the steps and rows of its predictions, and the latents from which runs went on."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.evaluated, self.began = [], []

    def predict(self, state):
        self.evaluated.append((state.step, len(state), state.x))
        return super().predict(state)

    def run(self, state, to=None, record=None):
        if state.x0 is not None:
            self.began.append(state.x)
        return super().run(state, to, record)


def ran(name, verifier, sampler, budget=10_000, **settings):
    return run_searches([task(lambda env: SEARCHES[name](env, **settings), budget)], sampler, verifier)[0]


@pytest.mark.parametrize(("threshold", "tries"), [(-1.0, 0), (0.5, 2), (9.0, 4)])
def test_depth_first_search_backtracks_until_the_threshold_is_met_or_its_tries_are_spent(threshold, tries):
    sampler = Watched(steps=STEPS)
    result = ran("dfs", Scripted(0.0, 0.2, 0.5, 0.1, 0.3, 7.0), sampler, n=1, threshold=threshold, at=(6,), back=3)
    # A try goes back from step 5 to step 2, and is there again after 4 evaluations.
    assert result.ledger.nfe == STEPS + 4 * tries
    # What goes on is the first that is good enough, or else the best of all tries, the third one.
    looks = [x for step, _, x in sampler.evaluated if step == 5]
    assert len(looks) == 1 + tries and torch.equal(sampler.began[0], looks[min(tries, 2)])


def walked(scores, at, back, backtracks, threshold, budget):
    """Depth-first search as its authors' loop over the steps of one sample: (steps in the order in which they are
    evaluated, numbers of the evaluations from which what passes a place that is looked at goes on)."""
    scores, evaluated, passed, buffer, i = iter(scores), [], [], {}, 0
    while i < STEPS:
        evaluated.append(i)
        i += 1
        if i not in at:
            continue
        score = next(scores)
        buffer.setdefault(i, []).append((score, len(evaluated) - 1))
        up = max(0, i - 1 - back)
        if score < threshold and backtracks and budget - len(evaluated) >= STEPS - up:
            backtracks, i = backtracks - 1, up
        else:
            passed.append(max(buffer[i])[1] if score < threshold else len(evaluated) - 1)
    return evaluated, passed


def test_depth_first_search_looks_again_on_its_way_down_and_goes_back_to_the_best_of_a_place():
    # Worked by hand: from step 5 to step 1, and so past the first place again, where what is worse than the threshold,
    # and has no tries left, gives way to what was there in the first place.
    by_hand = [0, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert walked([5, 0, 1, 3], (3, 6), 4, 1, 2, 100) == (by_hand, [2, 2, 10])
    draw = random.Random(0)
    repeated = []
    for _ in range(60):
        at = tuple(sorted(draw.sample(range(1, STEPS), draw.randint(1, 4))))
        settings = {"at": at, "back": draw.randint(1, STEPS), "backtracks": draw.randint(1, 6), "threshold": 50.0}
        settings["budget"] = draw.choice([15, 25, 10_000])
        scores = draw.sample(range(100), 60)
        sampler = Watched(steps=STEPS)
        result = ran("dfs", Scripted(*map(float, scores)), sampler, n=1, **settings)
        evaluated, passed = walked(scores, **settings)
        assert [step for step, *_ in sampler.evaluated] == evaluated, settings
        assert result.ledger.nfe == len(evaluated)
        assert len(sampler.began) == len(passed)
        for x, number in zip(sampler.began, passed, strict=True):
            assert torch.equal(x, sampler.evaluated[number][2]), settings
        repeated.append(len(set(passed)) < len(passed))
    assert sum(repeated) > 5  # or hardly any came again to what it had been before


def test_depth_first_search_by_what_was_seen_before():
    # Of the second sample the first look is worse than half of those seen, the second is better than all.
    sampler = Watched(steps=STEPS)
    verifier = Scripted(3.0, 8.0, 1.0, 4.0, 9.0)
    result = ran("dfs", verifier, sampler, n=2, at=(4,), back=9)
    assert result.ledger.nfe == 2 * STEPS + 4 and result.best.score == 9.0
    assert [step for step, *_ in sampler.evaluated].count(3) == 3
    # With share=0 every look is good enough, and what is left is random search.
    plain_search = ran("random", Near(), ToySampler(steps=6), 40)
    free = ran("dfs", Near(), ToySampler(steps=6), 40, share=0.0)
    assert torch.equal(plain_search.pool, free.pool)


def test_rollover_budget_forcing_spends_later_what_a_step_did_not_need():
    def tries(*scores, **settings):
        sampler = Watched(steps=5)
        result = ran("rbf", Scripted(*scores), sampler, n=2, quota=3, **settings)
        assert result.ledger.nfe == 2 + 3 * 4
        return [sum(rows for at, rows, _ in sampler.evaluated if at == step) for step in range(5)]

    assert tries(*range(20)) == [2, 1, 1, 1, 9]  # each is better than all before
    assert tries(*range(20, 0, -1)) == [2, 3, 3, 3, 3]  # none is
    assert tries(0, 5, 1, 6, 2, 3, 4, 5, 7, 0) == [
        2,
        2,
        4,
        1,
        5,
    ]  # the second; the record of 6 only after its four; ...


def test_of_a_step_without_improvement_the_best_goes_on():
    sampler = Watched(steps=3)
    ran("rbf", Scripted(9.0, 1.0, 4.0, 2.0, 0.0), sampler, n=1, quota=3)
    seen = [[x for step, _, x in sampler.evaluated if step == wanted] for wanted in (1, 2)]
    tried, later = map(torch.cat, seen)
    x0 = sampler.predict(replace(sampler.prior(torch.arange(3), torch.zeros(3).long()), x=tried, step=1)).x0
    mean, std = step_mean_and_std(
        tried, x0, marginal("flow", sampler.levels[1]), marginal("flow", sampler.levels[2]), 1.0
    )
    # The second one's posterior explains what came after it far better than those of the others.
    distance = (later[None] - mean[:, None]).norm(dim=2).mean(1) / std
    assert len(later) == 3 and int(distance.argmin()) == 1


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
def test_noising_from_beyond_a_level_draws_from_the_posterior(process):
    sampler = ToySampler(steps=STEPS, process=process)
    state = sampler.run(sampler.prior(torch.arange(5), torch.zeros(5).long()), 3)
    at, to = sampler.levels[3], 0.37
    clean = sampler.solve(state, beyond(at, to), 1)
    mean, std = step_mean_and_std(state.x, sampler.predict(state).x0, marginal(process, at), marginal(process, to), 1.0)
    still = sampler.renoise(clean, to, torch.zeros_like(state.x)).x
    moved = sampler.renoise(clean, to, torch.ones_like(state.x)).x
    assert torch.allclose(still, mean) and torch.allclose(moved - still, torch.full_like(mean, std))


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
def test_steps_at_the_times_of_another_interpolant_have_the_same_marginals(process):
    sampler, state = plain(1500, process)
    places = vp_levels(sampler.levels[0], 40)
    assert places == sorted(places, reverse=True) and len(set(places)) == 41 and places[-1] == 0
    for i, (at, to) in enumerate(pairwise(places)):
        clean = sampler.solve(state, beyond(at, to), 1)
        state = sampler.renoise(clean, to, noise.normal(torch.arange(1500) + 10_000 * i, (2,))) if to else clean
    pick = torch.arange(1500) % 8
    wanted = sampler.means[pick] + 0.3 * noise.normal(-torch.arange(1, 1501), (2,)).double()
    for axis in (0, 1):
        assert stats.ks_2samp(state.x[:, axis].numpy(), wanted[:, axis].numpy()).pvalue > 1e-3


def tree():
    """Two noises; below the first two branches, with finished samples 0, 1 and 2, below the second sample 3."""
    samples = [Node(9, finished=i) for i in range(4)]
    branches = [Node(4, children=samples[:2], visits=2), Node(4, children=[samples[2]], visits=1)]
    noises = [
        Node(1, children=branches, visits=3),
        Node(1, children=[Node(4, children=[samples[3]], visits=1)], visits=1),
    ]
    return Node(0, children=noises, visits=4)


def test_a_tree_backs_up_soft_values():
    root, values = tree(), [1.0, 2.0, 0.0, 5.0]
    mean = lambda *of: math.log(sum(math.exp(2.0 * each) for each in of) / len(of)) / 2.0  # noqa: E731
    left = mean(mean(1.0, 2.0), 0.0)
    assert soft_value(root.children[0], values, 2.0) == pytest.approx(left)
    assert soft_value(root, values, 2.0) == pytest.approx(mean(left, 5.0))
    assert soft_value(root, values, 0.0) == pytest.approx(((1.5 + 0.0) / 2 + 5.0) / 2)
    assert soft_value(root, values, 400.0) == pytest.approx(5.0, abs=0.01)
    # What was dropped has no part in a mean but for its place, and no value if it is alone.
    assert soft_value(root, [-math.inf, 2.0, 0.0, -math.inf], 2.0) == pytest.approx(
        mean(mean(mean(2.0) + math.log(1 / 2) / 2.0, 0.0) + math.log(1 / 2) / 2.0)
    )
    assert soft_value(root.children[1], [0.0, 0.0, 0.0, -math.inf], 2.0) == -math.inf


class Uniforms:
    """The part of an environment by which a child is drawn."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def uniform(self, n):
        return torch.rand(n, generator=self.generator, dtype=torch.float64)


def test_a_way_down_the_tree_is_drawn_by_soft_values_or_is_the_greedy_one():
    root, values, env = tree(), [1.0, 2.0, 0.0, 1.2], Uniforms()
    below = torch.tensor([soft_value(child, values, 2.0) for child in root.children])
    share = float((2.0 * below).softmax(0)[0])
    drawn = sum(chosen(env, root, values, 2.0, None) is root.children[0] for _ in range(2000)) / 2000
    assert abs(drawn - share) < 4 * (share * (1 - share) / 2000) ** 0.5 and 0.2 < share < 0.8
    lost = [-math.inf] * 4
    assert 800 < sum(chosen(env, root, lost, 2.0, None) is root.children[0] for _ in range(2000)) < 1200
    assert chosen(env, root, values, 2.0, 0.0) is root.children[int(below.argmax())]
    # UCT: 4 visits in all, 3 of them of the first.
    bonus = [below[0] + (math.log(4) / 3) ** 0.5, below[1] + math.log(4) ** 0.5]
    assert chosen(env, root, values, 2.0, 1.0) is root.children[int(bonus[1] > bonus[0])]
    assert chosen(env, root, values, 2.0, 100.0) is root.children[1]


@pytest.mark.parametrize("greedy", [True, False])
def test_a_branch_of_a_tree_costs_the_steps_below_it(monkeypatch, greedy):
    roots = []

    class Recorded(Node):
        def __init__(self, done, *args, **kwargs):
            super().__init__(done, *args, **kwargs)
            roots.append(self)

    monkeypatch.setattr(import_module("diffscale.searches.dts"), "Node", Recorded)
    result = ran("dts", Near(), ToySampler(steps=STEPS), 300, at=(3, 7), greedy=greedy)

    def price(node):
        """What all below a node cost, which itself was paid for by its parent."""
        down = [child for child in node.children if child.finished is None]
        leaves = len(node.children) - len(down)
        return leaves * (STEPS - node.done) + sum(child.done - node.done + price(child) for child in down)

    root = roots[0]
    nodes = [node for node in roots if node.children]
    assert result.ledger.nfe == price(root) > 300 - STEPS
    assert sum(node.finished is not None for node in roots) == result.candidates == root.visits
    for node in nodes:
        assert node.visits == sum(child.visits or 1 for child in node.children)
        # The last of its children came when there were too few, with one visit less.
        assert node.done == 7 or len(node.children) - 1 < max(1.0, 2.0 * node.visits**0.5)
    assert len(root.children) > 1 and max(len(node.children) for node in nodes if node.done == 3) > 1


def test_without_strength_every_sample_of_a_tree_is_a_plain_one(samples):
    search = lambda env: SEARCHES["dts"](env, at=(2, 4), n=3, strength=0.0, greedy=False, widening=1.0)  # noqa: E731
    tasks = [Task(search, 0, noise.fold(11, i), 10_000) for i in range(100)]
    last = [float(result.pool[-1]) for result in run_searches(tasks, ToySampler(steps=STEPS), Tilt(), batch_size=4096)]
    assert stats.ks_2samp(last, samples[1].numpy()).pvalue > 1e-3
