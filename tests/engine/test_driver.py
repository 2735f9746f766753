"""The driver: counted, batched, bounded, and hard to stop."""

import math
import warnings

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PROMPTS, tiny_flux_true_cfg, tiny_sd

from diffscale._util.errors import AllCandidatesFailed, BudgetTooSmall, DiffscaleError, Unsuited
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.kept_pictures import KeptPictures
from diffscale.engine.ledger import BudgetSpent
from diffscale.engine.results import Result
from diffscale.engine.scoring import DroppedCandidate
from diffscale.engine.task import Task
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.toy import ToySampler
from diffscale.searches.first_order import first_order
from diffscale.searches.random import random
from diffscale.types import Predict, Run, Score
from diffscale.verifiers.ensemble import Ensemble


def task(budget, search=random, row=0, seed=0):
    return Task(search, row, noise.fold(noise.root(seed), row), budget)


def flux(steps=2):
    t = tiny_flux_true_cfg(FlowMatchEulerDiscreteScheduler())
    return DiffusersSampler(t.pipe, PROMPTS, steps, t.args), t


class Recorder:
    def __init__(self):
        self.scores, self.keys, self.nfe, self.most = [], [], [], 0

    def __call__(self, search, keys, scores, images, nfe):
        self.most = max(self.most, len(images))
        self.scores += scores.tolist()
        self.keys += keys.tolist()
        self.nfe += nfe


SHARED = {}


@settings(max_examples=12, deadline=None)
@given(st.lists(st.integers(2, 17), min_size=1, max_size=3), st.sampled_from([1, 3, None]))
def test_the_ledger_is_what_a_hook_counts_for_any_budget(budgets, batch_size):
    if not SHARED:
        SHARED["sampler"], t = flux()
        SHARED["rows"] = rows = []
        t.net.register_forward_pre_hook(
            lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
        )
    sampler, rows = SHARED["sampler"], SHARED["rows"]
    rows.clear()
    tasks = [task(budget, row=row) for row, budget in enumerate(budgets)]
    results = run_searches(tasks, sampler, lambda images, _: images.mean((1, 2, 3)), batch_size)
    for budget, result in zip(budgets, results, strict=True):
        ledger = result.ledger
        n = budget // sampler.steps
        assert ledger.nfe == n * sampler.steps <= budget
        assert ledger.network_forwards == 2 * ledger.nfe
        assert ledger.flops == ledger.network_forwards * sampler.flops_per_forward
        assert ledger.decodes == ledger.verifier_calls == n
        assert all(seconds > 0 for seconds in ledger.seconds.values())
    assert sum(result.ledger.network_forwards for result in results) == sum(rows)


def test_same_scores_for_every_micro_batch(verifier):
    sampler, _ = flux()
    seen = []
    for size in (1, 3, 64, None):
        recorder = Recorder()
        run_searches([task(2 * 9), task(2 * 9, row=1)], sampler, verifier, size, [recorder])
        seen.append(dict(zip(recorder.keys, recorder.scores, strict=True)))
    for other in seen[1:]:
        assert other.keys() == seen[0].keys()
        assert all(abs(other[key] - seen[0][key]) <= 1e-4 for key in other)


def test_alone_or_among_others_is_the_same(verifier):
    sampler = ToySampler(PROMPTS, steps=4)
    tasks = [task(4 * (3 + row), row=row) for row in range(3)]
    together = run_searches(tasks, sampler, verifier, batch_size=4)
    for one, result in zip(tasks, together, strict=True):
        (alone,) = run_searches([one], sampler, verifier)
        assert alone.best.key == result.best.key and alone.trace == result.trace
        assert torch.equal(alone.best.latents, result.best.latents)


def test_the_best_is_replayable_and_the_trace_exact(verifier):
    sampler = ToySampler(steps=4)
    recorder = Recorder()
    (result,) = run_searches([task(4 * 20)], sampler, verifier, None, [recorder])
    assert recorder.nfe == [4 * (i + 1) for i in range(20)]
    assert result.best.score == max(recorder.scores)
    assert result.baseline.key == recorder.keys[0]
    assert result.baseline.score == recorder.scores[0] and result.baseline.nfe == 4
    assert result.trace[0] == (4, recorder.scores[0])
    assert result.trace[-1] == (80, result.best.score)
    assert dict(result.trace)[result.best.nfe] == result.best.score
    again = sampler.run(sampler.prior(torch.tensor([result.best.key]), torch.tensor([0])))
    assert torch.equal(again.x[0], result.best.latents)
    assert torch.equal((sampler.decode(again.x)[0] * 255).round() / 255, result.best.image)


def test_many_searches_share_a_micro_batch(verifier):
    sizes = []

    class Watched(ToySampler):
        def run(self, state, to=None, record=None):
            sizes.append(len(state))
            return super().run(state, to, record)

    tasks = [task(2 * 40, row=row) for row in range(3)]
    run_searches(tasks, Watched(PROMPTS, steps=2), verifier, batch_size=12)
    assert sizes == [12] * 10


def test_many_candidates_pass_in_chunks(verifier):
    recorder = Recorder()
    (result,) = run_searches([task(2 * 10_000)], ToySampler(steps=2), verifier, 500, [recorder])
    assert result.ledger.nfe == 20_000 and recorder.most <= 500
    assert len(set(recorder.keys)) == 10_000


class Limited(ToySampler):
    """Runs out of memory above `limit` rows, after a step is done."""

    limit = 5
    error: Exception = torch.OutOfMemoryError("CUDA out of memory")

    def run(self, state, to=None, record=None):
        state = super().run(state, state.step + 1)
        if len(state) > self.limit:
            raise self.error
        return super().run(state, to, record)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_halves_the_micro_batch(verifier, error):
    sampler = Limited(steps=3)
    sampler.error = error
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        (result,) = run_searches([task(3 * 40)], sampler, verifier, batch_size=16)
    assert "Out of memory with 16 rows, going on with 8" in str(told[0].message)
    assert len(told) == 2
    (plain,) = run_searches([task(3 * 40)], ToySampler(steps=3), verifier)
    assert result.trace == plain.trace and result.ledger.nfe == 120
    assert result.ledger.network_forwards == sampler.forwards == 120 + 16 + 8
    sampler.limit = 0
    with pytest.raises(type(error)), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_searches([task(3)], sampler, verifier)


class Moody:
    """Fails on dark pictures in one of three ways."""

    name = "moody"

    def __init__(self, way, bound=0.5):
        self.way, self.bound = way, bound

    def __call__(self, images, prompts):
        red = images[:, 0].mean((1, 2))
        if self.way == "raise" and (red < self.bound).any():
            raise ValueError("too dark")
        bad = {"nan": math.nan, "inf": math.inf, "raise": 0.0}[self.way]
        return torch.where(red < self.bound, bad, red)[:, None]


@pytest.mark.parametrize("way", ["nan", "inf", "raise"])
def test_a_candidate_that_cannot_be_scored_is_dropped(verifier, way):
    recorder = Recorder()
    with pytest.warns(DroppedCandidate, match="Dropped a candidate of 'a point': verifier 'moody'"):
        (result,) = run_searches([task(4 * 20)], ToySampler(steps=4), Moody(way), None, [recorder])
    (plain,) = run_searches([task(4 * 20)], ToySampler(steps=4), verifier)
    assert result.best.key == plain.best.key
    assert 0 < result.dropped == sum(math.isinf(score) for score in recorder.scores) < 20
    with pytest.raises(AllCandidatesFailed, match="20 candidates"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run_searches([task(4 * 20)], ToySampler(steps=4), Moody(way, 2.0))


def test_a_verifier_of_the_wrong_shape_is_an_error():
    class Wrong:
        name = "wrong"

        def __call__(self, images, prompts):
            return images

    with pytest.raises(DiffscaleError, match="scores of shape"):
        run_searches([task(8)], ToySampler(steps=4), Wrong())


def test_a_budget_below_one_sample_says_what_one_costs(verifier):
    sampler = ToySampler(steps=4)
    with pytest.raises(BudgetTooSmall, match="one costs 4 NFE"):
        run_searches([task(3)], sampler, verifier)
    assert sampler.forwards == 0


def test_a_search_may_ask_for_less_or_end(verifier):
    def greedy(env):
        try:
            state = yield Run(env.prior(100))
        except BudgetSpent:
            state = yield Run(env.prior(env.nfe_left // env.steps))
        yield Score(state)
        yield Run(env.prior(1))
        raise AssertionError("cannot be paid for")

    sampler = ToySampler(steps=4)
    (result,) = run_searches([task(4 * 6 + 1, greedy)], sampler, verifier)
    assert result.ledger.nfe == sampler.forwards == 24


def svdd(env, m=4):
    """Keeps the most promising of m children at every step: needs all requests mid-trajectory."""
    state = yield Predict(env.prior(1))
    while state.step < env.steps - 1:
        children = yield Predict(env.step(env.branch(state, m)))
        rewards = yield Score(children)
        state = children[rewards.argmax()[None]]
    yield Score(env.step(state))


@pytest.mark.parametrize("kind", ["toy", "network"])
def test_requests_in_mid_trajectory(verifier, kind):
    if kind == "toy":
        sampler = ToySampler(PROMPTS, steps=5)
    else:
        t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
        sampler = DiffusersSampler(t.pipe, PROMPTS, 5, {**t.args, "eta": 1.0})
    results = run_searches([task(99, svdd, row) for row in range(3)], sampler, verifier)
    (alone,) = run_searches([task(99, svdd, 1)], sampler, verifier)
    for result in results:
        assert result.ledger.nfe == 1 + 4 * 4
        assert result.ledger.decodes == 4 * 4 + 1
        assert len(result.trace) == 1  # only the finished picture competes
    assert alone.best.key == results[1].best.key
    assert abs(alone.best.score - results[1].best.score) <= 1e-4


def test_renoising_and_running_on(verifier):
    def restart(env):
        state = yield Run(env.prior(2), 3)
        state = yield Run(env.renoise(env.branch(state, 2), env.levels[1]), 3)
        yield Score((yield Run((yield Predict(state)))))

    sampler = ToySampler(steps=5)
    (result,) = run_searches([task(99, restart)], sampler, verifier)
    assert result.ledger.nfe == sampler.forwards == 2 * 3 + 4 * 2 + 4 * 1 + 4 * 1


def test_running_backwards_refunds_nothing(verifier):
    def cheat(env):
        state = yield Run(env.prior(1), 3)
        yield Run(state, 1)

    with pytest.raises(DiffscaleError, match="from step 3 cannot end at step 1"):
        run_searches([task(99, cheat)], ToySampler(steps=5), verifier)


def test_scores_leave_the_device_before_they_become_float64():
    class NoFloat64(torch.Tensor):
        """Scores on a device like Apple's, which knows no float64."""

        def double(self):
            raise TypeError("no float64 here")

        def cpu(self):
            return self.as_subclass(torch.Tensor)

    class OnDevice:
        name = "on-device"

        def __call__(self, images, prompts):
            return images.mean((1, 2, 3)).as_subclass(NoFloat64)

    (result,) = run_searches([task(8)], ToySampler(steps=4), OnDevice())
    assert result.dropped == 0


def test_a_request_needs_rows(verifier):
    def empty(env):
        yield Run(env.prior(0))

    with pytest.raises(DiffscaleError, match="Run of no rows"):
        run_searches([task(99, empty)], ToySampler(), verifier)


def test_score_needs_a_picture(verifier):
    def early(env):
        yield Score(env.prior(1))

    with pytest.raises(
        DiffscaleError, match=r"`state = yield from env.predict\(state\)` first \(in line \d+ of .*test_driver.py\)\.$"
    ):
        run_searches([task(99, early)], ToySampler(), verifier)


class Comparing:
    """As self-supervised verifiers: sees a prediction on the way, and so finished pictures only."""

    name = "comparing"
    record_level = 0.4

    def __call__(self, images, prompts, recorded):
        return -(images - recorded).square().mean((1, 2, 3))


@pytest.mark.parametrize("batch_size", [1, 3, None])
def test_a_search_that_a_verifier_does_not_suit_fails_alone(batch_size):
    sampler = ToySampler(PROMPTS, steps=5)
    both = [task(5 * 4, search, row) for row in range(3) for search in (svdd, random)]
    outcomes = run_searches(both, sampler, Comparing(), batch_size, return_errors=True)
    for unsuited, good in zip(outcomes[::2], outcomes[1::2], strict=True):
        assert isinstance(unsuited, Unsuited) and "cannot score unfinished ones" in str(unsuited)
        assert isinstance(good, Result) and good.ledger.network_forwards == good.ledger.nfe == 20
    with pytest.raises(Unsuited, match="use a search over noises"):
        run_searches(both[:1], sampler, Comparing())


@pytest.mark.parametrize("numpy", [True, False])
def test_a_verifier_without_gradient_costs_the_search_that_needs_one(verifier, numpy):
    class Flat:
        name = "flat"

        def __call__(self, images, prompts):
            if numpy:
                images = torch.from_numpy(images.numpy())
            return images.detach().mean((1, 2, 3))

    tasks = [task(5 * 4, first_order), task(5 * 4, random, 1), task(5 * 4, first_order, 2)]
    first, good, last = run_searches(tasks, ToySampler(PROMPTS, steps=5), Flat(), 1, return_errors=True)
    assert isinstance(good, Result) and good.ledger.network_forwards == 20
    for error in (first, last):
        assert isinstance(error, Unsuited) and "'flat' has no gradient" in str(error)


class Greenness:
    name = "greenness"

    def __call__(self, images, prompts):
        return 1 - images[:, 1].mean((1, 2))


@pytest.mark.parametrize("components", [1, 2])
def test_after_a_restart_the_best_and_the_thumbnails_come_from_the_journal(tmp_path, verifier, components):
    """Stopped half-way and after the end; with two components more can be the best than is known in the middle."""
    if components == 2:
        verifier = Ensemble("both", [verifier, Greenness()], [1.0, 1.0])

    def run(path, sampler, stop=math.inf):
        def progress(nfe, budget, best):
            assert budget == 4 * 40
            if nfe > stop:
                raise KeyboardInterrupt

        journal = None if path is None else Journal(path, {})
        try:
            (result,) = run_searches(
                [task(4 * 40)], sampler, verifier, 8, gallery=6, keep_best=3, journal=journal, progress=progress
            )
        finally:
            if journal is not None:
                journal.close()
        return result

    wanted = run(None, ToySampler(steps=4))
    path = tmp_path / "journal.sqlite"
    with pytest.raises(KeyboardInterrupt):
        run(path, ToySampler(steps=4), 80)
    half, done = ToySampler(steps=4), ToySampler(steps=4)
    for sampler, forwards in ((half, 160 - 96), (done, 0)):
        found = run(path, sampler)
        assert sampler.forwards == forwards
        assert (found.best.number, found.best.key, found.best.score) == (
            wanted.best.number, wanted.best.key, wanted.best.score,
        )  # fmt: skip
        assert torch.equal(found.best.image, wanted.best.image) and torch.equal(found.best.latents, wanted.best.latents)
        assert torch.equal(found.baseline.image, wanted.baseline.image)
        assert [(shown.number, shown.score) for shown in found.gallery] == [
            (shown.number, shown.score) for shown in wanted.gallery
        ]
        assert len(found.gallery) == 6 and len(found.best_candidates) == 3
        for a, b in zip(found.best_candidates, wanted.best_candidates, strict=True):
            assert (a.number, a.score) == (b.number, b.score) and torch.equal(a.latents, b.latents)
        assert all(torch.equal(a.image, b.image) for a, b in zip(found.gallery, wanted.gallery, strict=True))


@pytest.mark.parametrize("components", [1, 2])
@pytest.mark.parametrize("keep_best", [1, 4, 60])
def test_the_best_few_come_in_full_size_best_first_and_no_others_are_held(verifier, components, keep_best, monkeypatch):
    if components == 2:
        verifier = Ensemble("both", [verifier, Greenness()], [1.0, 1.0])
    seen, most = {}, 0

    def observe(search, keys, scores, images, nfe):
        seen.update(zip(keys.tolist(), images, strict=True))

    own = KeptPictures.keep

    def keep(pictures, *args):
        nonlocal most
        own(pictures, *args)
        most = max(most, len(pictures._held))

    monkeypatch.setattr(KeptPictures, "keep", keep)
    (result,) = run_searches([task(4 * 40)], ToySampler(steps=4), verifier, 8, [observe], keep_best=keep_best)
    values = result.pool[:, 0] if components == 1 else verifier.aggregate(result.pool).round(decimals=12)
    order = sorted(range(40), key=lambda i: (-float(values[i]), i))[:keep_best]
    assert [each.number for each in result.best_candidates] == order
    assert [each.score for each in result.best_candidates] == values[order].tolist()
    assert result.best is result.best_candidates[0]
    for each in result.best_candidates:
        assert torch.equal((each.image * 255).round(), (seen[each.key] * 255).round())
    if components == 1:
        assert most <= keep_best + 1  # the baseline
