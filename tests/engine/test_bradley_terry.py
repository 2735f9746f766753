"""Strengths against the likelihood that they maximise, by scipy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize
from scipy.special import log_expit

from diffscale.engine.bradley_terry import PRIOR, strengths


def most_probable(wins):
    """The maximum of the log-likelihood, a tenth of a drawn game with an opponent of strength 0 included."""

    def loss(b):
        played = (wins * log_expit(b[:, None] - b[None])).sum()
        return -played - PRIOR / 2 * (log_expit(b) + log_expit(-b)).sum()

    return minimize(loss, np.zeros(len(wins)), tol=1e-12, options={"gtol": 1e-9}).x


def record(n, probabilities):
    wins = torch.zeros(n, n, dtype=torch.float64)
    for (i, j), p in zip(torch.combinations(torch.arange(n)).tolist(), probabilities, strict=False):
        wins[i, j], wins[j, i] = p, 1 - p
    return wins


@settings(max_examples=60, deadline=None)
@given(
    st.integers(2, 8),
    st.lists(st.sampled_from([0.0, 1e-9, 0.25, 0.5, 0.9, 1.0]) | st.floats(0, 1), min_size=28, max_size=28),
)
def test_they_are_the_most_probable_ones(n, probabilities):
    wins = record(n, probabilities)
    found = strengths(wins)
    np.testing.assert_allclose(found.numpy(), most_probable(wins.numpy()), atol=1e-4)
    # Where everybody met everybody once, the order is that of the games won.
    won = wins.sum(1)
    assert all(found[i] > found[j] for i in range(n) for j in range(n) if won[i] > won[j] + 1e-6)


@pytest.mark.parametrize("n", [2, 3, 8])
def test_who_wins_everything_is_finite_and_equals_are_equal(n):
    ladder = strengths(record(n, [1.0] * 28))
    assert ladder.isfinite().all() and (ladder.diff() < -1).all() and ladder.abs().max() < 100
    assert strengths(record(n, [0.5] * 28)).tolist() == [0.0] * n
    ring = torch.zeros(3, 3, dtype=torch.float64)  # each beats the next one
    ring[0, 1] = ring[1, 2] = ring[2, 0] = 1.0
    assert strengths(ring).tolist() == [0.0] * 3


def test_games_that_were_not_played_and_games_played_often_count_as_what_they_are():
    wins = torch.tensor([[0.0, 7.0, 0.0], [2.0, 0.0, 3.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    np.testing.assert_allclose(strengths(wins).numpy(), most_probable(wins.numpy()), atol=1e-4)
