"""Noise levels off the grid, stochastic steps of any solver, and gradients, against the schedulers' own steps."""

from dataclasses import replace

import families
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from pipelines import PROMPTS, tiny_flux, tiny_flux_true_cfg, tiny_pixart, tiny_sd, tiny_sdxl

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.registry.arguments import parse
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.formulas import PROCESSES, marginal
from diffscale.samplers.levels import off_grid_timestep
from diffscale.searches import SEARCHES

KEYS = torch.arange(3)
ROWS = torch.tensor([2, 0, 1])
FIRST_ORDER = [
    (tiny_sd, DDIMScheduler(clip_sample=False, set_alpha_to_one=True)),
    (tiny_sd, DDIMScheduler(clip_sample=False, set_alpha_to_one=True, prediction_type="v_prediction")),
    (tiny_sd, EulerDiscreteScheduler(timestep_spacing="leading", steps_offset=1)),
    (tiny_sdxl, EulerDiscreteScheduler(timestep_spacing="leading")),
    (tiny_flux, FlowMatchEulerDiscreteScheduler()),
    (tiny_flux, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
    (tiny_pixart, DDIMScheduler(clip_sample=False, set_alpha_to_one=True)),
]
HIGHER_ORDER = [
    (tiny_sd, DPMSolverMultistepScheduler(steps_offset=1)),
    (tiny_sd, UniPCMultistepScheduler(steps_offset=1)),
    (tiny_sd, HeunDiscreteScheduler(steps_offset=1)),
]


def name(value):
    return getattr(value, "__name__", type(value).__name__)


def made(tiny, scheduler, steps=6):
    t = tiny(scheduler)
    return DiffusersSampler(t.pipe, PROMPTS, steps, t.args)


def close(a, b, tolerance=1e-4):
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) <= tolerance


@pytest.mark.parametrize("process", PROCESSES)
def test_levels_are_signal_to_noise_ratios(process):
    for level in (0.1, 0.5, 0.9):
        at = marginal(process, level)
        assert at.level == pytest.approx(level)
        assert at.sigma / at.alpha == pytest.approx(level / (1 - level))


@pytest.mark.parametrize(("tiny", "scheduler"), FIRST_ORDER, ids=name)
def test_one_step_of_our_solver_is_one_of_the_schedulers(tiny, scheduler):
    sampler = made(tiny, scheduler)
    state = sampler.run(sampler.prior(KEYS, ROWS), 2)
    ours = sampler.solve(state, sampler.levels[3], 1)
    theirs = sampler.run(state, 3)
    assert (ours.step, ours.level) == (3, None)
    assert close(ours.x, theirs.x)
    # The free step from a prediction is the same again.
    assert close(sampler.step(sampler.predict(state), eta=0.0).x, theirs.x)


@pytest.mark.parametrize(("tiny", "scheduler"), FIRST_ORDER + HIGHER_ORDER, ids=name)
def test_the_network_is_told_the_same_time_off_the_grid(tiny, scheduler):
    sampler = made(tiny, scheduler)
    state = replace(sampler.run(sampler.prior(KEYS, ROWS), 2), solver={})
    off = sampler.predict(replace(state, level=sampler.levels[2]))
    on = sampler.predict(state)
    assert off.level == sampler.levels[2] and close(off.x0, on.x0, 1e-3)
    between = 0.5 * (sampler.levels[2] + sampler.levels[3])
    moved = sampler.solve(state, between, 2)
    assert moved.step == 2 and moved.level == pytest.approx(between) and not moved.solver
    with pytest.raises(DiffscaleError, match="A run starts on the grid"):
        sampler.run(moved)
    assert sampler.solve(moved, 0.0, 2).step == sampler.steps
    back = sampler.renoise(moved, sampler.levels[1], torch.randn_like(moved.x))
    assert back.level is None and sampler.levels[back.step] == pytest.approx(sampler.levels[1])
    assert sampler.run(back).step == sampler.steps


def test_a_stochastic_step_is_that_of_ddim():
    given = torch.randn(3, 4, 8, 8)
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    theirs = DiffusersSampler(t.pipe, PROMPTS, 6, {**t.args, "eta": 0.7})
    state = theirs.predict(theirs.run(theirs.prior(KEYS, ROWS), 2))
    assert close(theirs.step(state, given, eta=0.7).x, theirs.step(state, given).x)


@pytest.mark.parametrize(
    ("tiny", "scheduler"), [FIRST_ORDER[0], FIRST_ORDER[4], HIGHER_ORDER[0], (tiny_flux_true_cfg, FIRST_ORDER[4][1])],
    ids=name,
)  # fmt: skip
def test_gradients_are_those_of_finite_differences_and_counted_twice(tiny, scheduler, rows_of):
    t = tiny(scheduler)
    sampler = DiffusersSampler(t.pipe, PROMPTS, 3, t.args)
    start = sampler.prior(KEYS, ROWS)

    def score(images, recorded=None):
        return images[:, 0].mean((1, 2)) * 100

    count_flops = rows_of(t.net)
    before = sampler.forwards
    end, images, scores, grad = sampler.gradient(start, score)
    assert sum(count_flops) == sampler.forwards - before == 2 * 3 * sampler.steps * t.forwards
    assert not grad.requires_grad and not end.x.requires_grad
    assert close(end.x, sampler.run(start).x, 1e-5) and close(images, sampler.decode(end.x), 1e-5)
    assert torch.allclose(scores, score(images))
    # Along the gradient itself the slope is its norm.
    step = 1e-2 * grad / grad.flatten(1).norm(dim=1).view(-1, *[1] * (grad.ndim - 1))
    up, down = (score(sampler.decode(sampler.run(replace(start, x=start.x + d)).x)) for d in (step, -step))
    assert torch.allclose((up - down) / 2e-2, grad.flatten(1).norm(dim=1), rtol=0.05)
    assert not any(p.grad is not None for p in t.net.parameters())


@pytest.mark.parametrize(
    "search",
    ["random", "zero_order policy=greedy", "paths m=2 length=2", "first_order", "demon k=3", "free2guide k=3", "fk k=4",
     "svdd b=2 m=2", "bayes dimensions=2 initial=2 n=2", "evolution", "spectral n=3", "pcn chains=2", "cma n=4", "reno",
     "dps"],
)  # fmt: skip
def test_every_search_runs_on_networks_alike_in_any_micro_batch(search, verifier):
    t = tiny_flux_true_cfg(FlowMatchEulerDiscreteScheduler())
    sampler = DiffusersSampler(t.pipe, PROMPTS, 4, t.args)
    algorithm, options = parse(search, "search", SEARCHES)
    tasks = [
        Task(lambda env: SEARCHES[algorithm](env, **options), row, noise.fold(noise.root(0), row), 80)
        for row in range(2)
    ]
    runs = []
    for size in (1, 3, 64):
        before = sampler.forwards
        runs.append(run_searches(tasks, sampler, verifier, size))
        assert sum(result.ledger.network_forwards for result in runs[-1]) == sampler.forwards - before
    for other in runs[1:]:
        for one, result in zip(runs[0], other, strict=True):
            assert one.ledger.nfe == result.ledger.nfe <= 80
            assert abs(one.best.score - result.best.score) <= 1e-4


@pytest.mark.parametrize("name", ["sana", "wan", "sd3", "flux_dev"])
def test_a_flow_is_told_the_same_between_grid_points_as_on_them(name):
    """Solvers that take flows too, as of Sana and Wan, also have a table of alphas, which says other times."""
    tiny, scheduler, _ = families.WINDOWED[name]
    t = tiny(scheduler(), False)
    sampler = DiffusersSampler(t.pipe, PROMPTS, 4, t.args)
    own = sampler.pipeline.scheduler
    for level, told in zip(sampler.levels[1:-1], own.timesteps[1:].tolist(), strict=True):
        assert off_grid_timestep(own, level) == pytest.approx(told, abs=1)
