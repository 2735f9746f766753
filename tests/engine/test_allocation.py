"""One budget over many prompts: never exceeded, minimum kept, the same however it is computed, and where it helps."""

import inspect
from contextlib import closing
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffscale._util.errors import BudgetTooSmall, DiffscaleError
from diffscale.engine import noise
from diffscale.engine.allocation import ALLOCATIONS, Account, Threshold
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.task import Task
from diffscale.registry.arguments import made
from diffscale.searches import SEARCHES, choose_search
from diffscale.testing import Killed, NearPoint, assert_same, points, shuffled
from diffscale.testing import WordedToy as ToySampler
from diffscale.types import Evaluate, search_traits
from diffscale.verifiers.ensemble import Ensemble
from diffscale.verifiers.function import FunctionVerifier

PROMPTS = [f"point {i}" for i in range(5)]
ANYTIME = sorted(name for name in SEARCHES if choose_search(name).declares("anytime"))
STEPS = 6


class Reach:
    """The easier a prompt is, the nearer its scores are to 1: those of the last prompt hardly differ."""

    name = "reach"

    def __call__(self, images, prompts):
        hard = torch.tensor([0.05 if each.endswith("4") else 1.0 for each in prompts])
        return 1 - hard * (points(images) - points(images).new_tensor([4.2, 0.3])).norm(dim=1)


def tasks(search="random", candidates=12, rows=5):
    made = choose_search(search).make()
    return [Task(made, row, noise.fold(noise.root(3), row), candidates * STEPS) for row in range(rows)]


def read(given):
    return made(given, "allocation", ALLOCATIONS)


RULE = Threshold()


def run(given=None, allocation=RULE, verifier=None, executor=None, sampler=None, **options):
    sampler = sampler or ToySampler(PROMPTS, STEPS)
    return run_searches(
        tasks() if given is None else given,
        sampler,
        verifier or NearPoint(),
        executor=executor,
        allocation=allocation,
        **options,
    )


def alone(task, budget, verifier=None):
    return run([Task(task.search, task.prompt_index, task.key, budget)], None, verifier, gallery=2)[0]


@settings(max_examples=30, deadline=None)
@given(
    scores=st.lists(st.lists(st.floats(-10, 10), min_size=40, max_size=40), min_size=1, max_size=6),
    average=st.integers(1, 20), minimum=st.integers(1, 5), score=st.none() | st.floats(-5, 5),
    chance=st.sampled_from([0.0, 0.05, 0.5]), steps=st.integers(1, 7),
)  # fmt: skip
def test_the_total_is_never_exceeded_and_the_minimum_kept(scores, average, minimum, score, chance, steps):
    rule, total = Threshold(score, chance, minimum=minimum), average * len(scores) * steps
    if minimum > average:
        with pytest.raises(DiffscaleError, match="give a larger budget, or the allocation a smaller minimum"):
            rule.first(len(scores), total, steps)
        return
    n = [rule.first(len(scores), total, steps) // steps] * len(scores)
    over = [False] * len(scores)
    for _ in range(200):
        accounts = [Account(n[i] * steps, np.array(s[: n[i]]), over[i]) for i, s in enumerate(scores)]
        grants = rule.grants(accounts, total - sum(n) * steps, steps)
        assert sum(grants.values()) <= total - sum(n) * steps and all(nfe > 0 for nfe in grants.values())
        assert not any(over[i] or (score is not None and max(accounts[i].scores) >= score) for i in grants)
        if not grants:
            break
        for i, nfe in grants.items():
            grown = min(40, n[i] + nfe // steps)
            n[i], over[i] = grown, grown == n[i]
    assert not grants and sum(n) <= average * len(scores) and min(n) >= min(minimum, 40)


@pytest.mark.parametrize("search", [*ANYTIME, "random n=9", "zero_order n=3 policy=restart"])
def test_what_a_prompt_finds_is_what_it_finds_alone_with_what_it_was_given(search):
    every = tasks(search)
    found = run(every, gallery=2)
    assert sum(each.ledger.nfe for each in found) <= 5 * 12 * STEPS
    assert all(each.ledger.nfe >= 4 * STEPS for each in found)
    for task, result in zip(every, found, strict=True):
        assert_same(result, alone(task, result.ledger.budget))


@pytest.mark.parametrize("search", ["random", "zero_order n=2"])
def test_it_is_the_same_in_any_batches_and_by_any_workers_and_computes_nothing_twice(search):
    sampler = ToySampler(PROMPTS, STEPS)
    wanted = run(tasks(search), sampler=sampler, gallery=2)
    assert sampler.forwards == sum(each.ledger.nfe for each in wanted)
    assert len({each.ledger.nfe for each in wanted}) > 1
    workers = shuffled(3, prompts=PROMPTS)
    for found in (
        run(tasks(search), batch_size=1, gallery=2), run(tasks(search), batch_size=7, gallery=2),
        run(tasks(search), executor=workers, gallery=2),
    ):  # fmt: skip
        for one, other in zip(wanted, found, strict=True):
            assert_same(one, other)
    # Two tasks of one name are two searches.
    named = [Task(each.search, each.prompt_index, each.key, each.budget, "same") for each in tasks(search)]
    for one, other in zip(wanted, run(named, gallery=2), strict=True):
        assert_same(one, other)


class Dying(NearPoint):
    def __init__(self, calls):
        super().__init__()
        self.left = calls

    def __call__(self, images, prompts):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().__call__(images, prompts)


@pytest.mark.parametrize("calls", [1, 9, 14, 20])
def test_killed_in_any_round_it_goes_on(tmp_path, calls):
    wanted, forwards = run(batch_size=3), 0
    for verifier in (Dying(calls), NearPoint(), NearPoint()):
        sampler = ToySampler(PROMPTS, STEPS)
        with closing(Journal(tmp_path / "journal.sqlite", {})) as journal:
            try:
                found = run(verifier=verifier, sampler=sampler, journal=journal, batch_size=3)
            except Killed:
                continue
            finally:
                forwards += sampler.forwards
    for one, other in zip(wanted, found, strict=True):
        assert_same(one, other)
    assert not sampler.forwards
    assert forwards <= sum(each.ledger.nfe for each in found) + 3 * STEPS  # what was computed when it was killed


def test_it_reads_what_equal_budgets_have_paid_for_and_they_read_it(tmp_path):
    with closing(Journal(tmp_path / "journal.sqlite", {})) as journal:
        sampler, named = (
            ToySampler(PROMPTS, STEPS),
            [Task(*list(vars(t).values())[:4], str(i)) for i, t in enumerate(tasks())],
        )
        equal = run(named, None, sampler=sampler, journal=journal, gallery=2)
        before = sampler.forwards
        shared = run(named, sampler=sampler, journal=journal, gallery=2)
        beyond = sum(max(0, each.ledger.nfe - 12 * STEPS) for each in shared)
        assert 0 < beyond == sampler.forwards - before
        for one, other in zip(run(gallery=2), shared, strict=True):
            assert_same(one, other)
        for one, other in zip(run(named, None, sampler=sampler, journal=journal, gallery=2), equal, strict=True):
            assert_same(one, other)
        assert sampler.forwards - before == beyond


def test_easy_prompts_give_to_hard_ones():
    found = run(verifier=Reach(), allocation=Threshold(score=0.95))
    spent = [each.ledger.nfe // STEPS for each in found]
    assert spent[4] == 4 and max(spent) > 12 and sum(spent) <= 60
    equal = run(verifier=Reach(), allocation=None)
    assert found[4].best.score > 0.8
    assert np.mean([min(0.95, a.best.score) for a in found]) >= np.mean([min(0.95, a.best.score) for a in equal])
    # Nobody has any use for what is left.
    done = run(verifier=Reach(), allocation=Threshold(score=-100.0))
    assert [each.ledger.nfe for each in done] == [4 * STEPS] * 5


def test_a_search_that_fails_or_whose_candidates_are_dropped_gives_what_it_has_left():
    def moody(images, prompts):
        scores = NearPoint()(images, prompts)
        return torch.where(torch.tensor([each.endswith("1") for each in prompts]), torch.nan, scores)

    with pytest.warns(UserWarning, match="Dropped"):
        found = run(verifier=FunctionVerifier("moody", moody), return_errors=True)
    assert "None of the 4 candidates" in str(found[1])
    assert sum(each.ledger.nfe for i, each in enumerate(found) if i != 1) == (60 - 4) * STEPS


class Coarse(NearPoint):
    """Scores of few values, so that candidates share the best one, and are compared."""

    pairs = 0

    def __call__(self, images, prompts):
        return (super().__call__(images, prompts) / 4).round()

    def compare(self, first, second, prompts):
        self.pairs += len(prompts)
        return (NearPoint()(first, prompts) - NearPoint()(second, prompts)).sigmoid().round(decimals=9)


def test_what_chooses_decides_what_is_given():
    found, plain = run(verifier=Reach(), choose=NearPoint()), run()
    for one, other in zip(found, plain, strict=True):
        assert one.ledger.nfe == other.ledger.nfe and one.best.key == other.best.key


def test_ties_are_broken_once_when_all_is_given():
    verifier = Coarse()
    found = run(verifier=verifier)
    assert 0 < verifier.pairs == sum(each.ledger.comparisons for each in found)
    for task, result in zip(tasks(), found, strict=True):
        one = alone(task, result.ledger.budget, Coarse())
        assert one.best.key == result.best.key and one.compared == result.compared


@search_traits(anytime=True)
def dear(env):
    while True:
        yield Evaluate(env.prior(6))


def make_anytime(n: int = 3):
    return partial(choose_search("random").make(), n=n).func


make_anytime = search_traits(anytime=True)(make_anytime)


def test_what_cannot_share_is_refused_before_anything_runs():
    sampler = ToySampler(PROMPTS, STEPS)
    for search, verifier, said in (
        ("svdd", None, r"svdd.* cannot be given more on its way"),
        ("random", Ensemble("both", [NearPoint(), Reach()], [1.0, 1.0]), "does not compare between prompts"),
    ):
        with pytest.raises(DiffscaleError, match=said):
            run(tasks(search), verifier=verifier, sampler=sampler)
    with pytest.raises(DiffscaleError, match="costs 600 NFE, and the budgets of all are 360"):
        run(allocation=Threshold(minimum=20), sampler=sampler)
    assert not sampler.forwards
    with pytest.raises(BudgetTooSmall, match="the allocation's minimum of 4 samples pays"):
        run([Task(dear, 0, 1, 100 * STEPS)])


def test_what_partial_functions_and_factories_make_is_anytime_where_they_say_so():
    found = run([Task(choose_search(f"{__name__}:make_anytime").make(), 0, 1, 10 * STEPS)])
    assert found[0].ledger.nfe > 4 * STEPS
    assert choose_search(partial(SEARCHES["random"], n=3)).declares("anytime")


def test_a_text_is_read_and_ranges_are_kept():
    assert read("threshold score=.9 minimum=2") == Threshold(score=0.9, minimum=2)
    assert read(None) is None
    for name in inspect.signature(Threshold).parameters:
        for value in ("nan", "inf", "-inf", "1e400", *(() if name == "score" else ("-1",))):
            with pytest.raises(DiffscaleError, match=name):
                read(f"threshold {name}={value}")
        with pytest.raises(DiffscaleError, match=name):
            Threshold(**{name: float("nan")})
    for wrong in ("threshold minimum=0", "threshold chance=1.1", "", "thresold", "threshold x=1"):
        with pytest.raises(DiffscaleError):
            read(wrong)
    with pytest.raises(
        DiffscaleError, match="Give the allocation as a text, such as 'threshold', or as a Threshold, not 3"
    ):
        read(3)
    assert run([]) == []
