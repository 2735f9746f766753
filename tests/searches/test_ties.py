"""Searches whose verifier gives coarse scores and can compare: the best of those that share the best score is found."""

import warnings

import pytest
import torch
from pipelines import PROMPTS
from toys import PRICED, same, task

from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.kept_pictures import KeptPictures
from diffscale.engine.results import Result
from diffscale.engine.scoring import UndecidedPair
from diffscale.engine.ties import MOST_TIED
from diffscale.searches.random import random
from diffscale.testing import Killed, NearPoint, shuffled
from diffscale.testing import WordedToy as ToySampler
from diffscale.types import Compares
from diffscale.verifiers.ensemble import Ensemble

QUICK = [name for name in PRICED if name != "bayes"]


class Coarse(NearPoint):
    """Scores in steps of `step`; its comparisons know better. `most`: how many pairs it takes at once."""

    def __init__(self, step=20.0, most=10_000):
        super().__init__()
        self.step, self.most, self.pairs, self.calls = step, most, 0, []

    def __call__(self, images, prompts):
        return (super().__call__(images, prompts) / self.step).round()

    def compare(self, first, second, prompts):
        assert first.shape == second.shape == (len(prompts), 3, 4, 4) and first.dtype == torch.float32
        if len(prompts) > self.most:
            raise torch.OutOfMemoryError("out of memory")
        self.pairs += len(prompts)
        self.calls.append(list(prompts))
        return ((self.truth(first) - self.truth(second)) / 10).sigmoid().round(decimals=9)  # in any batch alike

    def truth(self, images):
        return NearPoint.__call__(self, images, [])


def found(tasks, verifier, size=None, **options):
    """The results, and of each search the pictures [n, 3, 4, 4] of all its candidates."""
    seen = [{} for _ in tasks]

    def observe(search, keys, scores, images, nfe):
        seen[search] |= {len(seen[search]) + i: image for i, image in enumerate(images)}

    results = run_searches(tasks, ToySampler(PROMPTS, 6), verifier, size, [observe], gallery=5, keep_best=3, **options)
    return results, [torch.stack(list(each.values())) if each else None for each in seen]


def check(result, images, verifier):
    """The result is what all pictures of a search say, looked at together."""
    eight_bit = (images * 255).round() / 255
    scores, truth = verifier(images, []), verifier.truth(eight_bit)
    assert torch.equal(result.pool[:, 0], scores)
    tied = (scores == scores.max()).nonzero().flatten().tolist()
    playing = tied[:MOST_TIED]
    order = sorted(playing, key=lambda n: (-float(truth[n]), n)) + tied[MOST_TIED:]
    order += sorted(set(range(len(scores))) - set(tied), key=lambda n: (-float(scores[n]), n))
    pairs = [(a, b) for i, a in enumerate(playing) for b in playing[i + 1 :]]
    assert [each[:2] for each in result.compared] == pairs
    for a, b, probability in result.compared:
        assert probability == pytest.approx(float(((truth[a] - truth[b]) / 10).sigmoid()), abs=1e-9)
    assert [each.number for each in result.best_candidates] == order[:3]
    assert [each.number for each in result.gallery] == order[:5]
    assert result.best.number == order[0] and torch.equal(result.best.image, eight_bit[order[0]])
    assert result.best.score == scores.max() == result.trace[-1][1]
    assert result.baseline.number == 0
    assert result.ledger.comparisons == len(pairs)
    return len(tied)


@pytest.mark.parametrize("setting", ["many", "random", "zero_order greedy", "breed"])
def test_the_best_of_those_that_share_the_best_score_is_found(setting):
    tasks = [task(random if setting == "many" else setting, 240, row) for row in range(3)]
    shared = []
    for size in (1, 3, None):
        verifier = Coarse()
        results, images = found(tasks, verifier, size)
        shared += [check(*each, verifier) for each in zip(results, images, strict=True)]
        assert verifier.pairs == sum(len(result.compared) for result in results)
        assert size is None or max(map(len, verifier.calls)) <= size
    assert max(shared) > (MOST_TIED if setting == "many" else 1)
    assert setting != "many" or any(len(set(call)) > 1 for call in verifier.calls)  # pairs of several searches together


@pytest.mark.parametrize("setting", QUICK)
def test_only_the_seed_decides_whoever_compares_and_in_whatever_order(setting, tmp_path):
    tasks = [task(setting, 130, row) for row in range(2)]
    together, _ = found(tasks, Coarse())
    assert all(map(same, together, found(tasks, Coarse(), 5)[0]))
    assert same(together[1], *found([tasks[1]], Coarse())[0])
    executor = shuffled(3, prompts=PROMPTS, verifier=Coarse())
    journal = Journal(tmp_path / "journal.sqlite", {})
    assert all(map(same, together, found(tasks, Coarse(), journal=journal, executor=executor)[0]))
    # What the journal holds is replayed, comparisons too.
    verifier = Coarse()
    again, _ = found(tasks, verifier, journal=journal)
    journal.close()
    assert all(map(same, together, again)) and verifier.pairs == 0
    assert [each.ledger.comparisons for each in again] == [each.ledger.comparisons for each in together]


class Fragile(Coarse):
    """Is killed at its n-th comparison."""

    def __init__(self, n):
        super().__init__()
        self.left = n

    def compare(self, first, second, prompts):
        self.left -= 1
        if self.left < 0:
            raise Killed
        return super().compare(first, second, prompts)


@pytest.mark.parametrize("size", [2, None])
@pytest.mark.parametrize("calls", [0, 1, 4])
def test_killed_while_it_compares_it_goes_on_and_pays_for_nothing_twice(tmp_path, size, calls):
    tasks = [task(random, 240, row) for row in range(3)]
    whole, _ = found(tasks, Coarse(), size)
    pairs = 0
    for verifier in (Fragile(calls), Fragile(calls), Coarse()):
        journal = Journal(tmp_path / "journal.sqlite", {})
        try:
            resumed, _ = found(tasks, verifier, size, journal=journal)
        except Killed:
            resumed = None
        finally:
            journal.close()
            pairs += verifier.pairs
    assert resumed is not None and all(map(same, whole, resumed))
    assert pairs == sum(len(each.compared) for each in whole) > 0


def test_a_larger_budget_goes_on_from_the_comparisons_of_a_smaller_one(tmp_path):
    journal, compared = Journal(tmp_path / "journal.sqlite", {}), set()
    for budget in (120, 240, 480):
        verifier = Coarse(1000.0)
        (result,), _ = found([task(random, budget)], verifier, journal=journal)
        pairs = {tuple(each[:2]) for each in result.compared}
        assert verifier.pairs == len(pairs - compared)
        compared |= pairs
        assert same(result, *found([task(random, budget)], Coarse(1000.0))[0])
    journal.close()


def test_no_more_pictures_are_held_than_can_still_be_the_best(monkeypatch):
    held, keep = [], KeptPictures.keep

    def watch(self, *args):
        keep(self, *args)
        held.append(sum("image" in each for each in self._held.values()))

    monkeypatch.setattr(KeptPictures, "keep", watch)
    found([task(random, 600)], Coarse(1000.0))
    assert max(held) == MOST_TIED  # the baseline is one of them


class Moody(Coarse):
    """Something is wrong with every pair whose first picture shows a point in the right half."""

    def __init__(self, way):
        super().__init__()
        self.way = way

    def compare(self, first, second, prompts):
        wrong = first[:, 0, 0, 0] > 0.8
        answer = super().compare(first, second, prompts)
        if self.way == "raises" and wrong.any():
            raise ValueError("cannot look at that")
        return torch.where(wrong, {"nan": torch.nan, "outside": 1.5, "raises": 0.5}[self.way], answer)


@pytest.mark.parametrize("way", ["nan", "outside", "raises"])
def test_a_pair_that_cannot_be_compared_costs_that_comparison(way):
    tasks = [task(random, 240, row) for row in range(3)]
    whole, images = found(tasks, Coarse())
    with pytest.warns(UndecidedPair, match="count as equal: verifier 'near_point' (gave|raised)"):
        results, _ = found(tasks, Moody(way))
    undecided = 0
    for right, result, pictures in zip(whole, results, images, strict=True):
        for (a, b, wanted), (*pair, got) in zip(right.compared, result.compared, strict=True):
            wrong = (pictures[a][0, 0, 0] * 255).round() / 255 > 0.8
            assert pair == [a, b] and got == (0.5 if wrong else wanted)
            undecided += wrong
    assert 0 < undecided < sum(len(each.compared) for each in whole)


@pytest.mark.parametrize("answer", [None, [0.5], torch.rand(3, 4), "first", torch.tensor([1j])])
def test_a_comparison_of_another_shape_loses_nothing_of_what_was_found(answer):
    class Wrong(Coarse):
        def compare(self, first, second, prompts):
            return answer

    tasks = [task(random, 120, row) for row in range(2)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UndecidedPair)
        results, images = found(tasks, Wrong())
    for result, pictures in zip(results, images, strict=True):
        scores = Coarse()(pictures, [])
        assert result.best.number == int(scores.argmax())  # the first of equals


def test_memory_that_runs_out_halves_the_pairs():
    tasks = [task(random, 240, row) for row in range(3)]
    whole, _ = found(tasks, Coarse())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        limited, _ = found(tasks, Coarse(most=3))
    told = [str(each.message).partition(":")[0] for each in caught]
    assert told == ["Out of memory with 8 rows, going on with 4", "Out of memory with 4 rows, going on with 2"]
    assert all(map(same, whole, limited))


def test_ensembles_and_verifiers_whose_compare_is_none_compare_nothing():
    class Off(Coarse):
        compare = None

    assert isinstance(Coarse(), Compares) and not isinstance(Off(), Compares) and not isinstance(NearPoint(), Compares)
    (result,), (images,) = found([task(random, 240)], Off())
    assert result.compared == [] and result.ledger.comparisons == 0
    assert result.best.number == int(Coarse()(images, []).argmax())
    (result,) = run_searches(
        [task(random, 240)], ToySampler(PROMPTS, 6), Ensemble("both", [Coarse(), Coarse()], [1.0, 1.0])
    )
    assert result.compared == []


def test_a_verifier_of_sets_is_told_of_the_strongest():
    class OfSets(Coarse):
        def begin(self):
            self.chosen = []

        def choose(self, image, prompt):
            self.chosen.append(image)

    verifier = OfSets()
    results, images = found([task(random, 240, row) for row in range(3)], verifier)
    assert [check(*each, verifier) for each in zip(results, images, strict=True)]
    assert all(torch.equal(a.best.image, b) for a, b in zip(results, verifier.chosen, strict=True))


def test_the_operations_of_comparisons_are_counted_and_shared_out():
    class Network(Coarse):
        def compare(self, first, second, prompts):
            torch.ones(len(prompts), 8) @ torch.ones(8, 4)  # 2 x 8 x 4 operations a pair
            return super().compare(first, second, prompts)

    results, _ = found([task(random, 240, row) for row in range(3)], Network())
    for result in results:
        assert result.ledger.verifier_flops == pytest.approx(64 * len(result.compared))
        assert result.ledger.verifier_calls == result.candidates


def test_a_picture_that_the_journal_lost_fails_its_search_alone(tmp_path):
    tasks = [task(random, 240, row) for row in range(3)]
    whole, _ = found(tasks, Coarse())
    journal = Journal(tmp_path / "journal.sqlite", {})
    with pytest.raises(Killed):
        found(tasks, Fragile(0), journal=journal)
    lost = whole[1].compared[0][0]
    journal._store.write("DELETE FROM pictures WHERE search = ? AND number = ?", [("1", lost)])
    outcomes, _ = found(tasks, Coarse(), journal=journal, return_errors=True)
    assert [isinstance(each, Result) for each in outcomes] == [True, False, True]
    assert f"lost picture {lost}" in str(outcomes[1])
    assert all(map(same, whole, found(tasks, Coarse(), journal=journal)[0]))
    journal.close()
