"""Pipelines that cannot be windowed: their whole call, its cost, and what is refused."""

import logging
import sys
from unittest.mock import patch

import families
import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from pipelines import PROMPTS, Brightness

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.whole import WholeSampler, sampler_of
from diffscale.samplers.windowed.loop import NotWindowed
from diffscale.searches import SEARCHES

STEPS = 4
KEYS = torch.arange(3)
ROWS = torch.tensor([2, 0, 1])


@pytest.fixture(autouse=True)
def posteriors_without_noise(monkeypatch):
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())


def made(name):
    tiny, scheduler, why = families.WHOLE[name]
    t = tiny(scheduler(), True)
    t.pipe.set_progress_bar_config(disable=True)
    return t, why


@pytest.mark.parametrize("name", families.WHOLE)
def test_runs_whole_says_so_and_equals_the_pipelines_own_call(name, rows_of, caplog):
    t, why = made(name)
    with pytest.raises(NotWindowed, match=why):
        DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    with caplog.at_level(logging.WARNING):
        sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    assert isinstance(sampler, WholeSampler)
    assert f"{type(t.pipe).__name__} is run whole" in caplog.text and why in caplog.text
    start = sampler.prior(KEYS, ROWS)
    count_flops = rows_of(t.net)
    before = sampler.forwards
    end = sampler.run(start)
    assert sum(count_flops) == sampler.forwards - before == 3 * sampler.steps * t.forwards
    assert sampler.steps == (3 if "strength" in t.args and t.args["strength"] < 1 else STEPS)
    assert len(t.net._forward_pre_hooks) == 1  # the one that counts here
    alone = sampler.run(start[[1]])
    assert (alone.x - end.x[[1]]).abs().max() <= 1e-4
    if name == "if":  # its scheduler draws noise of its own, by the rows' keys
        return
    args = {k: v[ROWS] if isinstance(v, torch.Tensor) and len(v) == 3 else v for k, v in t.args.items()}
    with patch.object(sys.modules[type(t.pipe).__module__], "randn_tensor", lambda *_, **__: start.x):
        theirs = t.pipe(num_inference_steps=STEPS, output_type="np", return_dict=False, **args)[0]
    theirs = torch.from_numpy(theirs).movedim(-1, -3)
    assert (sampler.decode(end.x) - theirs).abs().max() <= 1e-4


@pytest.fixture
def computed(monkeypatch):
    """Watches a network: how many rows it computes, whatever calls it."""

    def watch(network):
        rows, own = [], type(network).forward

        def forward(self, *args, **kwargs):
            if self is network:
                rows.append(len(next(each for each in [*args, *kwargs.values()] if isinstance(each, torch.Tensor))))
            return own(self, *args, **kwargs)

        monkeypatch.setattr(type(network), "forward", forward)
        return rows

    return watch


# All of them are made in the same way, and each takes seconds.
ONE_BY_ONE = [name if name == "flux_inpaint" else pytest.param(name, marks=pytest.mark.slow) for name in families.WHOLE]


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_what_a_draft_costs_is_known_without_computing_it(name, computed):
    """It is what another sampler of as many steps finds out by a whole run."""
    t, _ = made(name)
    rows = computed(t.net)
    sampler = WholeSampler(t.pipe, PROMPTS, 12, t.args)
    assert sum(rows) == sampler.steps * sampler.forwards_per_nfe
    rows.clear()
    shorter = [sampler.in_steps(intervals) for intervals in (2, 3, 5, 15)]
    shorter.append(shorter[-1].in_steps(4))
    assert not rows
    for found in shorter:
        run = WholeSampler(t.pipe, PROMPTS, found.intervals, t.args)
        for what in ("steps", "levels", "forwards_per_nfe"):
            assert getattr(found, what) == getattr(run, what)
        assert found.flops_per_forward == pytest.approx(run.flops_per_forward, rel=1e-9)
        start = run.prior(KEYS, ROWS)
        assert torch.equal(found.run(start).x, run.run(start).x)
        assert found.forwards == run.forwards


@pytest.mark.parametrize("search", ["auto", "draft"])
def test_a_search_by_drafts_computes_what_its_ledger_has_and_no_more(search, computed):
    t, _ = made("sdxl_inpaint")
    sampler, rows = sampler_of(t.pipe, PROMPTS, 20, t.args), computed(t.net)
    task = Task(SEARCHES[search], 1, noise.fold(noise.root(0), 1), 40 * sampler.steps)
    (result,) = run_searches([task], sampler, Brightness())
    assert sum(rows) == result.ledger.network_forwards == 2 * result.ledger.nfe


def test_searches_over_noises_run_and_others_are_refused_in_a_sentence(rows_of):
    t, _ = made("sd_blended")
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    count_flops = rows_of(t.net)
    for name in ("random", "zero_order", "evolution"):
        task = Task(SEARCHES[name], 1, noise.fold(noise.root(0), 1), 4 * STEPS)
        before = sum(count_flops)
        (result,) = run_searches([task], sampler, Brightness())
        assert result.ledger.nfe == 4 * STEPS and result.candidates == 4
        assert sum(count_flops) - before == result.ledger.network_forwards == 2 * result.ledger.nfe
        assert result.best.score >= result.baseline.score
    for name in ("paths", "first_order", "reno", "dps", "demon", "free2guide", "fk", "svdd"):
        with pytest.raises(DiffscaleError, match=r"can only be run whole .* use a search over noises"):
            run_searches([Task(SEARCHES[name], 1, 0, 20 * STEPS)], sampler, Brightness())


def test_a_pipeline_without_noise_or_pictures_is_refused(sd):
    with pytest.raises(DiffscaleError, match="'gidance', did you mean 'guidance_scale'"):
        sampler_of(sd.pipe, PROMPTS, STEPS, sd.args | {"gidance": 1})

    class Text(type(sd.pipe)):
        def __call__(self, prompt, num_inference_steps=1):
            return prompt

    sd.pipe.__class__ = Text
    with pytest.raises(DiffscaleError, match="no pictures to search"):
        sampler_of(sd.pipe, PROMPTS, STEPS, {})


def test_a_pipeline_that_keeps_its_latents_is_run_whole(sd, monkeypatch, rows_of):
    tiny, scheduler = families.OTHERS["ldm"]
    t = tiny(scheduler(), True)
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    assert isinstance(sampler, WholeSampler) and sampler.why == "it does not give its latents back"
    start = sampler.prior(KEYS, ROWS)
    count_flops = rows_of(t.net)
    end = sampler.run(start)
    assert sum(count_flops) == 3 * STEPS * t.forwards
    named = [PROMPTS[row] for row in ROWS]
    theirs = t.pipe(named, latents=start.x, num_inference_steps=STEPS, output_type="pt", **t.args).images
    assert (end.x - theirs).abs().max() <= 1e-5
    # Kandinsky refuses such an output type.
    own = sd.pipe.image_processor.postprocess

    def refusing(image, output_type, **more):
        if output_type == "latent":
            raise ValueError(f"Only the output types `pt`, `pil` and `np` are supported not output_type={output_type}")
        return own(image, output_type, **more)

    monkeypatch.setattr(sd.pipe.image_processor, "postprocess", refusing)
    assert sampler_of(sd.pipe, PROMPTS, STEPS, sd.args).why == sampler.why
