"""Caches of diffusers: a row's picture is that of the pipeline's own call for it alone, and the ledger has what ran."""

import importlib

import families
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, hooks
from diffusers.models.cache_utils import CacheMixin
from pipelines import PROMPTS, Brightness, tiny_flux

from diffscale import search
from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.caches import caches
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.whole import WholeSampler, sampler_of
from diffscale.samplers.windowed.loop import NotWindowed
from diffscale.searches import SEARCHES

STEPS = 4
KEYS, ROWS = torch.arange(3), torch.tensor([2, 0, 1])


def tiny():
    return tiny_flux(FlowMatchEulerDiscreteScheduler(), layers=2)


def configured(pipe):
    """A configuration of every cache of diffusers that works on Flux, such that it leaves something out."""

    def now():
        return pipe.current_timestep

    spatial = {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": (-1, 990)}
    return {
        "FirstBlockCacheConfig": hooks.FirstBlockCacheConfig(threshold=0.4),
        "PyramidAttentionBroadcastConfig": hooks.PyramidAttentionBroadcastConfig(
            **spatial, current_timestep_callback=now
        ),
        "FasterCacheConfig": hooks.FasterCacheConfig(
            **spatial, current_timestep_callback=now, is_guidance_distilled=True, tensor_format="BCHW"
        ),
        "MagCacheConfig": hooks.MagCacheConfig(
            num_inference_steps=STEPS, mag_ratios=torch.ones(STEPS), threshold=0.5, max_skip_steps=2
        ),
        "TaylorSeerCacheConfig": hooks.TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=2),
    }


KINDS = sorted(configured(None))


def cached(kind):
    t = tiny()
    t.pipe.set_progress_bar_config(disable=True)
    t.net.enable_cache(configured(t.pipe)[kind])
    return t


def test_every_cache_of_diffusers_is_known():
    """Those of text are exact and for one network alone; SeaCache has a test of its own."""
    kinds = {name for name in CacheMixin.enable_cache.__code__.co_names if name.endswith("CacheConfig")}
    assert kinds | {"PyramidAttentionBroadcastConfig"} == {*KINDS, "TextKVCacheConfig", "SeaCacheConfig"}
    modules = [importlib.import_module(getattr(hooks, kind).__module__) for kind in (*KINDS, *kinds)]
    own = {c for module in modules for c in vars(module).values() if getattr(c, "__module__", "") == module.__name__}
    made = [c for c in own if isinstance(c, type) and issubclass(c, hooks.ModelHook)]
    # Of what a cache adds some hook remembers something.
    assert all(any(c._is_stateful for c in made if c.__module__ == module.__name__) for module in modules)


def test_rows_of_videos_too():
    """SeaCache compares what it sees by a mean over the batch, and is for Wan and Cosmos alone."""
    t = families.wan(families.UniPCMultistepScheduler(flow_shift=3.0, **families._FLOW_SOLVER), False)
    plain = WholeSampler(t.pipe, PROMPTS, STEPS, t.args)
    start = plain.prior(KEYS, ROWS)
    wanted = plain.run(start)
    t.net[0].enable_cache(hooks.SeaCacheConfig(threshold=10.0))
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    assert list(sampler.caches) == ["transformer"]
    end = sampler.run(start)
    assert not torch.equal(end.x, wanted.x) and sampler.flops_per_forward < plain.flops_per_forward
    alone = torch.cat([sampler.run(start[[row]]).x for row in range(3)])
    assert torch.equal(end.x, alone)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_are_what_the_pipeline_gives_each_alone(kind):
    t = cached(kind)
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    assert isinstance(sampler, WholeSampler) and sampler.why.startswith("its transformer caches")
    start = sampler.prior(KEYS, ROWS)
    end = sampler.run(start)
    for row, prompt in enumerate(ROWS.tolist()):
        args = {k: v[[prompt]] if isinstance(v, torch.Tensor) else v for k, v in t.args.items()}
        packed = t.pipe._pack_latents(start.x[[row]], 1, *start.x.shape[1:])
        theirs = t.pipe(latents=packed, num_inference_steps=STEPS, output_type="np", **args).images
        assert (end.x[row] - torch.from_numpy(theirs[0]).movedim(-1, 0)).abs().max() <= 1e-5
    assert torch.equal(sampler.run(start[[1]]).x, end.x[[1]])
    plain = tiny()
    uncached = WholeSampler(plain.pipe, PROMPTS, STEPS, plain.args)
    assert not torch.equal(uncached.run(uncached.prior(KEYS, ROWS)).x, end.x), "this cache left nothing out"


def ledgers(t, size):
    sampler = WholeSampler(t.pipe, PROMPTS, STEPS, t.args)
    tasks = [Task(SEARCHES["random"], row, noise.fold(0, row), STEPS) for row in range(2)]
    found = [result.ledger for result in run_searches(tasks, sampler, Brightness(), size)]
    assert all(ledger.nfe == ledger.network_forwards == STEPS for ledger in found)
    return sum(ledger.flops for ledger in found)


def test_what_is_left_out_is_not_in_the_ledger():
    everything = ledgers(tiny(), 2)
    spent = {kind: ledgers(cached(kind), 2) for kind in KINDS}
    assert max(spent.values()) < 0.95 * everything
    assert ledgers(cached("FirstBlockCacheConfig"), 1) == pytest.approx(spent["FirstBlockCacheConfig"])


def test_windows_are_refused_and_a_call_that_failed_leaves_nothing():
    t = cached("FirstBlockCacheConfig")
    with pytest.raises(NotWindowed, match="its transformer caches what it does"):
        DiffusersSampler(t.pipe, PROMPTS, STEPS, t.args)
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    with pytest.raises(DiffscaleError, match=r"can only be run whole \(its transformer caches .* search over noises"):
        run_searches([Task(SEARCHES["svdd"], 1, 0, 100)], sampler, Brightness())
    start = sampler.prior(KEYS[:1], ROWS[:1])
    wanted = sampler.run(start).x
    own, calls = t.pipe.scheduler.step, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("out of memory")
        return own(*args, **kwargs)

    t.pipe.scheduler.step = failing
    with pytest.raises(RuntimeError, match="out of memory"):
        sampler.run(start)
    t.pipe.scheduler.step = own
    assert torch.equal(sampler.run(start).x, wanted)


def test_a_journal_without_the_cache_is_another_run(tmp_path):
    def run(t):
        args = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in t.args.items()}
        settings = {"search": "random", "verifier": Brightness(), "nfe": 2 * STEPS, "steps": STEPS, "pipe_args": args}
        return search(t.pipe, "a red circle", journal=tmp_path / "journal.sqlite", **settings)

    first = run(cached("PyramidAttentionBroadcastConfig"))
    assert run(cached("PyramidAttentionBroadcastConfig")).best.score == first.best.score
    for other in (tiny(), cached("FirstBlockCacheConfig")):
        with pytest.raises(DiffscaleError, match=r"is of another run.*caches"):
            run(other)


def test_caches_are_described_alike_in_every_process():
    words = {kind: caches(cached(kind).pipe)["transformer"] for kind in KINDS}
    assert len(set(words.values())) == len(KINDS) and not any(" at 0x" in each for each in words.values())
    assert words == {kind: caches(cached(kind).pipe)["transformer"] for kind in KINDS}
    t = tiny()
    hooks.apply_first_block_cache(t.net, hooks.FirstBlockCacheConfig(threshold=0.4))
    assert "transformer" in caches(t.pipe) and caches(tiny().pipe) == {}
