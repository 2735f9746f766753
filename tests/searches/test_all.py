"""What holds for every algorithm: its price, its budget, and that nothing but the seed decides its result."""

import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PROMPTS
from toys import GRADIENTS, PLUG_INS, PRICED, ROWS, forwards, make, near_of_lists, same, task

from diffscale.cli import list as listed
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.pool import Pool
from diffscale.engine.results import Result
from diffscale.searches import SEARCHES
from diffscale.testing import NearPoint as Near
from diffscale.testing import ShuffledWorkers
from diffscale.testing import WordedToy as ToySampler
from diffscale.verifiers import load as load_verifier

SLOW = {"bayes"}
PROCESSES = ["flow", "vp", "ve"]  # the prior of ve has a standard deviation of 80
QUICK = [name for name in PRICED if name not in SLOW]


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("setting", [name for name in PRICED if PRICED[name][1]])
def test_costs_what_it_says(setting, process):
    sampler = ToySampler(steps=10, process=process)
    (result,) = run_searches([task(setting)], sampler, Near())
    price = PRICED[setting][1](10)
    if setting == "paths":  # two paths, down to level 0.11: the ninth step of an even grid
        price += 2 * (next(i for i, level in enumerate(sampler.levels) if level <= 0.11) - 9)
    assert result.ledger.nfe == price
    assert result.ledger.network_forwards == forwards(sampler) == (ROWS[setting](10) if setting in ROWS else price)
    assert result.ledger.flops == price * sampler.flops_per_forward


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([*(name for name in SEARCHES if name not in SLOW), *PLUG_INS]),
    st.integers(5, 200),
    st.integers(1, 9),
    st.sampled_from(PROCESSES),
)
def test_no_budget_is_exceeded(name, budget, size, process):
    """With no settings at all: an algorithm spends the budget on what it thinks best, or says that it is too small."""
    sampler = ToySampler(steps=5, process=process)
    search = PLUG_INS.get(name) or SEARCHES[name]
    (outcome,) = run_searches([task(search, budget)], sampler, Near(), size, return_errors=True)
    if isinstance(outcome, Result):
        assert 0 < outcome.ledger.nfe <= budget
        assert forwards(sampler) <= outcome.ledger.nfe
    else:
        assert "give" in str(outcome)


@pytest.mark.parametrize("process", ["flow", "ve"])
@pytest.mark.parametrize("setting", PRICED)
def test_only_the_seed_decides(setting, process):
    def run(tasks, size):
        return run_searches(tasks, ToySampler([*PROMPTS] * 6, 6, process), Near(), size, gallery=3, keep_best=3)

    # Those without a price spend all of it.
    budget = 90 if setting in SLOW else 400 if PRICED[setting][1] else 200
    tasks = [task(setting, budget, row) for row in range(3 if setting in SLOW else 16)]
    together = run(tasks, None)
    for size in (1, 7):
        assert all(map(same, together, run(tasks, size)))
    for row in (0, 2):
        assert same(together[row], *run([tasks[row]], None))
    assert not same(*run_searches([task(setting, budget, 0, seed) for seed in (0, 1)], ToySampler(steps=6), Near()))


class Killed(BaseException):
    """As a signal would end the process: nothing may catch it."""


class Fragile(Near):
    """Is killed at its n-th call."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def __call__(self, images, prompts):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__call__(images, prompts)


class FragileToy(ToySampler):
    """Is killed at its n-th prediction."""

    def __init__(self, n, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.left = n

    def predict(self, state):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().predict(state)


@settings(max_examples=80, deadline=None)
@given(
    st.sampled_from(QUICK),
    st.integers(0, 12),
    st.integers(0, 40),
    st.sampled_from([2, 5, None]),
    st.sampled_from(PROCESSES),
)
def test_killed_anywhere_it_goes_on_and_ends_alike(tmp_path_factory, setting, verified, predicted, size, process):
    folder = tmp_path_factory.mktemp("journal")
    tasks = [task(setting, 400, row) for row in range(3)]
    whole_sampler = ToySampler(PROMPTS, 5, process)
    whole = run_searches(tasks, whole_sampler, Near(), size, gallery=4, keep_best=3)

    forwards = 0
    for verifier, sampler in (
        (Fragile(verified), ToySampler(PROMPTS, 5, process)),
        (Near(), FragileToy(predicted, PROMPTS, 5, process)),
        (Near(), ToySampler(PROMPTS, 5, process)),
    ):
        journal = Journal(folder / "journal.sqlite", {"setting": setting})
        try:
            resumed = run_searches(tasks, sampler, verifier, size, gallery=4, keep_best=3, journal=journal)
        except Killed:
            resumed = None
        finally:
            journal.close()
            forwards += sampler.forwards
        if resumed is not None:
            break
    assert resumed is not None and all(map(same, whole, resumed))
    # Twice killed, at most two micro-batches ran in vain: of all rows of three searches, to the end, with gradients.
    lost = max(len(PROMPTS) * 20, 1) * 5 * 2
    assert whole_sampler.forwards <= forwards <= whole_sampler.forwards + 2 * lost


def test_a_finished_run_is_replayed_for_nothing(tmp_path):
    tasks = [task("svdd", row=row) for row in range(2)]
    results = []
    for _ in range(2):
        sampler = ToySampler(PROMPTS, steps=5)
        journal = Journal(tmp_path / "journal.sqlite", {})
        results.append(run_searches(tasks, sampler, Near(), journal=journal))
        journal.close()
    assert sampler.forwards == 0
    assert all(map(same, *results))


@pytest.mark.parametrize("setting", QUICK)
def test_dropped_candidates_are_survived(setting):
    class Moody(Near):
        def __call__(self, images, prompts):
            scores = super().__call__(images, prompts)
            return torch.where((images[:, 0, 0, 0] * 1000).long() % 3 == 0, torch.nan, scores)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        outcomes = run_searches(
            [task(setting, 300, seed=seed) for seed in range(4)], ToySampler(steps=6), Moody(), return_errors=True
        )
    assert any(isinstance(outcome, Result) and outcome.dropped for outcome in outcomes)
    assert all(isinstance(o, Result) or "finite" in str(o) for o in outcomes)


@pytest.mark.parametrize("name", SEARCHES)
def test_is_described_with_its_price(name):
    description, price = next(row[1:3] for row in listed.searches() if row[0] == name)
    assert description and price
    assert make  # settings exist for every algorithm
    assert any(setting.split()[0] == name for setting in PRICED)


@pytest.mark.parametrize("setting", PRICED)
def test_replies_are_placed_by_rows_whoever_computes_them_and_in_whatever_order(setting, tmp_path):
    tasks = [task(setting, 90 if setting in SLOW else 300, row) for row in range(2)]
    wanted = run_searches(tasks, ToySampler(PROMPTS, steps=6), Near(), 6, gallery=3, keep_best=3)
    workers = ShuffledWorkers(3, PROMPTS)
    journal = Journal(tmp_path / "journal.sqlite", {})
    found = run_searches(
        tasks, ToySampler(PROMPTS, steps=6), Near(), 6, gallery=3, keep_best=3, journal=journal,
        executor=Pool(workers, workers.samplers[0], 2),
    )  # fmt: skip
    assert all(same(a, b) for a, b in zip(found, wanted, strict=True))
    assert sum(each.ledger.network_forwards for each in found) == sum(map(forwards, workers.samplers))
    # What the journal holds was placed by rows too: replayed, it gives the same without computing anything.
    replayed = ToySampler(PROMPTS, steps=6)
    again = run_searches(tasks, replayed, Near(), 6, gallery=3, keep_best=3, journal=journal)
    journal.close()
    assert replayed.forwards == 0 and all(same(a, b) for a, b in zip(again, wanted, strict=True))


@pytest.mark.parametrize("setting", [name for name in QUICK if name not in GRADIENTS])
def test_a_verifier_that_is_a_function_of_others_drives_every_algorithm(setting):
    own, others = (
        run_searches([task(setting, 300)], ToySampler(steps=6), verifier, 5, gallery=3, keep_best=3)[0]
        for verifier in (Near(), load_verifier(near_of_lists))
    )
    assert own.best.key == others.best.key and own.best.score == pytest.approx(others.best.score, abs=1e-9)
    assert own.ledger.nfe == others.ledger.nfe
