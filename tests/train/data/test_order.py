"""The order of rows is a pure function, and every row comes once an epoch."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from diffscale._util.errors import DiffscaleError
from diffscale.train.data.batches import Order, chance, permutation

sizes = st.integers(1, 40)


@settings(deadline=None)
@given(rows=sizes, batch=st.integers(1, 7), processes=st.integers(1, 4), seed=st.integers(0, 2**70))
def test_every_row_comes_once_an_epoch_over_all_processes(rows: int, batch: int, processes: int, seed: int) -> None:
    orders = [Order(rows, batch, seed, process, processes) for process in range(processes)]
    steps = range(-(-3 * rows // (batch * processes)))
    stream = [row for step in steps for order in orders for row in order.rows_of(step)]
    for epoch in range(3):
        assert sorted(stream[epoch * rows : (epoch + 1) * rows]) == list(range(rows))


@settings(deadline=None)
@given(rows=sizes, batch=st.integers(1, 4), processes=st.integers(1, 4), step=st.integers(0, 10**9))
def test_a_step_does_not_depend_on_how_it_is_shared(rows: int, batch: int, processes: int, step: int) -> None:
    alone = Order(rows, batch * processes, 5).rows_of(step)
    shared = [row for process in range(processes) for row in Order(rows, batch, 5, process, processes).rows_of(step)]
    assert alone == shared


def test_epochs_and_seeds_differ() -> None:
    orders = [permutation(100, seed, epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    # Written down: a training that goes on after an upgrade must find the same order.
    assert permutation(8, 0, 0).tolist() == [5, 7, 6, 4, 1, 0, 3, 2]


def test_chance_is_of_seed_decision_step_and_row_alone() -> None:
    drawn = chance(0, "empty prompt", 3, list(range(2000)))
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.03) and (drawn < 0.2).double().mean() < 0.25
    assert chance(0, "empty prompt", 3, [7]).item() == drawn[7].item()
    others = [chance(1, "empty prompt", 3, [7]), chance(0, "flip", 3, [7]), chance(0, "empty prompt", 4, [7])]
    assert len({drawn[7].item(), *(other.item() for other in others)}) == 4


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(DiffscaleError, match="no rows"):
        Order(0, 1)
    for wrong in ({"batch": 0}, {"batch": 1, "process": 2, "processes": 2}):
        with pytest.raises(ValueError, match="no batch of"):
            Order(4, **wrong)
