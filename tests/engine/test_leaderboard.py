"""Where candidates stand, against brute force over all that was seen."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffscale.engine.leaderboard import Leaderboard, aggregate_pool, candidate_value
from diffscale.verifiers.ensemble import Ensemble, Weighted


class Named:
    def __init__(self, name):
        self.name = name

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


MEMBERS = [Named("a"), Named("b"), Named("c")]
ENSEMBLE = Ensemble("ensemble", MEMBERS, [1.0, 2.0, 0.5])
WEIGHTED = Weighted("weighted", MEMBERS, [1.0, 2.0, 0.5])

# Few values, so that there are ties; -inf for the dropped.
components = st.lists(
    st.one_of(st.tuples(*[st.sampled_from([0.0, 0.25, 0.5, 1.0, 3.0])] * 3), st.just((-math.inf,) * 3)),
    min_size=1,
    max_size=12,
)


def first_of(rows):
    """The same candidates as a verifier of one component scores them."""
    return [row[:1] for row in rows]


@settings(max_examples=200, deadline=None)
@given(
    st.one_of(
        st.tuples(components, st.sampled_from([ENSEMBLE, WEIGHTED])), st.tuples(components.map(first_of), st.none())
    ),
    st.integers(0, 4),
    st.integers(1, 4),
    st.integers(0, 4),
    st.randoms(),
)
def test_the_best_are_always_among_what_is_kept_in_any_order(given, shown, keep_best, ties, rng):
    rows, verifier = given
    aggregate = None if verifier is None else verifier.aggregate
    pool = torch.tensor(rows, dtype=torch.float64)
    leaderboard = Leaderboard(aggregate, shown, keep_best, ties if aggregate is None else 0)
    order = list(range(len(rows)))
    rng.shuffle(order)
    for number in order:
        full_size, thumbnail = leaderboard.add(number, pool[number])
        assert (full_size, thumbnail) == (number in leaderboard.full_size, number in leaderboard.thumbnails)
    usable = pool.isfinite().all(1)
    assert set(leaderboard.full_size) <= set(usable.nonzero().flatten().tolist())
    if not usable.any():
        assert leaderboard.best() is None
        return
    values = pool[:, 0] if aggregate is None else aggregate_pool(pool, aggregate)
    number, value = leaderboard.best()
    assert number in leaderboard.full_size
    assert value == values.max() and number == min(i for i, v in enumerate(values.tolist()) if v == value)
    # The best few by their values now are among the kept.
    order = sorted(usable.nonzero().flatten().tolist(), key=lambda i: (-float(values[i]), i))
    assert set(order[:keep_best]) <= leaderboard.full_size and set(order[:shown]) <= leaderboard.thumbnails
    # Of one component, those that share the best score and can be compared are kept too, and nothing else.
    if aggregate is None:
        tied = [i for i in order if values[i] == value][:ties]
        assert leaderboard.tied() == tied
        assert leaderboard.full_size == {*order[:keep_best], *tied}
        assert leaderboard.thumbnails == ({*order[:shown], *tied} if shown else set())
        return
    assert leaderboard.tied() == []
    # Whoever can be among the best `shown` is kept: those that fewer than `shown` others equal or exceed everywhere.
    for i in usable.nonzero().flatten().tolist():
        better = sum(
            bool((pool[j] >= pool[i]).all() and ((pool[j] > pool[i]).any() or j < i))
            for j in range(len(rows))
            if j != i
        )
        assert (i in leaderboard.thumbnails) == (better < shown)
        assert (i in leaderboard.full_size) == (better < keep_best)


def test_mean_ranks_share_ties_and_heed_weights():
    pool = torch.tensor([[1.0, 5.0, 0.0], [2.0, 5.0, 0.0], [3.0, 1.0, 0.0]], dtype=torch.float64)
    # By hand: ranks 1 2 3, 2.5 2.5 1 and 2 2 2, over 3, weighed 2, 4 and 1 to 7.
    wanted = torch.tensor([(2 * 1 + 4 * 2.5 + 2) / 21, (2 * 2 + 4 * 2.5 + 2) / 21, (2 * 3 + 4 * 1 + 2) / 21])
    torch.testing.assert_close(ENSEMBLE.aggregate(pool), wanted.double())


def test_z_scores_leave_out_what_is_equal():
    pool = torch.tensor([[1.0, 0.0, 0.1], [3.0, 2.0, 0.1]], dtype=torch.float64)
    torch.testing.assert_close(WEIGHTED.aggregate(pool), torch.tensor([-1.0, 1.0], dtype=torch.float64) * 3 / 3.5)


def test_a_plain_sample_is_worth_what_it_would_be_in_the_pool():
    pool = torch.tensor([[0.0, 0.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    assert candidate_value(pool, torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64), ENSEMBLE) == pytest.approx(2 / 3)
    assert candidate_value(pool, torch.tensor([0.7], dtype=torch.float64), MEMBERS[0]) == 0.7


def test_many_candidates_of_one_component_cost_no_comparison_with_all(monkeypatch):
    """The time of one does not grow with their number: nothing looks at more rows than its own."""
    leaderboard = Leaderboard(None, 64)
    looked = []
    monkeypatch.setattr(Leaderboard, "components", property(lambda self: looked.append(self.count)))
    monkeypatch.setattr("diffscale.engine.leaderboard.torch.arange", None)
    scores = torch.rand(10_000, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for number, score in enumerate(scores):
        leaderboard.add(number, score)
        leaderboard.best()
    assert not looked and len(leaderboard._ranking) == 64
    order = scores[:, 0].argsort(descending=True).tolist()
    assert list(leaderboard.full_size) == order[:1] and sorted(leaderboard.thumbnails) == sorted(order[:64])
    assert leaderboard.best() == (order[0], scores.max().item())
