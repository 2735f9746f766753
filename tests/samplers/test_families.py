"""Every family of pipelines, tiny and with random weights, against its own call."""

import sys
from contextlib import ExitStack
from dataclasses import replace
from unittest.mock import patch

import families
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from pipelines import PROMPTS, Brightness, with_text

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.arguments import call_parameters
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.whole import sampler_of
from diffscale.searches import SEARCHES
from diffscale.types import concat

STEPS = 4
KEYS = torch.arange(3)
ROWS = torch.tensor([2, 0, 1])


CASES = [(name, guided) for name, (_, _, guidance) in families.WINDOWED.items() for guided in guidance]


def made(name, guided, **more):
    tiny, scheduler, _ = families.WINDOWED[name]
    t = tiny(scheduler(), guided)
    t.args |= more
    t.pipe.set_progress_bar_config(disable=True)
    return t, DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)


def close(a, b, tolerance=1e-5):
    """Relative where latents of an untrained network grow large."""
    return float((a - b).abs().max() / b.abs().max().clamp(min=1)) <= tolerance


def own_call(t, unit, output, rows=ROWS):
    """What the pipeline's own call makes of unit noise; a picture's noise it draws itself, so it is put there."""
    if getattr(t, "alone", False) and len(unit) > 1:
        return torch.cat([own_call(t, unit[[i]], output, rows[[i]]) for i in range(len(unit))])
    args = {k: v[rows] if isinstance(v, torch.Tensor) and len(v) == 3 else v for k, v in t.args.items()}
    args |= {name: t.args[name][:, rows] for name in getattr(t, "layered", ()) if name in args}
    with ExitStack() as stack:
        if "strength" in t.args or "latents" not in call_parameters(t.pipe):
            module = sys.modules[type(t.pipe).__module__]
            stack.enter_context(patch.object(module, "randn_tensor", lambda *_, **__: unit))
        else:
            args["latents"] = getattr(t, "handed", lambda x: x)(unit)
        answer = t.pipe(num_inference_steps=STEPS, output_type=output, return_dict=False, **args)[0]
        return torch.from_numpy(answer).movedim(-1, -3) if output == "np" else answer


@pytest.fixture(autouse=True)
def posteriors_without_noise(monkeypatch):
    """Else the pipeline encodes its picture with a draw of its own."""
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


@pytest.mark.parametrize(("name", "guided"), CASES)
def test_equals_the_pipelines_own_call_and_counts_what_it_runs(name, guided, rows_of):
    t, sampler = made(name, guided)
    start = sampler.prior(KEYS, ROWS)
    unit = noise.normal(KEYS, start.x.shape[1:])
    pictures = own_call(t, unit, "np")
    networks = t.net if isinstance(t.net, torch.nn.ModuleList) else [t.net]
    count_flops = [rows_of(network) for network in networks]
    if getattr(t, "alone", False):  # a batch fails, in the network
        sampler.run(start, 1)
        before, _ = sampler.forwards, [rows.clear() for rows in count_flops]
    else:
        before = 0
    end = sampler.run(start)
    assert sampler.forwards - before == sum(map(sum, count_flops)) == 3 * sampler.steps * t.forwards
    assert all(count_flops) and sampler.forwards_per_nfe == t.forwards
    decoded = sampler.decode(end.x)
    if pictures.ndim == 5:
        at = [0, (pictures.shape[1] - 1) / 3, 2 * (pictures.shape[1] - 1) / 3, pictures.shape[1] - 1]
        pictures = pictures[:, [round(i) for i in at]] if pictures.shape[1] > 4 else pictures
    assert decoded.shape == pictures.shape and decoded.shape[-3] == 3
    assert close(decoded, pictures, 1e-4)
    if name != "flux2_klein":  # answers latents in a layout that it cannot take back
        assert close(end.x, own_call(t, unit, "latent"))


@pytest.mark.parametrize(("name", "guided"), CASES)
def test_split_at_every_step_equals_unsplit(name, guided):
    _, sampler = made(name, guided)
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    for cut in range(1, sampler.steps):
        middle = sampler.run(start, cut)
        halves = concat([middle[:1], middle[torch.tensor([1, 2])]])
        assert close(sampler.run(halves).x, end.x)
    stepped = start
    while stepped.step < sampler.steps:
        stepped = sampler.step(sampler.predict(stepped))
    assert close(stepped.x, end.x)


@pytest.mark.parametrize(("name", "guided"), CASES)
def test_renoising_and_running_again_from_the_middle(name, guided):
    _, sampler = made(name, guided)
    start = sampler.prior(KEYS, ROWS)
    middle = sampler.run(start, sampler.steps - 1)
    back = sampler.renoise(middle, sampler.levels[1], noise.normal(KEYS + 9, middle.x.shape[1:]))
    assert back.step == 1 and back.level is None and not back.solver
    again = sampler.run(back)
    assert again.step == sampler.steps and again.x.isfinite().all() and not torch.equal(again.x, sampler.run(middle).x)
    # From the first level too, where a picture's noise is no longer apart from it.
    first = sampler.renoise(middle, sampler.levels[0], noise.normal(KEYS + 9, middle.x.shape[1:]))
    assert sampler.run(first).step == sampler.steps
    one = sampler.solve(start, sampler.levels[1], 1)
    assert close(one.x, sampler.step(sampler.predict(start), eta=0.0).x, 1e-4)


@pytest.mark.parametrize("name", families.WINDOWED)
def test_gradients_reach_the_noise(name):
    guided = families.WINDOWED[name][2][0]
    t, sampler = made(name, guided)
    start = sampler.prior(KEYS[:1], ROWS[:1])

    def score(pictures, recorded=None):
        return pictures.flatten(1).mean(1) * 100

    before = sampler.forwards
    end, _, _, grad = sampler.gradient(start, score)
    assert sampler.forwards - before == 2 * sampler.steps * t.forwards
    assert close(end.x, sampler.run(start).x)
    assert grad.shape == start.x.shape and float(grad.norm()) > 0
    step = 2e-3 * grad / grad.norm()
    up, down = (score(sampler.decode(sampler.run(replace(start, x=start.x + d)).x)) for d in (step, -step))
    assert torch.allclose((up - down) / 4e-3, grad.norm().expand(1), rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("name", families.WINDOWED)
def test_gradients_of_predictions_are_through_one_evaluation(name):
    guided = families.WINDOWED[name][2][0]
    t, sampler = made(name, guided)

    def score(pictures, recorded=None):
        return pictures.flatten(1).mean(1) * 100

    state = sampler.run(sampler.prior(KEYS[:1], ROWS[:1]), sampler.steps // 2)
    before = sampler.forwards
    predicted, _, _, grad = sampler.gradient(state, score, of_prediction=True)
    assert sampler.forwards - before == t.forwards
    plain = sampler.predict(state)
    assert close(predicted.x0, plain.x0) and close(predicted.model_output, plain.model_output)
    assert not predicted.x0.requires_grad and not predicted.model_output.requires_grad
    assert grad.shape == state.x.shape and float(grad.norm()) > 0
    step = 2e-3 * grad / grad.norm()
    up, down = (score(sampler.decode(sampler.predict(replace(state, x=state.x + d)).x0)) for d in (step, -step))
    assert torch.allclose((up - down) / 4e-3, grad.norm().expand(1), rtol=0.1, atol=5e-3)


@pytest.mark.parametrize("name", ["flux2_klein", "wan22", "flux_image"])
@pytest.mark.parametrize("search", ["random", "zero_order", "fk"])
def test_the_ledger_has_what_the_network_ran(name, search, rows_of):
    t, sampler = made(name, True)
    networks = t.net if isinstance(t.net, torch.nn.ModuleList) else [t.net]
    count_flops = [rows_of(network) for network in networks]
    tasks = [Task(SEARCHES[search], row, noise.fold(noise.root(0), row), 20) for row in range(2)]
    found = run_searches(tasks, sampler, Brightness())
    assert sum(map(sum, count_flops)) == sum(result.ledger.network_forwards for result in found)
    assert all(result.ledger.network_forwards == result.ledger.nfe * t.forwards for result in found)
    alone = run_searches(tasks[1:], sampler, Brightness(), 1)
    assert alone[0].best.score == pytest.approx(found[1].best.score, abs=1e-5)


def test_what_depends_on_the_number_of_a_step_is_split_too():
    """Lumina 2 stops guiding after a share of the steps, Stable Diffusion 3 skips layers in some of them."""
    cases = {
        "lumina2": {"cfg_trunc_ratio": 0.5},
        "sd3": {"skip_guidance_layers": [0], "skip_layer_guidance_start": 0.3, "skip_layer_guidance_stop": 0.6},
    }
    for name, more in cases.items():
        t, sampler = made(name, True, **more)
        start = sampler.prior(KEYS, ROWS)
        end = sampler.run(start)
        assert close(end.x, own_call(t, start.x, "latent"))
        assert close(sampler.run(sampler.run(sampler.run(start, 1), 3)).x, end.x)
        plain = made(name, True)[1]
        assert not close(plain.run(start).x, end.x)


def test_a_scheduler_forgets_what_other_trajectories_did():
    _, sampler = made("wan", False)
    start = sampler.prior(KEYS, ROWS)
    end, middle = sampler.run(start), sampler.run(start, 3)
    sampler.run(sampler.run(start, 1), 2)
    assert torch.equal(sampler.run(middle).x, end.x)


@pytest.mark.parametrize("negative", ["dark", ["dark"], ["dark", "a bird", "blue"]])
@pytest.mark.parametrize("name", ["sd_instructed", "sd15", "sd_blended"])
def test_negative_prompts_are_those_of_the_rows(name, negative):
    tiny, scheduler, _ = {**families.WINDOWED, **families.WHOLE}[name]
    t = tiny(scheduler(), True)
    with_text(t.pipe)
    t.args = {k: v for k, v in t.args.items() if not k.endswith("_embeds")}
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, {**t.args, "negative_prompt": negative})
    start = sampler.prior(KEYS, ROWS)
    given = [negative] * 3 if isinstance(negative, str) else negative if len(negative) == 3 else negative * 3
    t.args |= {"prompt": [PROMPTS[row] for row in ROWS], "negative_prompt": [given[row] for row in ROWS]}
    assert close(sampler.decode(sampler.run(start).x), own_call(t, start.x, "np"), 1e-4)


@pytest.mark.parametrize(("negative", "said"), [(3, "as a text, or as a list"), (["a", "b"], "each of the 3 prompts")])
def test_wrong_negative_prompts_are_told(negative, said):
    with pytest.raises(DiffscaleError, match=said):
        made("sd_instructed", True, negative_prompt=negative)


def test_layers_of_a_text_network_come_before_the_batch():
    """HiDream's own encoding has them there, as the embeddings that it is given have."""
    t, given = made("hidream", True)
    known = {
        "_get_t5_prompt_embeds": {"": t.args["negative_prompt_embeds_t5"][:1]},
        "_get_llama3_prompt_embeds": {"": t.args["negative_prompt_embeds_llama3"][:, :1]},
        "_get_clip_prompt_embeds": {"": t.args["negative_pooled_prompt_embeds"][:1, :8]},
    }
    pooled = t.args["pooled_prompt_embeds"]
    for i, prompt in enumerate(PROMPTS):
        known["_get_t5_prompt_embeds"][prompt] = t.args["prompt_embeds_t5"][[i]]
        known["_get_llama3_prompt_embeds"][prompt] = t.args["prompt_embeds_llama3"][:, [i]]
        known["_get_clip_prompt_embeds"][prompt] = pooled[[i], :8]
    t.args |= {"pooled_prompt_embeds": pooled[:, :8].repeat(1, 2)}
    for name in ("prompt_embeds_t5", "prompt_embeds_llama3", "pooled_prompt_embeds"):
        negative = t.args[f"negative_{name}"]
        axis = 1 if name.endswith("llama3") else 0
        first = negative.narrow(axis, 0, 1)
        first = first[:, :8].repeat(1, 2) if name.startswith("pooled") else first
        t.args[f"negative_{name}"] = torch.cat([first] * 3, axis)
    given = DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    for name, of in known.items():
        setattr(t.pipe, name, lambda *args, of=of: of[next(a[0] for a in args if isinstance(a, list))])
    encoded = DiffusersSampler(
        t.pipe, PROMPTS, STEPS, {name: value for name, value in t.args.items() if "embeds" not in name}
    )
    start = given.prior(KEYS, ROWS)
    assert torch.equal(encoded.run(start).x, given.run(start).x)


def test_rows_are_run_alone_where_a_batch_fails_and_that_is_told_once(caplog):
    _, sampler = made("prx", True)
    start = sampler.prior(KEYS, ROWS)
    before = sampler.forwards
    sampler.run(sampler.run(start, 1))
    assert sampler.forwards - before == 3 * STEPS * 2
    (said,) = [record.message for record in caplog.records if "cannot run a batch" in record.message]
    assert said.startswith("PRXPipeline cannot run a batch (") and said.endswith("each row is run alone.")
