"""Prices and budgets."""

import pytest
import torch

from diffscale.engine.ledger import BudgetSpent, Ledger, price
from diffscale.samplers.toy import ToySampler
from diffscale.types import Predict, Run, Score


def test_prices_count_denoiser_evaluations():
    sampler = ToySampler(steps=10)
    start = sampler.prior(torch.arange(3), torch.zeros(3, dtype=torch.int64))
    middle = sampler.predict(sampler.run(start, 4))
    for request, nfe in [
        (Run(start), 30),
        (Run(start, 4), 12),
        (Run(start, 0), 0),
        (Predict(start), 3),
        (Predict(middle), 0),
        (Run(middle), 15),
        (Run(middle, 4), 0),
        (Run(middle, 2), 0),
        (Score(middle), 0),
    ]:
        assert price(request, sampler) == nfe
        if isinstance(request, Run) and request.to != 2:
            before = sampler.forwards
            sampler.run(request.state, request.to)
            assert sampler.forwards - before == nfe


def test_a_budget_is_never_exceeded():
    ledger = Ledger(budget=10)
    ledger.charge(7)
    with pytest.raises(BudgetSpent, match="costs 4 NFE and 3 are left"):
        ledger.charge(4)
    assert ledger.nfe == 7
    ledger.charge(3)
    assert ledger.left == 0
