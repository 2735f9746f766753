"""Our solvers against closed forms, their orders, and diffusers' schedulers on the same schedule."""

import itertools
import math

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, EDMEulerScheduler, HeunDiscreteScheduler
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.engine import noise
from diffscale.samplers import solvers
from diffscale.samplers.formulas import PROCESSES, marginal, x0_and_eps
from diffscale.samplers.levels import Schedule, even_levels, karras_levels, level_of
from diffscale.samplers.solved import SolvedSampler
from diffscale.samplers.toy import ToySampler
from diffscale.types import concat

MEAN, SPREAD = 0.7, 0.5
PREDICTIONS = ["flow_prediction", "epsilon", "v_prediction", "sample"]


def truth(prediction, x0, eps, at):
    """What a network of a kind should say, written as its definition."""
    alpha, sigma = at
    norm = math.hypot(alpha, sigma)
    return {
        "flow_prediction": eps - x0,
        "epsilon": eps,
        "v_prediction": (alpha * eps - sigma * x0) / norm,
        "sample": x0,
    }[prediction]


class Gaussian(SolvedSampler):
    """Data N(MEAN, SPREAD^2): the denoiser, and the whole flow, in closed form."""

    flops_per_forward = 1.0

    def __init__(self, levels, process, prediction, solver, eta=None):
        schedule = Schedule(process, prediction, tuple(levels))
        super().__init__(["x"], schedule, solvers.solver(solver, eta), torch.empty(0, 2, dtype=torch.float64))

    def _levels_of(self, intervals):
        return even_levels(intervals)

    def _evaluate(self, x, at, rows):
        self.forwards += len(x)
        alpha, sigma = at
        variance = (alpha * SPREAD) ** 2 + sigma**2
        x0 = MEAN + alpha * SPREAD**2 / variance * (x - alpha * MEAN)
        return truth(self._schedule.prediction, x0, sigma / variance * (x - alpha * MEAN), at)

    def decode(self, latents):
        return latents

    def flow(self, x, at, to):
        """Where the probability flow takes `x`: its distance from the mean in standard deviations stays."""
        (a, s), (a_to, s_to) = marginal(self._schedule.process, at), marginal(self._schedule.process, to)
        z = (x - a * MEAN) / math.hypot(a * SPREAD, s)
        return a_to * MEAN + math.hypot(a_to * SPREAD, s_to) * z


def model(x, at, prediction):
    """The same denoiser for a scheduler's own loop."""
    return Gaussian([0.5, 0.0], "flow", prediction, "euler")._evaluate(x, at, None)


def start(sampler, n=16):
    return sampler.prior(torch.arange(n), torch.zeros(n, dtype=torch.int64))


@given(
    st.sampled_from(PREDICTIONS),
    st.floats(0.02, 0.98),
    st.floats(-3, 3),
    st.floats(-3, 3),
    st.sampled_from(["vp", "ve"]),
)
def test_x0_and_eps_are_read_off_every_kind_of_output(prediction, level, x0, eps, process):
    at = marginal("flow" if prediction == "flow_prediction" else process, level)
    x0, eps = torch.tensor([x0], dtype=torch.float64), torch.tensor([eps], dtype=torch.float64)
    found = x0_and_eps(prediction, at.alpha * x0 + at.sigma * eps, truth(prediction, x0, eps, at), at)
    for got, wanted in zip(found, (x0, eps), strict=True):
        torch.testing.assert_close(got, wanted, atol=1e-9, rtol=1e-9)


@pytest.mark.parametrize(("name", "order"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
@pytest.mark.parametrize("process", PROCESSES)
def test_order_of_convergence(name, order, process):
    errors = []
    for n in (20, 40, 80, 160):
        levels = [0.95 - 0.9 * i / n for i in range(n + 1)]
        sampler = Gaussian([*levels, 0.0], process, "sample", name)
        state = start(sampler)
        end = sampler.run(state, n * (2 if name == "heun" else 1))
        assert sampler.forwards == len(state) * n * (2 if name == "heun" else 1)
        assert sampler.levels[end.step] == pytest.approx(0.05)
        errors.append(float((end.x - sampler.flow(state.x, 0.95, 0.05)).abs().max()))
    slopes = [math.log2(a / b) for a, b in itertools.pairwise(errors)]
    assert slopes[-1] == pytest.approx(order, abs=0.15), (errors, slopes)


def test_heun_takes_two_evaluations_an_interval_of_a_flow_to_the_very_end():
    sampler = Gaussian([1.0, 0.5, 0.0], "flow", "flow_prediction", "heun")
    assert sampler.steps == 4 and sampler.levels == [1.0, 0.75, 0.5, 0.25, 0.0]
    state = start(sampler, 3)

    def v(x, t):
        return model(x, marginal("flow", t), "flow_prediction")

    x = state.x
    for t, s in ((1.0, 0.5), (0.5, 0.0)):
        first = v(x, t)
        x = x + (s - t) * (first + v(x + (s - t) * first, s)) / 2
    torch.testing.assert_close(sampler.run(state).x, x)
    # Between the evaluations the latents are those of the middle level.
    torch.testing.assert_close(sampler.run(state, 1).x, state.x - 0.25 * v(state.x, 1.0))
    # Where the schedule ends in log space the last interval is one step; so is one from pure noise.
    assert Gaussian([0.9, 0.5, 0.0], "vp", "epsilon", "heun").steps == 3
    assert Gaussian([1.0, 0.5, 0.0], "vp", "v_prediction", "heun").steps == 2


def table():
    return {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}


def levels_of(scheduler, n):
    scheduler.set_timesteps(n)
    times = list(dict.fromkeys(scheduler.timesteps.tolist()))
    return [*(level_of(scheduler.alphas_cumprod, time) for time in times), 0.0]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.6, 1.0])
def test_ddim_is_that_of_diffusers(prediction, eta):
    scheduler = DDIMScheduler(**table(), prediction_type=prediction, clip_sample=False, set_alpha_to_one=True)
    sampler = Gaussian(levels_of(scheduler, 8), "vp", prediction, "ddim", eta)
    state = start(sampler)
    x = state.x
    for i, t in enumerate(scheduler.timesteps):
        given = noise.normal(torch.arange(16) + 100 * i, (2,)).double()
        out = model(x, marginal("vp", sampler.levels[i]), prediction)
        x = scheduler.step(out, t, x, eta=eta, variance_noise=given if eta else None).prev_sample
        state = sampler.step(sampler.predict(state), given if eta else None)
        torch.testing.assert_close(state.x, x, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "flow_prediction"])
def test_dpm_solver_is_that_of_diffusers(prediction):
    flow = prediction == "flow_prediction"
    scheduler = DPMSolverMultistepScheduler(**table(), prediction_type=prediction, use_flow_sigmas=flow)
    scheduler.set_timesteps(9)
    levels = scheduler.sigmas.tolist() if flow else levels_of(scheduler, 9)
    process = "flow" if flow else "vp"
    sampler = Gaussian(levels, process, prediction, "dpmpp_2m")
    state = start(sampler)
    x = state.x
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(x, marginal(process, levels[i]), prediction), t, x).prev_sample
    torch.testing.assert_close(sampler.run(state).x, x, atol=2e-4, rtol=1e-4)


def test_heun_is_that_of_diffusers():
    scheduler = HeunDiscreteScheduler(**table(), prediction_type="epsilon")
    levels = levels_of(scheduler, 6)
    sampler = Gaussian(levels, "vp", "epsilon", "heun")
    assert sampler.steps == len(scheduler.timesteps) == 11
    state = start(sampler)
    x = state.x / marginal("vp", levels[0]).alpha
    for t in scheduler.timesteps:
        sigma = float(
            scheduler.sigmas[scheduler.index_for_timestep(t) if scheduler.step_index is None else scheduler.step_index]
        )
        alpha = 1 / math.hypot(1, sigma)
        at = marginal("vp", sigma / (1 + sigma))
        x = scheduler.step(model(alpha * x, at, "epsilon"), t, x).prev_sample
    torch.testing.assert_close(sampler.run(state).x, x, atol=2e-4, rtol=1e-4)


def test_the_edm_schedule_is_that_of_diffusers():
    scheduler = EDMEulerScheduler(sigma_min=0.01, sigma_max=50.0, sigma_data=0.5, rho=5.0)
    scheduler.set_timesteps(12)
    ours = [marginal("ve", level).sigma for level in karras_levels(12, 0.01, 50.0, 5.0)]
    torch.testing.assert_close(torch.tensor(ours), scheduler.sigmas, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", solvers.SOLVERS)
def test_every_solver_samples_the_data_on_every_schedule(name, process):
    """And is the same split anywhere, and drawn from keys alone."""
    n = 800
    sampler = ToySampler(steps=60, process=process, solver=name)
    state = start(sampler, n)
    end = sampler.run(state)
    generator = torch.Generator().manual_seed(1)
    picks = torch.randint(8, (n,), generator=generator)
    data = sampler.means[picks] + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    for axis in (0, 1):
        assert stats.ks_2samp(end.x[:, axis].numpy(), data[:, axis].numpy()).pvalue > 1e-3
    few = ToySampler(steps=5, process=process, solver=name)
    whole = few.run(state[:4])
    for cut in range(1, few.steps):
        middle = few.run(state[:4], cut)
        torch.testing.assert_close(few.run(concat([middle[:1], middle[1:]])).x, whole.x)
    torch.testing.assert_close(few.run(state[[2]]).x, whole.x[[2]])


@pytest.mark.parametrize(("name", "order"), [("sde_euler", 1), ("sde_heun", 2)])
@pytest.mark.parametrize("process", PROCESSES)
def test_the_sde_keeps_the_marginals_to_its_order(name, order, process):
    """On Gaussian data a step is affine in latents and noise, so that mean and variance follow without sampling."""
    errors = []
    for n in (160, 320):
        levels = [0.9 - 0.8 * i / n for i in range(n + 1)]
        sampler = Gaussian([*levels, 0.0], process, "sample", name)
        alpha, sigma = marginal(process, 0.9)
        mean, variance = alpha * MEAN, (alpha * SPREAD) ** 2 + sigma**2
        stages = 2 if name == "sde_heun" else 1
        for i in range(n):
            probes = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)  # latents, noise
            state = start(sampler, 3)
            state = sampler._placed(state, probes[:, :1].expand(3, 2), levels[i])
            for _ in range(stages):
                state = sampler.step(sampler.predict(state), probes[:, 1:].expand(3, 2))
            zero, one, noisy = state.x[:, 0].tolist()
            mean, variance = zero + (one - zero) * mean, (one - zero) ** 2 * variance + (noisy - zero) ** 2
        alpha, sigma = marginal(process, levels[-1])
        assert mean == pytest.approx(alpha * MEAN)
        errors.append(abs(variance - (alpha * SPREAD) ** 2 - sigma**2))
    assert math.log2(errors[-2] / errors[-1]) == pytest.approx(order, abs=0.2), errors


def test_says_what_is_wrong():
    with pytest.raises(UnknownName, match="did you mean 'heun'"):
        solvers.solver("huen")
    with pytest.raises(DiffscaleError, match="solver=ddim"):
        solvers.solver("heun", 0.5)
    with pytest.raises(DiffscaleError, match="eta from 0 to 1"):
        solvers.solver("ddim", 1.5)
    sampler = ToySampler(solver="heun")
    with pytest.raises(DiffscaleError, match="heun is deterministic"):
        sampler.step(sampler.predict(start(sampler)), torch.zeros(16, 2))
    with pytest.raises(DiffscaleError, match="must fall"):
        Schedule("flow", "sample", (0.5, 0.5, 0.0))
    with pytest.raises(DiffscaleError, match="not supported"):
        x0_and_eps("score", torch.zeros(1), torch.zeros(1), marginal("flow", 0.5))
