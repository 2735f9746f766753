"""Looks at many candidates: no more rows at once than are allowed, as many finished as are to be kept, and refusals."""

from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toys import task

from diffscale._util import limits
from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.samplers.toy import ToySampler
from diffscale.searches import SEARCHES
from diffscale.searches.agreements import TYPICAL
from diffscale.searches.looks import Look
from diffscale.searches.rounds import _kept, halve
from diffscale.testing import NearPoint as Near
from diffscale.types import Decide, Draft

LOOKING = ["auto", "draft", "halving"]


class Fractional(ToySampler):
    """Its drafts cost fractions of evaluations."""

    def drafter(self, steps, via=""):
        drafter = super().drafter(steps, via)
        drafter.nfe = drafter.cheap.steps + 0.3
        return drafter


class Widest:
    """A search, and the most rows that it asked for at once."""

    def __init__(self, search):
        self.search, self.rows, self.drafted = search, 0, 0

    def __call__(self, env):
        inner, answer = self.search(env), None
        while True:
            try:
                request = inner.send(answer)
            except StopIteration:
                return
            if not isinstance(request, Decide):
                self.rows = max(self.rows, len(request.state))
            self.drafted += len(request.state) if isinstance(request, Draft) else 0
            answer = yield request


@pytest.mark.parametrize("sampler", [ToySampler, Fractional])
@pytest.mark.parametrize("name", LOOKING)
def test_a_budget_that_pays_for_more_rows_than_can_be_made_at_once_is_spent_in_several_pools(
    name, sampler, monkeypatch
):
    monkeypatch.setattr(limits, "MOST_ROWS", 50)
    for budget in (900, 4000):
        search = Widest(SEARCHES[name])
        (result,) = run_searches([task(search, budget)], sampler(steps=20), Near())
        assert 0.9 * budget < result.ledger.nfe <= budget
        assert search.rows <= 50 + 24 and result.candidates >= 4  # with those that a pilot has drafted
        assert search.drafted > 50 or name == "halving"


@pytest.mark.parametrize("n", [3, 8, 9])
def test_what_was_drafted_before_may_be_all_that_is_looked_at(n):
    def search(env):
        start = env.prior(8)
        scores = yield from env.draft(start, 5)
        yield from halve(env, [Look(5), Look(11, on_the_way=True)], [n, 3, 2], TYPICAL, (start, scores))

    (result,) = run_searches([task(search, 400)], ToySampler(steps=20), Near())
    assert result.candidates == 2 and result.ledger.nfe == max(8, n) * 5 + 3 * 11 + 2 * 9


@pytest.mark.parametrize("name", LOOKING)
def test_as_many_are_finished_as_are_to_be_kept(name):
    for budget in (400, 900):
        (result,) = run_searches([task(SEARCHES[name], budget)], ToySampler(steps=20), Near(), keep_best=12)
        assert len(result.best_candidates) == 12 and result.ledger.nfe <= budget
    # Where the budget does not pay for so many, there are fewer.
    (few,) = run_searches([task(SEARCHES[name], 200)], ToySampler(steps=20), Near(), keep_best=12)
    assert 0 < len(few.best_candidates) < 12


@pytest.mark.parametrize(
    ("search", "told"),
    [
        (partial(SEARCHES["halving"], at=()), "give at, or leave it out"),
        (partial(SEARCHES["halving"], at=(5, 3)), "rise and stay below 10"),
        (partial(SEARCHES["draft"], at=(5, 3)), "rise and stay below 10"),
        (partial(SEARCHES["draft"], at=(10,)), "rise and stay below 10"),
        (partial(SEARCHES["draft"], via="cache"), "leave via out, or give a draft model or cache"),
    ],
)
def test_looks_that_there_are_not_are_refused_before_anything_is_paid(search, told):
    sampler = ToySampler(steps=10)
    with pytest.raises(DiffscaleError, match=told):
        run_searches([task(search, 400)], sampler, Near())
    assert sampler.forwards == 0 and "_drafters" not in vars(sampler)


def test_a_model_of_one_step_is_not_halved():
    with pytest.raises(DiffscaleError, match="of one step"):
        run_searches([task(SEARCHES["halving"], 400)], ToySampler(steps=1), Near())


@pytest.mark.parametrize(("choice", "why"), [(2.5, "so"), ("a", "so"), (10**30, "so"), (None, "so"), (1, None)])
def test_only_whole_numbers_with_a_sentence_are_settled_on(choice, why):
    def search(env):
        yield Decide(choice, why)
        yield from env.evaluate(env.prior(1))

    with pytest.raises(DiffscaleError, match="settles on a whole number"):
        run_searches([task(search, 40)], ToySampler(steps=4), Near())


@given(st.lists(st.one_of(st.integers(0, 5).map(float), st.just(-float("inf"))), min_size=2, max_size=12), st.data())
def test_both_ends_are_the_best_and_the_worst_of_what_was_scored(worth, data):
    kept = data.draw(st.integers(2, len(worth)))
    places = _kept(torch.tensor(worth), kept, both_ends=True).tolist()
    scored = sorted(each for each in worth if each > -float("inf"))
    usable = min(kept, len(scored))
    wanted = scored[: usable // 2] + scored[len(scored) - (usable - usable // 2) :] if usable else []
    found = [worth[i] for i in places]
    assert len(set(places)) == kept and sorted(each for each in found if each > -float("inf")) == wanted
    assert places == sorted(places)


def test_a_draft_of_both_ends_finishes_the_best_and_the_worst():
    sampler, near = ToySampler(steps=20), Near()
    finished = {}
    for both_ends in (False, True):
        (found,) = run_searches(
            [task(partial(SEARCHES["draft"], n=30, finals=4, steps=(10,), both_ends=both_ends), 600)], sampler, near
        )
        finished[both_ends] = found.pool[:, 0].sort().values
    best, ends = finished[False], finished[True]
    assert ends[-2:].tolist() == best[-2:].tolist() and float(ends[1]) < float(best[0])
