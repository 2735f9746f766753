"""Networks of users' own: closed forms on Gaussian data, loops in their own time, guidance, gradients, errors."""

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from diffusers import DDIMScheduler
from hypothesis import given
from hypothesis import strategies as st

import diffscale
from diffscale._util.errors import DiffscaleError, UnknownName
from diffscale.engine import noise
from diffscale.samplers.denoiser import DenoiserSampler
from diffscale.samplers.formulas import marginal
from diffscale.samplers.noise_schedules import EDM, LinearFlow, VariancePreserving
from diffscale.samplers.solvers import SOLVERS
from diffscale.types import ClassLabel, Sampler

MEANS = torch.tensor([0.6, -0.3, 0.1], dtype=torch.float64)  # the last is that of no class
TABLE = torch.linspace(1e-4**0.5, 0.03**0.5, 400, dtype=torch.float64).square().neg().add(1).cumprod(0)
SCHEDULES = {
    "flow to noise": LinearFlow(),
    "flow to data": LinearFlow(data_time=1),
    "vp": VariancePreserving(TABLE),
    "edm": EDM(sigma_min=0.01, sigma_max=30.0),
}
CASES = [
    (schedule, prediction)
    for schedule in SCHEDULES
    for prediction in ("noise", "data", "v", "velocity")
    if not (prediction == "velocity" and "flow" not in schedule)
]
KEYS, ROWS = torch.arange(1, 7), torch.tensor([0, 1, 0, 1, 0, 1])


def alpha_sigma(schedule, times):
    """In the network's own time, written as each kind defines it."""
    match schedule:
        case "flow to noise":
            return 1 - times, times
        case "flow to data":
            return times, 1 - times
        case "vp":
            kept = TABLE[times.long()]
            return kept.sqrt(), (1 - kept).sqrt()
        case "edm":
            return torch.ones_like(times), times


class Gaussian:
    """The best network for data N(mean of the class, spread^2) in every pixel; notes the times and rows it is asked."""

    def __init__(self, schedule, prediction, spread):
        self.schedule, self.prediction, self.spread, self.asked = schedule, prediction, spread, []

    def __call__(self, x, t, classes):
        assert t.shape == (len(x),) and t.dtype == x.dtype
        self.asked.append((float(t[0]), len(x)))
        alpha, sigma = (each[:, None, None, None] for each in alpha_sigma(self.schedule, t))
        mean = MEANS[classes][:, None, None, None]
        variance = (alpha * self.spread) ** 2 + sigma**2
        data = mean + alpha * self.spread**2 / variance * (x - alpha * mean)
        eps = sigma / variance * (x - alpha * mean)
        velocity = data - eps if self.schedule == "flow to data" else eps - data
        return {
            "noise": eps,
            "data": data,
            "v": (alpha * eps - sigma * data) / torch.hypot(alpha, sigma),
            "velocity": velocity,
        }[self.prediction]


def gaussian(schedule, prediction, steps, spread=0.2, **more):
    network = Gaussian(schedule, prediction, spread)
    start = SCHEDULES[schedule]
    if schedule.startswith("flow") and prediction == "noise":
        start = replace(start, noisiest=0.99)
    settings = {"conditions": torch.arange(2), "dtype": torch.float64, **more}
    return DenoiserSampler(network, start, prediction, (1, 2, 2), steps, ["a", "b"], **settings)


def prior(sampler, count=6):
    return sampler.prior(torch.arange(1, count + 1), torch.arange(count) % 2)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
def test_one_step_finds_data_that_are_one_point(schedule, prediction):
    """Whatever the noise, the network knows the picture."""
    sampler = gaussian(schedule, prediction, 1, spread=0.0)
    end = sampler.run(prior(sampler))
    torch.testing.assert_close(end.x, MEANS[ROWS][:, None, None, None].expand(6, 1, 2, 2), atol=1e-9, rtol=0)
    assert isinstance(sampler, Sampler) and sampler.steps == 1


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
def test_samples_are_those_of_the_exact_flow(schedule, prediction, solver):
    """A sample keeps its distance from the mean in standard deviations along the probability flow."""
    sampler = gaussian(schedule, prediction, 200, solver=solver)
    state = prior(sampler)
    alpha, sigma = marginal(SCHEDULES[schedule].process, sampler.levels[0])
    mean = MEANS[ROWS][:, None, None, None]
    exact = mean + 0.2 * (state.x - alpha * mean) / math.hypot(alpha * 0.2, sigma)
    torch.testing.assert_close(sampler.run(state).x, exact, atol=0.02 if solver == "euler" else 0.005, rtol=0)


@pytest.mark.parametrize(("schedule", "prediction"), CASES)
@pytest.mark.parametrize("solver", ["ddim", "sde_euler", "sde_heun"])
def test_stochastic_solvers_end_in_the_data(schedule, prediction, solver):
    sampler = gaussian(schedule, prediction, 100, solver=solver, eta=1.0 if solver == "ddim" else None)
    ends = sampler.run(prior(sampler, 600)).x
    for row in (0, 1):
        found = ends[row::2]
        assert float(found.mean()) == pytest.approx(float(MEANS[row]), abs=4 * 0.2 / 1200**0.5 + 0.003)
        assert float(found.std()) == pytest.approx(0.2, rel=0.1)


@pytest.mark.parametrize("schedule", ["flow to noise", "flow to data"])
@pytest.mark.parametrize("prediction", ["data", "velocity"])
def test_a_flow_is_eulers_loop_in_the_networks_own_time(schedule, prediction):
    sampler = gaussian(schedule, prediction, 5)
    network, x = Gaussian(schedule, prediction, 0.2), prior(sampler).x
    towards = 1 if schedule == "flow to data" else -1
    for i in range(5):
        t = i / 5 if towards == 1 else 1 - i / 5
        output = network(x, torch.full((6,), t, dtype=torch.float64), ROWS)
        if prediction == "data":
            output = (output - x) / (1 - t) if towards == 1 else (x - output) / t
        x = x + towards / 5 * output
    torch.testing.assert_close(sampler.run(prior(sampler)).x, x)


@pytest.mark.parametrize(("prediction", "theirs"), [("noise", "epsilon"), ("data", "sample"), ("v", "v_prediction")])
def test_a_table_of_alphas_is_diffusers_ddim_with_trailing_steps(prediction, theirs):
    scheduler = DDIMScheduler(
        len(TABLE), trained_betas=(1 - TABLE / torch.cat([torch.ones(1), TABLE[:-1]])).numpy(), clip_sample=False,
        prediction_type=theirs, timestep_spacing="trailing",
    )  # fmt: skip
    scheduler.set_timesteps(20)
    sampler = gaussian("vp", prediction, 20, dtype=torch.float32)
    network, x = Gaussian("vp", prediction, 0.2), prior(sampler).x
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, t.to(x).expand(6), ROWS).float(), t, x).prev_sample
    torch.testing.assert_close(sampler.run(prior(sampler)).x, x, atol=1e-4, rtol=1e-4)


def test_edm_is_algorithm_1_of_its_paper():
    sampler = gaussian("edm", "data", 9, solver="heun")
    network, x = Gaussian("edm", "data", 0.2), prior(sampler).x
    ends = [30.0 ** (1 / 7), 0.01 ** (1 / 7)]
    sigmas = [*((ends[0] + i / 8 * (ends[1] - ends[0])) ** 7 for i in range(9)), 0.0]
    assert sampler.levels[0] == pytest.approx(30 / 31) and float(x.std()) == pytest.approx(30, rel=0.5)
    for here, there in pairwise(sigmas):
        slope = (x - network(x, torch.full((6,), here, dtype=torch.float64), ROWS)) / here
        end = x + (there - here) * slope
        if there:
            second = (end - network(end, torch.full((6,), there, dtype=torch.float64), ROWS)) / there
            end = x + (there - here) * (slope + second) / 2
        x = end
    assert sampler.steps == 2 * 9 - 1
    torch.testing.assert_close(sampler.run(prior(sampler)).x, x)


@given(st.integers(1, 400))
def test_a_table_is_asked_at_times_it_has_wherever_they_are_whole(steps):
    sampler = VariancePreserving(TABLE)
    levels = sampler.levels(steps)
    times = [sampler.time(marginal("vp", level)) for level in levels[:-1]]
    assert times == pytest.approx([399 - i * 400 / steps for i in range(steps)], abs=1e-5)
    assert all(time == round(time) for time in times) or 400 % steps
    assert levels[-1] == 0 and all(a > b for a, b in pairwise(levels))


@pytest.mark.parametrize("schedule", ["flow to data", "edm"])
def test_guidance_is_on_an_interval_of_the_networks_time(schedule):
    low, high = {"flow to data": (0.3, 0.7), "edm": (0.05, 2.0)}[schedule]
    sampler = gaussian(schedule, "data", 10, guidance_scale=3.0, guidance_interval=(low, high), null_condition=2)
    network, state = sampler._network, prior(sampler)
    network.asked.clear()
    end = sampler.run(state)
    assert len(network.asked) == 10 and 0 < sum(rows == 12 for _, rows in network.asked) < 10
    assert all(rows == (12 if low - 1e-9 <= time <= high + 1e-9 else 6) for time, rows in network.asked)
    assert sampler.forwards == sum(rows for _, rows in network.asked)
    # The guided prediction of one point is null + 3 (class - null).
    state = sampler.predict(sampler.run(prior(sampler), 5))
    plain = gaussian(schedule, "data", 10).predict(replace(state, x0=None)).x0
    without = gaussian(schedule, "data", 10, conditions=torch.tensor([2, 2])).predict(replace(state, x0=None)).x0
    torch.testing.assert_close(state.x0, without + 3 * (plain - without))
    assert end.x.isfinite().all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_a_function_of_the_keys_alone_split_anywhere(solver):
    sampler = gaussian("flow to noise", "velocity", 3, solver=solver)
    whole = sampler.run(sampler.prior(KEYS, ROWS))
    for cut in range(sampler.steps):
        middle = sampler.run(sampler.prior(KEYS[2:4], ROWS[2:4]), cut)
        assert torch.equal(sampler.run(middle).x, whole.x[2:4])


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_gradients_are_those_of_finite_differences(solver):
    sampler = gaussian("vp", "v", 4, solver=solver, null_condition=2, guidance_scale=2.0, decode=lambda x: x / 8 + 0.5)
    start = prior(sampler)
    _, images, scores, grad = sampler.gradient(start, lambda images, _: images.double().square().sum((1, 2, 3)))

    def value(x):
        return (sampler.run(replace(start, x=x)).x / 8 + 0.5).expand(-1, 3, -1, -1).square().sum((1, 2, 3))

    along = noise.normal(KEYS + 5, start.x.shape[1:]).double()
    slope = (value(start.x + 1e-4 * along) - value(start.x - 1e-4 * along)) / 2e-4
    torch.testing.assert_close((grad * along).sum((1, 2, 3)), slope, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(scores, value(start.x), rtol=1e-5, atol=1e-5)
    assert images.shape == (6, 3, 2, 2) and images.dtype == torch.float32


@pytest.mark.parametrize("solver", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("steps", [0, 3])
def test_gradients_of_predictions_are_those_of_finite_differences(solver, steps):
    sampler = gaussian("vp", "v", 4, solver=solver, null_condition=2, guidance_scale=2.0, decode=lambda x: x / 8 + 0.5)
    state = sampler.run(prior(sampler), steps)

    def gradient(state):
        return sampler.gradient(state, lambda images, _: images.double().square().sum((1, 2, 3)), of_prediction=True)

    if "start" in state.solver:  # in the middle of a step of two evaluations
        with pytest.raises(DiffscaleError, match="evaluates the network elsewhere than at the latents"):
            gradient(state)
        state = sampler.renoise(state, sampler.levels[steps], torch.zeros_like(state.x))
    before = sampler.forwards
    predicted, _, _, grad = gradient(state)
    assert sampler.forwards - before == 2 * len(state) and predicted.step == steps

    def value(x):
        x0 = sampler.predict(replace(state, x=x)).x0
        return (x0 / 8 + 0.5).expand(-1, 3, -1, -1).square().sum((1, 2, 3))

    torch.testing.assert_close(predicted.x0, sampler.predict(state).x0)
    along = noise.normal(KEYS + 5, state.x.shape[1:]).double()
    slope = (value(state.x + 1e-4 * along) - value(state.x - 1e-4 * along)) / 2e-4
    torch.testing.assert_close((grad * along).sum((1, 2, 3)), slope, rtol=1e-4, atol=1e-6)


def test_search_takes_it_by_prompt():
    labels = [ClassLabel("seven", 7), ClassLabel("two", 2)]
    network = torch.nn.Conv2d(3, 3, 1)
    sampler = DenoiserSampler(lambda x, t: network(x), LinearFlow(), "velocity", (3, 4, 4), 4, labels)
    assert sampler.flops_per_forward == 2 * 3 * 3 * 16
    asked = []

    def brightness(images, prompts):
        asked.extend(prompts)
        return images.mean((1, 2, 3))

    result = diffscale.search(sampler, "two", verifier=brightness, nfe=12)
    assert {label.class_id for label in asked} == {2} and result.ledger.nfe == 12
    assert not result.best.latents.requires_grad
    with pytest.raises(UnknownName, match="seven, two"):
        diffscale.search(sampler, "three", verifier=brightness)
    with pytest.raises(DiffscaleError, match="where it is made"):
        diffscale.search(sampler, "two", verifier=brightness, steps=3)


def test_pictures_far_outside_of_their_range_are_warned_of():
    settings = {"prediction": "data", "shape": (3, 4, 4), "steps": 1, "prompts": ["x"]}
    latents = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    wrong = DenoiserSampler(lambda x, t: x, LinearFlow(), decode=lambda x: x, **settings)
    with pytest.warns(UserWarning, match=r"lies outside of \[0, 1\] and is cut off"):
        wrong.decode(latents)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        DenoiserSampler(lambda x, t: x, LinearFlow(), decode=lambda x: x / 2 + 0.5, **settings).decode(1.2 * latents)
        DenoiserSampler(lambda x, t: x, LinearFlow(), **settings).decode(9 * latents)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"prediction": "nose"}, "did you mean 'noise'"),
        ({"schedule": EDM(), "prediction": "velocity"}, "LinearFlow"),
        ({"prediction": "noise"}, "noisiest=0.99"),
        ({"steps": 0}, "steps as a whole number, 1 or more, not 0"),
        ({"steps": 2.5}, "steps as a whole number, 1 or more, not 2.5"),
        ({"schedule": "linear"}, r"A schedule is LinearFlow\(\), .* not 'linear'"),
        ({"schedule": LinearFlow}, r"A schedule is LinearFlow\(\), .* not <class"),
        ({"network": lambda x, t: (x,)}, "must give a tensor, but gave a tuple"),
        ({"network": lambda x, t: x.numpy()}, "must give a tensor, but gave a ndarray"),
        ({"network": lambda x: x}, r"does not run as network\(x, t\) \(.*2 were given\): wrap it"),
        ({"network": lambda x, t: x, "conditions": torch.arange(1)}, r"does not run as network\(x, t, condition\)"),
        ({"device": "nowhere"}, "The device 'nowhere' cannot be used"),
        ({"prompts": "red left"}, r"prompts is a list, as in prompts=\['red left'\]"),
        ({"prompts": []}, "at least one prompt"),
        ({"conditions": torch.arange(3)}, "1 prompts and 3 conditions"),
        ({"guidance_scale": 2.0}, "give conditions and null_condition, or leave guidance_scale at 1"),
        ({"guided_channels": 4}, "from 1 to 3"),
        ({"solver": "huen"}, "did you mean 'heun'"),
        ({"network": lambda x, t: x[:, :1]}, r"\[1, 3, 4, 4\], but gave \[1, 1, 4, 4\]"),
        ({"schedule": VariancePreserving(TABLE), "prediction": "v", "steps": 401}, "400 steps at most"),
    ],
)
def test_says_what_is_wrong(wrong, said):
    settings = {
        "network": lambda x, t: x, "schedule": LinearFlow(), "prediction": "velocity", "shape": (3, 4, 4), "steps": 2,
        "prompts": ["x"],
    }  # fmt: skip
    with pytest.raises(DiffscaleError, match=said):
        DenoiserSampler(**{**settings, **wrong})
    points = DenoiserSampler(**{**settings, "shape": (2,)})
    with pytest.raises(DiffscaleError, match="give `decode`"):
        points.decode(torch.zeros(1, 2))
    with pytest.raises(DiffscaleError, match="data at time 0 or 1"):
        LinearFlow(data_time=2)
    with pytest.raises(DiffscaleError, match="fall"):
        VariancePreserving([0.1, 0.9])
    with pytest.raises(DiffscaleError, match="sigma_min"):
        EDM(sigma_min=0.0)
