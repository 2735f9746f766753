"""Formulas for batches that mix times, against diffusers' schedulers and the formulas for one level."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from hypothesis import given
from hypothesis import strategies as st
from policies import TIMES

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.formulas import Marginal, denoise, renoise
from diffscale.train.times import CLEAN, Times

SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "clip_sample": False}
TIME = torch.tensor([0.0, 17.0, 640.0, 999.0], dtype=torch.float64)
some_time = st.floats(1, 999)


def drawn(seed=0):
    return torch.randn(4, 3, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_noising_is_the_schedulers():
    scheduler = DDIMScheduler(**SCHEDULE)
    x0, eps = drawn(), drawn(1)
    ours = Times.of_scheduler(scheduler).noised(x0, eps, TIME)
    assert torch.allclose(ours, scheduler.add_noise(x0, eps, TIME.long()), atol=1e-6)
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    times = flow.timesteps[[0, 300, 700, 999]]
    ours = Times.of_scheduler(flow).noised(x0, eps, times.double())
    assert torch.allclose(ours, flow.scale_noise(x0, times, eps), atol=1e-6)


def test_a_flow_is_known_by_its_prediction_not_by_its_solver():
    times = Times.of_scheduler(DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"))
    assert times.table is None and times.prediction == "flow_prediction"
    with pytest.raises(DiffscaleError, match="odd"):
        Times.of_scheduler(DDIMScheduler(**SCHEDULE, prediction_type="odd"))


def test_the_target_of_v_is_the_schedulers_velocity():
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type="v_prediction")
    x0, eps = drawn(), drawn(1)
    wanted = scheduler.get_velocity(x0, eps, TIME.long())
    assert torch.allclose(Times.of_scheduler(scheduler).target(x0, eps, TIME), wanted, atol=1e-6)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_a_range_of_times_is_drawn_more_often(times):
    keys = noise.fold_rows(torch.arange(20000), "time")
    biased = times.biased(4.0, 600, 1000)
    drawn = biased.draw(keys)
    assert set(drawn.tolist()) <= set(range(times.first, times.first + times.count)) and drawn.dtype == torch.float64
    assert float((drawn - times.first >= 600).double().mean()) == pytest.approx(1600 / 2200, abs=0.01)
    low = drawn[drawn - times.first < 600] - times.first
    assert float(low.mean()) == pytest.approx(299.5, abs=6)
    assert torch.equal(times.biased(1.0, 0, 10).draw(keys), times.draw(keys))


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weights_are_those_of_diffusers_scripts(prediction):
    scheduler = DDIMScheduler(**SCHEDULE, prediction_type=prediction)
    snr = compute_snr(scheduler, TIME.long()).double()
    wanted = snr.clamp(max=5) / (snr if prediction == "epsilon" else snr + 1)
    assert torch.allclose(Times.of_scheduler(scheduler).weight(TIME, 5.0), wanted, rtol=1e-4)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
def test_weighted_errors_are_of_the_data_whatever_is_predicted(times):
    time, x, out, target = torch.tensor([40.0, 300.0, 640.0, 990.0]).double(), drawn(), drawn(1), drawn(2)
    error = (times.clean(x, out, time) - times.clean(x, target, time)).square().flatten(1).mean(1)
    weighted = (out - target).square().flatten(1).mean(1) * times.weight(time, 2.0)
    alpha, sigma = (each.flatten() for each in times.marginals(time, x))
    assert torch.allclose(weighted, error * (alpha / sigma).square().clamp(max=2.0))


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@given(some_time, some_time, st.integers(0, 99))
def test_a_perfect_output_leads_to_the_data_from_anywhere(times, one, other, seed):
    time = torch.tensor([one, other, one, other], dtype=torch.float64)
    x0, eps, elsewhere = drawn(seed), drawn(seed + 1), drawn(seed + 2)
    x = times.noised(x0, eps, time)
    assert torch.allclose(times.clean(x, times.target(x0, eps, time), time), x0, atol=1e-6)
    assert torch.allclose(times.consistent_target(x, x0, time), times.target(x0, eps, time), atol=1e-6)
    assert torch.allclose(times.clean(elsewhere, times.consistent_target(elsewhere, x0, time), time), x0, atol=1e-6)


@pytest.mark.parametrize("times", TIMES.values(), ids=TIMES)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_steps_are_those_of_single_levels(times, eta):
    x, x0, z = drawn(), drawn(1), drawn(2)
    time, to = torch.tensor([[900.0, 640.5, 40.0, 9.0], [860.0, 17.25, 5.0, CLEAN]], dtype=torch.float64)
    mean, deviation = times.step_mean_and_std(x, x0, time, to, eta)
    up = times.renoised(x, to, time, z)
    for i in range(4):
        here, there = (Marginal(*(float(v[i]) for v in times.marginals(at, x))) for at in (time, to))
        wanted = denoise(x[i], x0[i], here, there, eta, z[i])
        assert torch.allclose((mean + deviation * z)[i], wanted, atol=1e-9)
        assert torch.allclose(up[i], renoise(x[i], there, here, z[i]), atol=1e-9)
    assert (deviation > 0).flatten().tolist() == [eta > 0] * 3 + [False]


def test_ddims_step_is_the_schedulers():
    scheduler = DDIMScheduler(**SCHEDULE)
    scheduler.set_timesteps(25)
    times, x, out = Times.of_scheduler(scheduler), drawn(), drawn(1)
    time = torch.full((4,), 480.0, dtype=torch.float64)
    for eta in (0.0, 1.0):
        stepped = scheduler.step(out, 480, x, eta=eta, variance_noise=drawn(2)).prev_sample
        mean, deviation = times.step_mean_and_std(x, times.clean(x, out, time), time, time - 40, eta)
        assert torch.allclose(mean + deviation * drawn(2), stepped, atol=1e-6)


def test_draws_are_uniform_over_all_times():
    for times in TIMES.values():
        drawn_times = times.draw(torch.arange(20_000))
        assert drawn_times.min() == times.first and drawn_times.max() == times.first + 999
        assert abs(float(drawn_times.mean()) - 500) < 8 and torch.equal(drawn_times, drawn_times.round())
        assert torch.equal(times.draw(torch.tensor([7]))[0], drawn_times[7])
