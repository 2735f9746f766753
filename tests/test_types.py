"""States are batches of rows."""

import pytest
import torch

from diffscale.types import State, concat


def state(rows, step=2, warm=1):
    x = torch.arange(float(rows))[:, None]
    solver = {"old.0": x + 10, "order": torch.full((rows,), warm)}
    return State(x, step, torch.arange(rows), torch.zeros(rows, dtype=torch.int64), solver=solver)


def test_rows_stay_together():
    doubled = state(3).repeat(2)
    assert doubled.key.tolist() == [0, 0, 1, 1, 2, 2]
    picked = doubled[torch.tensor([4, 0])]
    assert len(picked) == 2
    assert picked.x.flatten().tolist() == [2, 0]
    assert picked.solver["old.0"].flatten().tolist() == [12, 10]
    assert concat([picked[:1], picked[1:]]).key.tolist() == [2, 0]
    assert concat([picked, picked]).x0 is None


@pytest.mark.parametrize("other", [state(1, step=3), state(1, warm=2)])
def test_only_kin_concatenates(other):
    with pytest.raises(ValueError, match="same step"):
        concat([state(1), other])
