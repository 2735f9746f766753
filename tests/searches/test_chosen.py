"""The final choice by another verifier than the one that was searched with, in every algorithm."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from pipelines import PROMPTS
from test_all import SLOW, FragileToy, Killed
from test_pools import Apart, Named, Steady, pair
from test_ties import Coarse, found
from toys import GRADIENTS, PRICED, same, task

from diffscale._util.errors import AllCandidatesFailed, DiffscaleError, Unsuited
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.results import Result
from diffscale.engine.ties import MOST_TIED
from diffscale.searches.random import random
from diffscale.testing import NearPoint as Near
from diffscale.testing import WordedToy as ToySampler
from diffscale.testing import points
from diffscale.types import PoolVerifier
from diffscale.verifiers.ensemble import Ensemble, Weighted


class North(Named):
    """Counts the pictures that it is shown, and may be killed at its n-th call."""

    def __init__(self, left=math.inf):
        super().__init__("north", (0.1, 4.1))
        self.left, self.shown = left, 0

    def __call__(self, images, prompts):
        self.left -= 1
        if self.left < 0:
            raise Killed
        self.shown += len(images)
        return super().__call__(images, prompts)


class Sometimes(Near):
    """Cannot score what lies on one side."""

    name = "sometimes"

    def __init__(self, axis):
        super().__init__((0.1, 4.1))
        self.axis = axis

    def __call__(self, images, prompts):
        return super().__call__(images, prompts).where(points(images)[:, self.axis] > 0, torch.nan)


CHOOSERS = {
    "plain": North,
    "ensemble": pair,
    "weighted": lambda: pair(Weighted),
    "moody": lambda: Sometimes(0),
    "recording": Steady,
}
VERIFIERS = {"plain": Near, "ensemble": pair, "moody": lambda: Sometimes(1)}
QUICK = [name for name in PRICED if name not in SLOW]


class Seen:
    """Pictures of all finished candidates, in order, and what searches got for them."""

    def __init__(self):
        self.images, self.scores = [], []

    def __call__(self, search, keys, scores, images, nfe):
        self.images += list(images)
        self.scores += list(scores)


def search(setting, verifier, choose, *, budget=None, seed=0, size=None, sampler=None, **options):
    budget = budget or (60 if setting in SLOW else 240)
    sampler = sampler or ToySampler(steps=6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (found,) = run_searches(
            [task(setting, budget, seed=seed)], sampler, verifier, size, choose=choose, return_errors=True, **options
        )
    return found


def sorted_in_memory(pool, choices, chooser):
    """Numbers of the candidates, best first, and their values: everything at hand at once."""
    usable = pool.isfinite().all(1) & choices.isfinite().all(1)
    values = torch.full((len(pool),), -math.inf, dtype=torch.float64)
    pooled = isinstance(chooser, PoolVerifier)
    values[usable] = chooser.aggregate(choices[usable]).round(decimals=12) if pooled else choices[usable, 0]
    order = sorted(usable.nonzero().flatten().tolist(), key=lambda i: (-float(values[i]), i))
    return order, values


@settings(max_examples=30, deadline=None)
@given(
    st.sampled_from(QUICK), st.sampled_from(list(VERIFIERS)), st.sampled_from([*CHOOSERS][:4]),
    st.integers(0, 50), st.integers(1, 4), st.sampled_from([1, 3, 7, None]),
)  # fmt: skip
def test_what_is_chosen_is_what_sorting_all_candidates_by_the_chooser_gives(by, name, how, seed, few, size):
    if by in GRADIENTS and name == "ensemble":
        return  # which has no gradient
    chooser, seen = CHOOSERS[how](), Seen()
    plain = search(by, VERIFIERS[name](), None, seed=seed, size=size, gallery=few + 1, keep_best=few)
    found = search(
        by, VERIFIERS[name](), chooser, seed=seed, size=size, gallery=few + 1, keep_best=few, observers=[seen]
    )
    if isinstance(found, DiffscaleError):
        return
    # The search is what it was, and is told nothing.
    for each in ("trace", "traces", "candidates"):
        assert getattr(found, each) == getattr(plain, each)
    assert torch.equal(found.pool, plain.pool)
    assert torch.equal(found.pool, torch.stack(seen.scores).view(len(seen.scores), -1))
    assert (found.ledger.nfe, found.ledger.decodes) == (plain.ledger.nfe, plain.ledger.decodes)
    choices = CHOOSERS[how]()(torch.stack(seen.images), [PROMPTS[0]] * len(seen.images)).view(found.candidates, -1)
    order, values = sorted_in_memory(found.pool, choices, chooser)
    assert [each.number for each in found.best_candidates] == order[:few]
    assert [each.number for each in found.gallery] == order[: few + 1]
    assert found.best is found.best_candidates[0] and found.best.value == max(values.tolist())
    scores = plain_values(found.pool, VERIFIERS[name]())
    for each in (*found.best_candidates, *found.gallery, found.baseline):
        assert each.value == pytest.approx(float(values[each.number]), abs=1e-12)
        assert each.score == pytest.approx(float(scores[each.number]), abs=1e-12)
    for each in found.best_candidates:
        assert torch.equal((each.image * 255).round(), (seen.images[each.number] * 255).round())
        assert torch.equal(each.ranking, found.ranking[each.number])
    assert found.baseline.number == min(order)
    assert math.isfinite(found.baseline.value) and found.dropped >= found.candidates - len(order)


def plain_values(pool, verifier):
    values = torch.full((len(pool),), -math.inf, dtype=torch.float64)
    usable = pool.isfinite().all(1)
    values[usable] = verifier.aggregate(pool[usable]) if isinstance(verifier, PoolVerifier) else pool[usable, 0]
    return values


@pytest.mark.parametrize("setting", ["random", "zero_order", "fk", "svdd", "paths", "first_order"])
@pytest.mark.parametrize("how", CHOOSERS)
def test_the_batch_changes_nothing(setting, how):
    alone, *others = (
        search(setting, Near(), CHOOSERS[how](), seed=3, size=size, gallery=3, keep_best=3) for size in (None, 1, 3)
    )
    for other in others:
        assert same(alone, other)


@settings(max_examples=12, deadline=None)
@given(
    st.sampled_from(QUICK), st.sampled_from(list(CHOOSERS)), st.integers(0, 20), st.integers(0, 8),
    st.sampled_from([2, 5, None]),
)  # fmt: skip
def test_killed_anywhere_it_pays_for_nothing_twice(tmp_path_factory, setting, how, predicted, chosen, size):
    tasks = [task(setting, 240, row) for row in range(2)]
    options = {"gallery": 2, "keep_best": 3, "return_errors": True}
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"

    def run(sampler, verifier, chooser, journal=None):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return run_searches(tasks, sampler, verifier, size, journal=journal, choose=chooser, **options)

    def chooser_of(left=math.inf):
        return North(left) if how == "plain" else CHOOSERS[how]()

    whole = run(ToySampler(PROMPTS, steps=5), Near(), chooser_of())
    assume(all(isinstance(each, Result) for each in whole))  # a moody one drops all that a search finishes, at times
    for sampler, chooser in (
        (FragileToy(predicted, PROMPTS, steps=5), chooser_of()),
        (ToySampler(PROMPTS, steps=5), chooser_of(chosen)),
        (ToySampler(PROMPTS, steps=5), chooser_of()),
        (ToySampler(PROMPTS, steps=5), chooser_of(0)),
    ):
        journal = Journal(path, {"setting": setting})
        try:
            resumed = run(sampler, Near(), chooser, journal)
        except Killed:
            continue
        finally:
            journal.close()
    assert sampler.forwards == 0  # and the chooser would have been killed at its first call
    for one, other in zip(whole, resumed, strict=True):
        assert same(one, other) and one.ledger.verifier_calls == other.ledger.verifier_calls


@pytest.mark.parametrize("setting", ["random", "svdd", "first_order", "dps", "paths"])
def test_only_finished_pictures_are_shown_to_the_chooser_and_all_calls_are_counted(setting):
    chooser = North()
    plain, found = search(setting, Near(), None), search(setting, Near(), chooser)
    assert chooser.shown == found.candidates
    assert found.ledger.verifier_calls == plain.ledger.verifier_calls + found.candidates


def test_a_network_that_chooses_is_counted_too():
    class Network(North):
        def __call__(self, images, prompts):
            torch.ones(3, 5) @ torch.ones(5, 7)
            return super().__call__(images, prompts)

    for setting in ("random", "first_order"):
        found = search(setting, Near(), Network(), size=1)
        assert found.ledger.verifier_flops == found.candidates * 2 * 3 * 5 * 7
        assert found.ledger.seconds["verify"] > 0


def test_where_the_chooser_can_score_nothing_that_is_told():
    class Blind(Near):
        def __call__(self, images, prompts):
            return [math.nan] * len(prompts)

    error = search("random", Near(), Blind())
    assert isinstance(error, AllCandidatesFailed) and "None of the 5 candidates" in str(error)


def test_a_set_cannot_choose_and_a_set_that_is_searched_is_told_what_was_chosen():
    with pytest.raises(DiffscaleError, match="'apart' scores by what was chosen before, so it cannot make the final"):
        run_searches([task("random", 60)], ToySampler(steps=6), Near(), choose=Apart())
    verifier, chooser = Apart(), North()
    results = run_searches(
        [task("random", 60, row) for row in range(3)], ToySampler(PROMPTS, 6), verifier, choose=chooser
    )
    told = torch.stack(verifier.chosen)
    assert torch.equal(told, torch.stack([points(each.best.image[None])[0] for each in results]))
    assert all(each.best.value == each.ranking.max() for each in results)


@pytest.mark.parametrize("setting", ["random", "zero_order", "svdd", "fk", "demon", "first_order", "dps", "evolution"])
def test_a_chooser_sees_predictions_that_the_verifier_does_not_ask_for(setting):
    """Steered at unfinished pictures by a verifier that needs no predictions, they are recorded for the chooser."""
    chooser, seen = Steady(), Seen()
    sampler = ToySampler(steps=10)
    found = search(setting, Near(), chooser, budget=300, sampler=sampler, observers=[seen])
    assert torch.equal(found.pool, search(setting, Near(), None, budget=300, sampler=ToySampler(steps=10)).pool)
    assert found.best.value == found.ranking.max()
    shown = torch.cat([images for images, _ in chooser.seen])
    torch.testing.assert_close(shown, torch.stack(seen.images))
    if setting == "random":
        # Against the prediction from the same noise at that level, which the levels 1, 0.9, ... have at step 6.
        state = sampler.run(sampler.prior(torch.tensor([found.best.key]), torch.tensor([0])), 6)
        gap = (points(sampler.decode(sampler.predict(state).x0)) - points(found.best.image[None])).square().sum(1)
        torch.testing.assert_close(-gap.item(), found.best.value, atol=0.01, rtol=0.05)


def test_two_levels_to_record_are_refused_and_one_is_shared():
    early = Steady()
    early.record_level, early.name = 0.7, "early"
    with pytest.raises(DiffscaleError, match=r"'steady' asks for 0.4 and 'early' asks for 0.7: give both the same"):
        run_searches([task("random", 60)], ToySampler(steps=6), Steady(), choose=early)
    both = search("random", Steady(), Steady())
    assert torch.equal(both.pool, both.ranking) and both.best.value == both.best.score


def test_a_prediction_that_no_search_recorded_is_told():
    def late(env):
        state = yield from env.predict(env.prior(2))
        yield from env.score(replace((yield from env.run(state)), recorded=None))

    error = search(late, Near(), Steady())
    assert isinstance(error, Unsuited) and "which 'steady' compares finished pictures with" in str(error)


def test_who_chooses_decides_ties_too():
    """Of a chooser whose scores are coarse and a verifier that can compare, or the other way round."""
    tasks = [task(random, 240)]
    for verifier, chooser in ((Coarse(), Near((0.1, 4.1))), (Near(), Coarse()), (Coarse(2.0), Coarse())):
        results, images = found(tasks, verifier, choose=chooser)
        (result,), (images,) = results, images
        assert not isinstance(verifier, Coarse) or verifier.pairs == 0
        best = (result.ranking[:, 0] == result.ranking.max()).nonzero().flatten().tolist()[:MOST_TIED]
        if isinstance(chooser, Coarse):
            assert len(best) > 1 and chooser.pairs == len(result.compared) == result.ledger.comparisons > 0
            truth = chooser.truth((images * 255).round() / 255)
            best.sort(key=lambda number: -float(truth[number]))
        assert result.best.number == best[0]


def test_without_a_chooser_the_value_is_the_score():
    for verifier in (Near(), pair(), Ensemble("one", [Near(), Near()], [1.0, 2.0])):
        found = search("random", verifier, None, gallery=3)
        assert all(each.value == each.score for each in (found.best, found.baseline, *found.gallery))
        assert torch.equal(found.pool, found.ranking)
