"""The windowed sampler against the pipeline's own call."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    HeunDiscreteScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)
from pipelines import (
    PROMPTS,
    tiny_flux,
    tiny_flux_true_cfg,
    tiny_pixart,
    tiny_sd,
    tiny_sdxl,
    tiny_zimage,
    with_text,
)

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.levels import grid_marginal
from diffscale.types import concat

STEPS = 5
KEYS = torch.arange(3)
ROWS = torch.tensor([2, 0, 1])

DETERMINISTIC = [
    (tiny_sd, DDIMScheduler(clip_sample=False, steps_offset=1)),
    (tiny_sd, DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")),
    (tiny_sd, EulerDiscreteScheduler(steps_offset=1)),
    (
        tiny_sd,
        EulerDiscreteScheduler(steps_offset=1, timestep_spacing="trailing", use_karras_sigmas=True),
    ),
    (tiny_sd, DPMSolverMultistepScheduler(steps_offset=1)),
    (tiny_sd, UniPCMultistepScheduler(steps_offset=1)),
    (tiny_sd, PNDMScheduler(steps_offset=1, skip_prk_steps=True)),
    (tiny_sd, HeunDiscreteScheduler(steps_offset=1)),
    (tiny_sdxl, EulerDiscreteScheduler()),
    (tiny_flux, FlowMatchEulerDiscreteScheduler()),
    (tiny_flux, FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)),
    (tiny_flux_true_cfg, FlowMatchEulerDiscreteScheduler()),
    (tiny_pixart, DPMSolverMultistepScheduler()),
    (tiny_pixart, DDIMScheduler(clip_sample=False, steps_offset=1)),
]
STOCHASTIC = [
    (tiny_sd, DDPMScheduler(steps_offset=1, clip_sample=False)),
    (tiny_sd, EulerAncestralDiscreteScheduler(steps_offset=1)),
    (tiny_sd, DPMSolverMultistepScheduler(steps_offset=1, algorithm_type="sde-dpmsolver++")),
    (tiny_flux, FlowMatchEulerDiscreteScheduler(stochastic_sampling=True)),
]


def distance(a, b):
    """Largest difference, relative where latents of an untrained network grow large."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1))


def name(value):
    return getattr(value, "__name__", type(value).__name__)


@pytest.mark.parametrize(("tiny", "scheduler"), DETERMINISTIC, ids=name)
def test_equals_the_pipelines_own_call(tiny, scheduler, rows_of):
    t = tiny(scheduler)
    given = {k: v[ROWS] if isinstance(v, torch.Tensor) and len(v) == 3 else v for k, v in t.args.items()}
    t.pipe.set_progress_bar_config(disable=True)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    start = sampler.prior(KEYS, ROWS)
    unit = noise.normal(KEYS, start.x.shape[1:])
    call = {"num_inference_steps": STEPS, **given}
    latents = t.pipe(latents=unit, output_type="latent", **call).images
    images = t.pipe(latents=unit, output_type="pt", **call).images

    count_flops = rows_of(t.net)
    end = sampler.run(start)
    assert sampler.forwards == sum(count_flops) == 3 * sampler.steps * t.forwards
    assert sampler.forwards_per_nfe == t.forwards
    assert sampler.flops_per_forward > 0
    assert distance(end.x, latents) <= 1e-5
    assert (sampler.decode(end.x) - images).abs().max() <= 1e-4


@pytest.mark.parametrize(("tiny", "scheduler"), DETERMINISTIC + STOCHASTIC, ids=name)
def test_split_at_every_step_equals_unsplit(tiny, scheduler):
    t = tiny(scheduler)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    for cut in range(1, sampler.steps):
        middle = sampler.run(start, cut)
        halves = concat([middle[:1], middle[torch.tensor([1, 2])]])
        assert distance(sampler.run(halves).x, end.x) <= 1e-5

    stepped, forwards = start, sampler.forwards
    while stepped.step < sampler.steps:
        stepped = sampler.step(sampler.predict(stepped))
    assert distance(stepped.x, end.x) <= 1e-5
    assert sampler.forwards - forwards == 3 * sampler.steps * t.forwards


@pytest.mark.parametrize(("tiny", "scheduler"), STOCHASTIC, ids=name)
def test_stochastic_steps_follow_the_rows_keys(tiny, scheduler):
    t = tiny(scheduler)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    start = sampler.prior(KEYS, ROWS)
    torch.manual_seed(1)
    together = sampler.run(start)
    torch.manual_seed(2)
    alone = concat([sampler.run(start[[i]]) for i in range(3)])
    assert distance(together.x, alone.x) <= 1e-5
    predicted = sampler.predict(start)
    given = noise.normal(KEYS + 7, start.x.shape[1:])
    assert not torch.equal(sampler.step(predicted).x, sampler.step(predicted, given).x)


@pytest.mark.parametrize(
    ("tiny", "scheduler"),
    [
        (tiny_sd, DDIMScheduler(clip_sample=False, steps_offset=1)),
        (tiny_sd, DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="v_prediction")),
        (tiny_sd, DDIMScheduler(clip_sample=False, steps_offset=1, prediction_type="sample")),
        (tiny_sd, EulerDiscreteScheduler(steps_offset=1)),
        (tiny_sd, EulerDiscreteScheduler(steps_offset=1, prediction_type="v_prediction")),
    ],
    ids=name,
)
def test_x0_prediction_is_the_schedulers_own(tiny, scheduler):
    t = tiny(scheduler)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    state = sampler.predict(sampler.run(sampler.prior(KEYS, ROWS), 2))
    scheduler.set_timesteps(STEPS)
    theirs = scheduler.step(state.model_output, scheduler.timesteps[2], state.x).pred_original_sample
    assert torch.allclose(state.x0, theirs, atol=1e-4, rtol=1e-4)


def test_x0_prediction_of_a_flow_and_of_dpm():
    for tiny, scheduler in DETERMINISTIC[4], DETERMINISTIC[9]:
        t = tiny(scheduler)
        sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
        last = sampler.predict(sampler.run(sampler.prior(KEYS, ROWS), sampler.steps - 1))
        # The last step of both goes to the clean prediction itself.
        assert torch.allclose(sampler.step(last).x, last.x0, atol=1e-3)


def test_renoising_keeps_the_variance_and_clears_the_solver():
    t = tiny_sd(DPMSolverMultistepScheduler(steps_offset=1))
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    state = sampler.run(sampler.prior(KEYS, ROWS), 3)
    assert state.solver
    back = sampler.renoise(state, sampler.levels[1], torch.zeros_like(state.x))
    fresh = sampler.renoise(state, sampler.levels[1], torch.ones_like(state.x)).x - back.x
    assert back.step == 1 and not back.solver
    (a, s), (a_to, s_to) = grid_marginal(sampler._scheduler, 3), grid_marginal(sampler._scheduler, 1)
    assert float(fresh.mean()) ** 2 + (a_to / a * s) ** 2 == pytest.approx(s_to**2, rel=1e-4)
    assert sampler.run(back).step == sampler.steps


def test_leaves_the_users_pipeline_alone():
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    before = dict(t.pipe.__dict__)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    sampler.run(sampler.prior(KEYS, ROWS))
    assert t.pipe.__dict__ == before
    assert not t.net._forward_pre_hooks


def test_says_what_is_wrong(sd):
    with pytest.raises(DiffscaleError, match="latents"):
        DiffusersSampler(sd.pipe, PROMPTS, STEPS, sd.args | {"latents": None})
    with pytest.raises(DiffscaleError, match="'gidance', did you mean 'guidance_scale'"):
        DiffusersSampler(sd.pipe, PROMPTS, STEPS, sd.args | {"gidance": 1})
    sampler = DiffusersSampler(sd.pipe, PROMPTS, STEPS, sd.args)
    start = sampler.prior(KEYS, ROWS)
    with pytest.raises(DiffscaleError, match="needs a prediction"):
        sampler.step(start)
    with pytest.raises(DiffscaleError, match="deterministic"):
        sampler.step(sampler.predict(start), noise=torch.zeros_like(start.x))
    with pytest.raises(DiffscaleError, match="cannot end"):
        sampler.run(start, STEPS + 1)


def test_every_prompt_is_encoded_once_and_dealt_out_by_rows(rows_of):
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    with_text(t.pipe)
    args = {"height": 8, "width": 8, "negative_prompt": "blurry"}
    encoded = rows_of(t.pipe.text_encoder)
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, args)
    assert len(encoded) == 2 * len(PROMPTS)  # the prompt and the negative prompt
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    sampler.decode(end.x)
    assert len(encoded) == 2 * len(PROMPTS)
    theirs = t.pipe(
        [PROMPTS[row] for row in ROWS.tolist()],
        latents=start.x,
        num_inference_steps=STEPS,
        output_type="latent",
        **args | {"negative_prompt": ["blurry"] * 3},
    ).images
    assert distance(end.x, theirs) <= 1e-5


def test_a_network_that_takes_its_batch_as_a_list():
    t = tiny_zimage(FlowMatchEulerDiscreteScheduler())
    sampler = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    assert sampler.forwards_per_nfe == 2 and sampler.forwards == 2 * 3 * STEPS
    theirs = t.pipe(
        [PROMPTS[row] for row in ROWS.tolist()],
        latents=start.x,
        num_inference_steps=STEPS,
        output_type="pt",
        **t.args,
    ).images
    assert (sampler.decode(end.x) - theirs).abs().max() <= 1e-4
