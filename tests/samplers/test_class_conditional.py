"""Class-conditional sampling: guidance by hand, every search, gradients, and DiT against diffusers' own pipeline."""

from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from tiny_classes import tiny_dit, tiny_sit, tiny_vae

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.models.class_conditional import class_model
from diffscale.models.sit import SiTDenoiser
from diffscale.registry.arguments import parse
from diffscale.samplers.class_conditional import class_sampler
from diffscale.searches import SEARCHES
from diffscale.types import ClassLabel, concat

LABELS = [ClassLabel("tench", 0), ClassLabel("toad", 3), ClassLabel("tank", 4)]
KEYS, ROWS = torch.arange(3), torch.tensor([2, 0, 1])
SEARCHED = [
    ("random", lambda s: 40 // s * s),
    ("zero_order n=3 iterations=2 policy=greedy", lambda s: 7 * s),
    ("paths n=1 m=2 length=2", None),
    ("first_order iterations=2", lambda s: 8 * s),
    ("demon k=3", lambda s: 1 + 4 * (s - 1)),
    ("free2guide k=3 guided=2", lambda s: s + 2 * 2),
    ("bayes dimensions=2 initial=2 n=2", lambda s: 40 // s * s),
    ("fk k=4", lambda s: 4 * s),
    ("svdd b=2 m=2", lambda s: 2 + 4 * (s - 1)),
    ("evolution n=1 first=1 at=0,2", lambda s: s + s + s - 2),
    ("spectral n=3", lambda s: 40 // s * s),
]


def sampler_of(net=None, steps=3, **args):
    return class_sampler(SiTDenoiser(net or tiny_sit()), tiny_vae(), LABELS, steps, **args)


def test_guidance_is_on_the_first_three_channels():
    net = tiny_sit()
    sampler = sampler_of(net, guidance_scale=4.0)
    state = sampler.run(sampler.prior(KEYS, ROWS), 2)
    level, ids = sampler.levels[2], torch.tensor([4, 0, 3])
    with torch.no_grad():
        time = torch.full((3,), 1 - level)  # SiT's time runs from noise to clean
        given, without = net(state.x, time, ids), net(state.x, time, torch.full((3,), 5))
    v = given.clone()
    v[:, :3] = without[:, :3] + 4 * (given[:, :3] - without[:, :3])
    found = sampler.predict(state)
    torch.testing.assert_close(found.model_output, -v)
    torch.testing.assert_close(found.x0, state.x + level * v)
    everywhere = sampler_of(net, guidance_scale=4.0, guided_channels=4).predict(state).model_output
    torch.testing.assert_close(everywhere, -(without + 4 * (given - without)))
    torch.testing.assert_close(sampler_of(net).predict(state).model_output, -given)


@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_a_trajectory_is_the_ode_of_the_networks_own_time(solver):
    """Written with SiT's time, from t = 0 to 1, and its own velocity."""
    net = tiny_sit()
    sampler = sampler_of(net, 4, solver=solver)
    start = sampler.prior(KEYS, ROWS)
    x, ids = start.x, torch.tensor([4, 0, 3])
    with torch.no_grad():
        for i in range(4):
            t, h = torch.full((3,), i / 4), 1 / 4
            slope = net(x, t, ids)
            if solver == "heun":
                slope = (slope + net(x + h * slope, t + h, ids)) / 2
            x = x + h * slope
    assert sampler.steps == (8 if solver == "heun" else 4)
    torch.testing.assert_close(sampler.run(start).x, x, atol=1e-5, rtol=1e-5)
    vae = tiny_vae()
    with torch.no_grad():
        picture = vae.decode(x / vae.config.scaling_factor).sample
    torch.testing.assert_close(sampler.decode(x), (picture / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("solver", "scale"), [("heun", 1.0), ("heun", 3.0), ("sde_heun", 3.0), ("dpmpp_2m", 1.0)])
def test_every_search_at_its_price_in_any_micro_batch(solver, scale, verifier, rows_of):
    net = tiny_sit()
    sampler = sampler_of(net, 2 if "heun" in solver else 4, guidance_scale=scale, solver=solver)
    rows = rows_of(net)
    every = SEARCHED if (solver, scale) == ("heun", 1.0) else [SEARCHED[2], SEARCHED[3], SEARCHED[5]]
    for search, price in every:
        algorithm, options = parse(search, "search", SEARCHES)
        tasks = [
            Task(lambda env, a=algorithm, o=options: SEARCHES[a](env, **o), row, noise.fold(noise.root(0), row), 40)
            for row in range(2)
        ]
        runs = []
        for size in (1, 64):
            rows.clear()
            runs.append(run_searches(tasks, sampler, verifier, size))
            assert sum(result.ledger.network_forwards for result in runs[-1]) == sum(rows)
        for one, other in zip(*runs, strict=True):
            assert one.ledger.nfe == other.ledger.nfe <= 40
            if price is not None:
                assert one.ledger.nfe == price(sampler.steps), search
            work = one.ledger.nfe // 2 if algorithm == "first_order" else one.ledger.nfe
            assert one.ledger.network_forwards == work * (1 if scale == 1 else 2)
            assert abs(one.best.score - other.best.score) <= 1e-4


@pytest.mark.parametrize("solver", ["heun", "ddim", "sde_euler", "dpmpp_2m"])
def test_gradients_are_those_of_finite_differences(solver, rows_of):
    net = tiny_sit().double()
    sampler = sampler_of(net, 2, guidance_scale=2.0, solver=solver)
    sampler.decode = lambda latents: latents  # pictures are float32
    start = sampler.prior(KEYS, ROWS)
    weight = noise.normal(KEYS + 9, start.x.shape[1:]).double()

    def score(latents, recorded):
        return (weight * (latents + recorded.square())).sum((1, 2, 3))

    def value(x):
        end = sampler.run(replace(start, x=x), None, 0.4)
        return score(end.x, end.recorded)

    rows = rows_of(net)
    before = sampler.forwards
    end, _, scores, grad = sampler.gradient(start, score, 0.4)
    assert sum(rows) == sampler.forwards - before == 2 * 2 * 3 * sampler.steps
    assert not end.x.requires_grad and not any(p.grad is not None for p in net.parameters())
    torch.testing.assert_close(scores, value(start.x))
    along = noise.normal(KEYS + 5, start.x.shape[1:]).double()
    slope = (value(start.x + 1e-5 * along) - value(start.x - 1e-5 * along)) / 2e-5
    torch.testing.assert_close((grad * along).sum((1, 2, 3)), slope, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", ["heun", "sde_heun", "dpmpp_2m"])
def test_split_anywhere_and_alone(solver):
    sampler = sampler_of(steps=3, solver=solver, guidance_scale=2.0)
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    for cut in range(1, sampler.steps):
        middle = sampler.run(start, cut)
        halves = concat([middle[:1], middle[torch.tensor([1, 2])]])
        torch.testing.assert_close(sampler.run(halves).x, end.x, atol=1e-5, rtol=1e-5)
    alone = concat([sampler.run(start[[i]]) for i in range(3)])
    torch.testing.assert_close(alone.x, end.x, atol=1e-4, rtol=1e-4)


def test_renoising_keeps_the_marginals_between_the_two_evaluations_of_heun_too():
    sampler = sampler_of(steps=4, solver="heun")
    for step, level in ((2, 0.9), (3, 0.75), (7, 0.33)):
        state = sampler.run(sampler.prior(KEYS, ROWS), step)
        here = sampler.levels[step]
        clean, eps = torch.randn_like(state.x), torch.randn_like(state.x)
        state = replace(state, x=(1 - here) * clean + here * eps)
        still = sampler.renoise(state, level, torch.zeros_like(eps))
        moved = sampler.renoise(state, level, torch.ones_like(eps))
        assert not moved.solver and (moved.level is None) == (level == 0.75)
        # The signal is that of the level; both noises together have its variance.
        kept = (1 - level) / (1 - here)
        torch.testing.assert_close(still.x, (1 - level) * clean + kept * here * eps)
        fresh = float((moved.x - still.x).mean())
        assert fresh**2 + (kept * here) ** 2 == pytest.approx(level**2, rel=1e-5)
        again = sampler.run(moved) if moved.level is None else sampler.solve(moved, 0.0, 3)
        assert again.step == sampler.steps


@pytest.mark.parametrize("scale", [1.0, 4.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_dit_is_the_pipelines_own_call(scale, prediction, rows_of):
    pipe = tiny_dit(DDIMScheduler(clip_sample=False, set_alpha_to_one=True, prediction_type=prediction))
    pipe.set_progress_bar_config(disable=True)
    model = class_model(pipe)
    sampler = model.sampler(["golden retriever", "0"], 6, {"guidance_scale": scale})
    assert [label.class_id for label in sampler.prompts] == [207, 0] and sampler.steps == 6
    start = sampler.prior(torch.arange(2), torch.tensor([0, 1]))
    x = torch.randn(start.x.shape, generator=torch.Generator().manual_seed(3))
    rows = rows_of(pipe.transformer)
    ours = sampler.decode(sampler.run(replace(start, x=x)).x)
    assert sum(rows) == sampler.forwards == 2 * 6 * (1 if scale == 1 else 2)
    theirs = pipe([207, 0], scale, torch.Generator().manual_seed(3), 6, output_type="pt").images
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_says_what_is_wrong():
    with pytest.raises(DiffscaleError, match="null condition"):
        sampler_of(tiny_sit(class_dropout_prob=0.0), guidance_scale=2.0)
    with pytest.raises(DiffscaleError, match="from 1 to 4"):
        sampler_of(guidance_scale=2.0, guided_channels=5)
    with pytest.raises(DiffscaleError, match="steps as a whole number, 1 or more"):
        sampler_of(steps=0)
    with pytest.raises(DiffscaleError, match="table of alphas"):
        class_model(tiny_dit(FlowMatchEulerDiscreteScheduler()))
    sampler = sampler_of()
    with pytest.raises(DiffscaleError, match="needs a prediction"):
        sampler.step(sampler.prior(KEYS, ROWS))
    assert class_model(object()) is None
