"""Every search on a network of a user's own, with guidance on an interval of time."""

import pytest
import torch
from toys import PRICED, forwards, same, task

from diffscale.engine.driver import run_searches
from diffscale.samplers.denoiser import DenoiserSampler
from diffscale.samplers.noise_schedules import EDM, LinearFlow
from diffscale.types import Wording
from diffscale.verifiers.function import FunctionVerifier

SPREAD = 0.2
SCHEDULES = {"flow to data": LinearFlow(data_time=1), "edm": EDM(sigma_min=0.01, sigma_max=20.0)}


def network(schedule):
    """The best network for data N(mean of the class, SPREAD^2)."""

    def predict(x, t, classes):
        alpha, sigma = (1.0, t[0]) if schedule == "edm" else (t[0], 1 - t[0])
        mean = torch.tensor([0.6, -0.3, 0.1], dtype=x.dtype)[classes][:, None, None, None]
        return mean + alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2) * (x - alpha * mean)

    return predict


def grey(images, prompts):
    return -(images - 0.7).square().mean((1, 2, 3)).double()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("setting", PRICED)
def test_every_search_at_its_price_in_any_micro_batch(setting, schedule):
    def run(size):
        sampler = DenoiserSampler(
            network(schedule), SCHEDULES[schedule], "data", (1, 2, 2), 10,
            ["a", "b", Wording("a, too", "a"), Wording("b, too", "b")], conditions=torch.tensor([0, 1, 1, 0]),
            null_condition=2, guidance_scale=1.5, guidance_interval=(0, 0.5), dtype=torch.float64,
        )  # fmt: skip
        tasks = [task(setting, 90 if setting == "bayes" else 400, row) for row in range(2)]
        return run_searches(tasks, sampler, FunctionVerifier("grey", grey), size), sampler

    (one, _), (other, sampler) = run(None), run(3)
    assert all(map(same, one, other))
    assert forwards(sampler) == sum(result.ledger.network_forwards for result in other)
    price = PRICED[setting][1]
    for result in one:
        # On the levels of EDM searches over paths pay for other numbers of steps.
        if price is None or (setting == "paths" and schedule == "edm"):
            assert result.ledger.nfe <= 400
        else:
            assert result.ledger.nfe == price(10)
