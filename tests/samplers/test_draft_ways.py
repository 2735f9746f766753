"""Drafts under caches, by siblings and with cheap decoders, against the pipelines and models themselves."""

import math

import pytest
import torch
from diffusers import (
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    hooks,
)
from pipelines import PROMPTS, Brightness, tiny_flux, tiny_sd, tiny_sdxl

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.bench.config import BenchConfig
from diffscale.bench.run import run as bench
from diffscale.engine.driver import run_searches
from diffscale.engine.ledger import price
from diffscale.engine.task import Task
from diffscale.models.drafting import DraftOptions
from diffscale.models.options import LoadOptions
from diffscale.samplers.cached_drafts import STEP_CACHES, CachedDrafts, cache_in_words, cache_of
from diffscale.samplers.caches import caches
from diffscale.samplers.denoiser import DenoiserSampler
from diffscale.samplers.noise_schedules import EDM, LinearFlow
from diffscale.samplers.sibling_drafts import SiblingDrafts
from diffscale.samplers.toy import ToySampler
from diffscale.samplers.whole import WholeSampler, sampler_of
from diffscale.types import Draft

STEPS = 4
KEYS, ROWS = torch.arange(3), torch.tensor([2, 0, 1])
WORDS = {
    "taylorseer": "taylorseer cache_interval=2 disable_cache_before_step=2",
    "magcache": "magcache mag_ratios=1,1,1,1 threshold=0.5 max_skip_steps=2",
    "pyramid_attention_broadcast": "pyramid_attention_broadcast spatial_attention_block_skip_range=2 "
    "spatial_attention_timestep_skip_range=-1,990",
}


def configured(kind, pipe):
    """The same as `WORDS`, as diffusers is told."""
    return {
        "taylorseer": lambda: hooks.TaylorSeerCacheConfig(
            cache_interval=2, disable_cache_before_step=2, taylor_factors_dtype=torch.float32
        ),
        "magcache": lambda: hooks.MagCacheConfig(
            mag_ratios=torch.ones(STEPS), threshold=0.5, max_skip_steps=2, num_inference_steps=STEPS
        ),
        "pyramid_attention_broadcast": lambda: hooks.PyramidAttentionBroadcastConfig(
            spatial_attention_block_skip_range=2,
            spatial_attention_timestep_skip_range=(-1, 990),
            current_timestep_callback=lambda: pipe.current_timestep,
        ),
    }[kind]()


def flux(**more):
    return tiny_flux(FlowMatchEulerDiscreteScheduler(), layers=2, **more)


def sampler_with(t, steps=STEPS, **given):
    options = {name: value for name, value in given.items() if value is not None}
    return make_sampler(
        t.pipe, PROMPTS, steps=steps, pipe_args=t.args, loading=LoadOptions(), drafting=DraftOptions(**options)
    )


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("kind", STEP_CACHES)
def test_a_cached_draft_is_the_pipelines_own_call_under_that_cache(kind, guided):
    t = flux(true_cfg=guided)
    sampler = sampler_with(t, cache=WORDS[kind])
    assert sampler.drafts == ("", "cache") and sampler.draft_steps("cache") == STEPS
    start = sampler.prior(KEYS, ROWS)
    full = sampler.run(start)
    drafter = sampler.drafter(STEPS, "cache")
    end = drafter.run(start)
    images = drafter.decode(end.x)
    assert end.step == STEPS and not torch.equal(end.x, full.x)
    assert caches(t.pipe) == {} and torch.equal(sampler.run(start).x, full.x), "full samples were touched"
    for row in range(3):
        assert torch.allclose(drafter.run(start[[row]]).x, end.x[[row]], atol=2e-5), "rows know of each other"
    t.pipe.set_progress_bar_config(disable=True)
    for row, prompt in enumerate(ROWS.tolist()):
        args = {k: v[[prompt]] if isinstance(v, torch.Tensor) else v for k, v in t.args.items()}
        t.net.enable_cache(configured(kind, t.pipe))
        theirs = t.pipe(latents=start.x[[row]], num_inference_steps=STEPS, output_type="np", **args).images
        t.net.disable_cache()
        assert (images[row] - torch.from_numpy(theirs[0]).movedim(-1, 0)).abs().max() <= 1e-5


def test_its_price_is_its_measured_share_and_the_ledger_books_what_ran():
    t = flux()
    for words in WORDS.values():
        sampler = sampler_with(t, cache=words)
        drafter = sampler.drafter(STEPS, "cache")
        share, full, evaluation = drafter.nfe, sampler.steps, sampler.flops_per_forward * sampler.forwards_per_nfe
        assert 0.3 * full < drafter.nfe < 0.95 * full and drafter.steps == STEPS and drafter.forwards == 0
        assert drafter.nfe == pytest.approx(STEPS * drafter.flops_per_forward / evaluation)
        assert sampler_with(flux(), cache=words).drafter(STEPS, "cache").nfe == drafter.nfe

        def search(env, share=share):
            assert env.draft_steps("cache") == STEPS and env.draft_nfe(STEPS, "cache") == share
            yield from env.draft(env.prior(5), STEPS, "cache")
            yield from env.evaluate(env.prior(1))

        for size in (1, 5):
            (result,) = run_searches([Task(search, 0, 1, 100)], sampler, Brightness(), size)
            ledger = result.ledger
            drafts = Draft(sampler.prior(torch.arange(5), torch.zeros(5, dtype=torch.int64)), STEPS, "cache")
            assert ledger.nfe == price(drafts, sampler) + STEPS
            assert ledger.network_forwards == ledger.scheduler_steps == 6 * STEPS
            assert ledger.flops == pytest.approx((5 * drafter.nfe + STEPS) * evaluation)


def test_a_draft_in_fewer_steps_can_run_under_a_cache_too():
    t = flux()
    sampler = sampler_with(t, steps=12, cache=hooks.MagCacheConfig(mag_ratios=torch.ones(12), threshold=0.5))
    # The ratios are spread over the steps of the draft, which begins and ends as the pipeline's does.
    drafter, start = sampler.drafter(6, "cache"), sampler.prior(KEYS[:1], ROWS[:1])
    t.net.enable_cache(hooks.MagCacheConfig(mag_ratios=torch.ones(6), threshold=0.5, num_inference_steps=6))
    args = {k: v[[2]] if isinstance(v, torch.Tensor) else v for k, v in t.args.items()}
    theirs = t.pipe(latents=start.x, num_inference_steps=6, output_type="latent", **args).images
    t.net.disable_cache()
    assert drafter.steps == 6 and torch.allclose(drafter.run(start).x, theirs, atol=2e-5)


def test_pipelines_that_are_run_whole_are_drafted_under_caches_too():
    t = flux()
    sampler = WholeSampler(t.pipe, PROMPTS, STEPS, t.args)
    DraftOptions(cache=WORDS["magcache"]).attach(sampler, None)
    start = sampler.prior(KEYS, ROWS)
    drafter = sampler.drafter(STEPS, "cache")
    windowed = sampler_with(t, cache=WORDS["magcache"]).drafter(STEPS, "cache")
    packed = t.pipe._pack_latents(start.x, 3, *start.x.shape[1:])
    wanted = windowed.decode(windowed.run(sampler_with(t).prior(KEYS, ROWS).__class__(packed, 0, KEYS, ROWS)).x)
    assert torch.allclose(drafter.decode(drafter.run(start).x), wanted, atol=2e-5)
    assert drafter.nfe < STEPS and caches(t.pipe) == {}


def test_a_cache_that_fails_to_begin_leaves_nothing(monkeypatch):
    t = flux()
    sampler = sampler_with(t, cache=WORDS["magcache"])
    start = sampler.prior(KEYS, ROWS)
    wanted = sampler.run(start).x
    own, calls = hooks.mag_cache._apply_mag_cache_block_hook, []

    def failing(*args, **kwargs):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("Model class Block not registered.")
        return own(*args, **kwargs)

    monkeypatch.setattr(hooks.mag_cache, "_apply_mag_cache_block_hook", failing)
    with pytest.raises(DiffscaleError, match=r"does not take this cache .*not registered"):
        sampler.drafter(STEPS, "cache")
    assert caches(t.pipe) == {} and not t.net.is_cache_enabled and torch.equal(sampler.run(start).x, wanted)


def test_words_and_configurations_are_one_and_the_same():
    for kind, words in WORDS.items():
        assert cache_in_words(cache_of(words)) == cache_in_words(configured(kind, flux().pipe))
        assert " at 0x" not in cache_in_words(cache_of(words))
    assert cache_of("taylorseer taylor_factors_dtype=bfloat16").taylor_factors_dtype == torch.bfloat16
    assert cache_of("magcache mag_ratios=flux").num_inference_steps == len(hooks.mag_cache.FLUX_MAG_RATIOS)


def test_lite_mode_leaves_out_whole_blocks_and_knows_no_other_rows():
    sampler = sampler_with(flux(), steps=8, cache="taylorseer cache_interval=3 use_lite_mode=true")
    start, drafter = sampler.prior(KEYS, ROWS), sampler.drafter(8, "cache")
    end = drafter.run(start).x
    assert drafter.nfe < 0.8 * 8 and torch.allclose(drafter.run(start[[1]]).x, end[[1]], atol=2e-5)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("firstblock", "Unknown cache 'firstblock'"),
        ("taylorseer interval=2", "Unknown argument of cache taylorseer 'interval', did you mean 'cache_interval'"),
        ("taylorseer cache_interval=0", "takes cache_interval from 1 on, not 0"),
        ("taylorseer cache_interval=x", "takes cache_interval as int, but got 'x'"),
        ("taylorseer taylor_factors_dtype=int8", "taylor_factors_dtype as .*but got 'int8'"),
        ("magcache", "cannot be made so .*`mag_ratios` must be provided"),
        ("magcache mag_ratios=1,a", "mag_ratios as flux, or as numbers such as 1,1.05,0.98, not '1,a'"),
        ("magcache mag_ratios=1 num_inference_steps=3", "Unknown argument of cache magcache 'num_inference_steps'"),
        (hooks.FirstBlockCacheConfig(0.1), "decides by the step alone .*not FirstBlockCacheConfig"),
        (hooks.MagCacheConfig(calibrate=True), "calibrates leaves nothing out"),
        (5, "decides by the step alone .*not int"),
    ],
)
def test_what_is_no_cache_of_drafts_is_told_in_a_sentence(given, said):
    with pytest.raises(DiffscaleError, match=said):
        diffscale.search("no-such-model", "a star", draft_cache=given, dtype="float32", loading=LoadOptions())


def test_what_takes_no_cache_says_so():
    t = tiny_sd(DDIMScheduler())
    with pytest.raises(DiffscaleError, match="UNet2DConditionModel takes no cache of diffusers"):
        sampler_with(t, cache=WORDS["taylorseer"])
    with pytest.raises(DiffscaleError, match="needs a diffusers pipeline"):
        CachedDrafts(ToySampler(), cache_of(WORDS["taylorseer"]))
    with pytest.raises(DiffscaleError, match=r"leaves nothing out of 3 steps of FluxTransformer2DModel"):
        sampler_with(flux(), steps=3, cache="taylorseer").drafter(3, "cache")
    t = flux()
    t.net.enable_cache(configured("magcache", t.pipe))
    with pytest.raises(DiffscaleError, match="has a cache already"):
        sampler_with(t, cache=WORDS["taylorseer"])
    with pytest.raises(DiffscaleError, match="A compiled network takes no draft cache"):
        diffscale.search("no-such-model", "a star", draft_cache="taylorseer", dtype="float32",
                         loading=LoadOptions(compile=True))  # fmt: skip
    with pytest.raises(DiffscaleError, match="A Sampler is used as it was made"):
        diffscale.search(ToySampler(), "a point", draft_cache=WORDS["taylorseer"])


def test_a_siblings_draft_is_its_own_sample_of_the_same_noise():
    big, small = flux(), tiny_flux(FlowMatchEulerDiscreteScheduler())
    sampler = sampler_with(big, model=small.pipe)
    alone = sampler_of(small.pipe, PROMPTS, 28, big.args)  # its call, and as many steps as it takes by default
    start = sampler.prior(KEYS, ROWS)
    assert sampler.drafts == ("", "model") and sampler.draft_steps("model") == alone.steps
    for steps in (alone.steps, 3):
        drafter = sampler.drafter(steps, "model")
        own = sampler_of(small.pipe, PROMPTS, steps, big.args)
        done, wanted = drafter.run(start), own.run(start)
        assert torch.equal(done.x, wanted.x) and torch.equal(drafter.decode(done.x), own.decode(wanted.x))
        assert done.step == STEPS and drafter.steps == steps
        assert drafter.nfe == pytest.approx(steps * alone.flops_per_forward / sampler.flops_per_forward)
        assert drafter.flops_per_forward == alone.flops_per_forward
    assert 0.3 * 3 < sampler.drafter(3, "model").nfe < 0.8 * 3


def test_a_smaller_sit_drafts_for_a_larger_one_by_name():
    settings = {"verifier": Brightness(), "nfe": 24, "steps": 4, "pipe_args": {"solver": "euler"}, "dtype": "float32"}
    (big, small) = (
        make_sampler(f"shapes-sit-{size}", ["0"], steps=4, pipe_args=settings["pipe_args"], loading=LoadOptions())
        for size in "ls"
    )
    search = "draft via=model steps=4 n=8 finals=2"
    result = diffscale.search("shapes-sit-l", "0", search=search, draft_model="shapes-sit-s", **settings)
    share = small.flops_per_forward * small.forwards_per_nfe / (big.flops_per_forward * big.forwards_per_nfe)
    assert 0.01 < share < 0.5 and result.ledger.nfe == math.ceil(8 * 4 * share) + 2 * 4
    flops = 8 * 4 * small.flops_per_forward * small.forwards_per_nfe + 8 * big.flops_per_forward * big.forwards_per_nfe
    assert result.ledger.flops == pytest.approx(flops)


def test_its_noise_is_scaled_to_its_own_prior():
    """Of a variance exploding model and a flow, and of two schedulers of one pipeline."""

    def network(x, t):
        return x * 0.5

    def made(schedule, prediction, prompts, steps):
        return DenoiserSampler(network, schedule, prediction, (2, 4, 4), steps, prompts)

    sampler = made(EDM(), "data", ["a"], 6)
    way = SiblingDrafts(sampler, lambda prompts: made(LinearFlow(), "velocity", prompts, 3), "a flow")
    keys, rows = torch.arange(2), torch.zeros(2, dtype=torch.int64)
    own = made(LinearFlow(), "velocity", ["a"], 3)
    sampler.flops_per_forward = 1.0  # a network that multiplies no matrices is not counted
    done = way.drafter(sampler, 3).run(sampler.prior(keys, rows))
    assert torch.allclose(done.x, own.run(own.prior(keys, rows)).x, atol=1e-6) and done.step == sampler.steps
    big, small = tiny_sd(EulerDiscreteScheduler()), tiny_sd(DDIMScheduler())
    sampler, own = sampler_with(big, model=small.pipe), sampler_of(small.pipe, PROMPTS, 3, big.args)
    assert sampler.noise_scale > 5 and own.noise_scale == 1
    done = sampler.drafter(3, "model").run(sampler.prior(KEYS, ROWS))
    assert torch.allclose(done.x, own.run(own.prior(KEYS, ROWS)).x, atol=1e-4)


def test_a_sibling_follows_the_prompts_of_its_model():
    sampler = ToySampler(("a point",), 8)
    sampler.ways = {"model": SiblingDrafts(sampler, lambda prompts: ToySampler(prompts, 4), "toy")}
    assert sampler.drafter(4, "model").cheap.prompts == ["a point"]
    sampler.prompts = ["another point"]
    assert sampler.drafter(4, "model").cheap.prompts == ["another point"]


def test_models_that_are_no_siblings_are_refused():
    other = flux()
    other.args |= {"height": 32}
    with pytest.raises(DiffscaleError, match=r"starts from noise shaped \[2\], and the model from \[128, 4\]"):
        SiblingDrafts(sampler_with(other), ToySampler, "toy")
    with pytest.raises(DiffscaleError, match="other classes"):
        SiblingDrafts(ToySampler(["a point"]), lambda prompts: ToySampler(["none"]), "toy")
    with pytest.raises(DiffscaleError, match="Unknown argument of StableDiffusionPipeline"):
        sampler_with(flux(), model=tiny_sd(DDIMScheduler()).pipe)


DECODED = {
    "sd": (lambda: tiny_sd(DDIMScheduler()), 4),
    "sdxl": (lambda: tiny_sdxl(EulerDiscreteScheduler()), 4),
    "flux": (flux, 1),
}


def tiny_decoder(channels):
    torch.manual_seed(1)
    layers = {"encoder_block_out_channels": (4,), "decoder_block_out_channels": (4,)}
    blocks = {"num_encoder_blocks": (1,), "num_decoder_blocks": (1,)}
    return AutoencoderTiny(latent_channels=channels, **layers, **blocks).eval()


@pytest.mark.parametrize("name", DECODED)
def test_drafts_are_decoded_by_the_cheap_decoder_and_samples_are_not(name):
    make, channels = DECODED[name]
    t, decoder = make(), tiny_decoder(channels)
    sampler = sampler_with(t, decoder=decoder)
    start = sampler.prior(KEYS, ROWS)
    drafter = sampler.drafter(2)
    done = drafter.run(start)
    theirs = make().pipe
    theirs.vae = decoder
    wanted = sampler_of(theirs, PROMPTS, 2, t.args).decode(done.x)
    plain = sampler_with(t)
    assert torch.equal(drafter.decode(done.x), wanted)
    assert not torch.allclose(wanted, plain.decode(done.x), atol=0.05)
    assert torch.equal(sampler.decode(done.x), plain.decode(done.x)) and t.pipe.vae is not decoder


def test_a_decoder_is_loaded_beside_the_model_and_serves_all_ways(tmp_path):
    t, decoder = flux(), tiny_decoder(1)
    decoder.save_pretrained(tmp_path / "taesd")
    sampler = sampler_with(t, decoder=str(tmp_path / "taesd"), cache=WORDS["magcache"], model=flux().pipe)
    done = sampler.drafter(STEPS, "cache").run(sampler.prior(KEYS, ROWS))
    wanted = sampler_with(t, decoder=decoder).drafter(2).decode(done.x)
    for via in sampler.drafts:
        assert torch.equal(sampler.drafter(STEPS, via).decode(done.x), wanted)


def test_what_decodes_nothing_is_told_in_a_sentence(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DiffscaleError, match=r"The draft decoder '.*empty' could not be loaded"):
        sampler_with(flux(), decoder=str(tmp_path / "empty"))
    with pytest.raises(DiffscaleError, match="does not decode the latents of this model"):
        sampler_with(flux(), decoder=tiny_decoder(7))
    with pytest.raises(DiffscaleError, match="decodes nothing"):
        sampler_with(flux(), decoder=torch.nn.Linear(2, 2))
    whole = WholeSampler(flux().pipe, PROMPTS, STEPS, flux().args)
    for sampler in (whole, ToySampler()):
        with pytest.raises(DiffscaleError, match="takes the place of the vae"):
            DraftOptions(decoder=tiny_decoder(1)).attach(sampler, None)


def run(t, path, **given):
    args = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in t.args.items()}
    settings = {"verifier": Brightness(), "nfe": 40, "steps": STEPS, "pipe_args": args, "journal": path}
    return diffscale.search(t.pipe, "a red circle", search="draft via=cache share=0.3", **settings, **given)


def test_a_search_by_cached_drafts_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    words = WORDS["magcache"]
    whole = run(flux(), tmp_path / "whole", draft_cache=words, batch_size=3)
    assert whole.ledger.nfe <= 40 and len(whole.best_candidates) == 1
    t, own, steps = flux(), FlowMatchEulerDiscreteScheduler.step, []

    def failing(*args, **kwargs):
        steps.append(1)
        if len(steps) == 30:
            raise KeyboardInterrupt
        return own(*args, **kwargs)

    monkeypatch.setattr(FlowMatchEulerDiscreteScheduler, "step", failing)
    with pytest.raises(KeyboardInterrupt):
        run(t, tmp_path / "killed", draft_cache=words, batch_size=1)
    assert caches(t.pipe) == {}
    monkeypatch.undo()
    resumed = run(t, tmp_path / "killed", draft_cache=configured("magcache", t.pipe))
    assert resumed.best.key == whole.best.key and resumed.best.score == pytest.approx(whole.best.score)
    assert resumed.ledger.nfe == whole.ledger.nfe and resumed.ledger.flops == pytest.approx(whole.ledger.flops)
    with pytest.raises(DiffscaleError, match=r"is of another run.*draft_cache"):
        run(flux(), tmp_path / "killed", draft_cache=WORDS["taylorseer"])


def test_searches_by_a_drop_in_draft_so_too():
    t = flux()
    args = {name: value[:1] if isinstance(value, torch.Tensor) else value for name, value in t.args.items()}
    pipe = diffscale.Searched(
        t.pipe, search="draft via=cache share=0.3", verifier=Brightness(), nfe=40, draft_cache=WORDS["magcache"]
    )
    pipe(**args, prompt="a red circle", num_inference_steps=STEPS, generator=torch.manual_seed(0))
    assert pipe.results[0].best.score == pytest.approx(run(t, None, draft_cache=WORDS["magcache"]).best.score)


def test_a_bench_drafts_so_too(tmp_path):
    cache = "magcache mag_ratios=1 threshold=1 retention_ratio=0 max_skip_steps=1"
    settings = {"search": ["draft via=cache n=3 finals=1"], "budget": [20], "steps": 3, "dtype": "float32"}
    (sample,) = bench(BenchConfig(**settings, draft_cache=cache), ["a red circle"], tmp_path)
    assert sample["network_forwards"] == (3 + 1) * 3 and 3 + 3 < sample["nfe"] < 3 * 3 + 3
    with pytest.raises(DiffscaleError, match=r"is of another run.*draft_cache"):
        bench(BenchConfig(**settings), ["a red circle"], tmp_path)


def test_a_search_without_them_names_those_there_are():
    t = flux()
    with pytest.raises(DiffscaleError, match="Unknown way of drafting 'cache'"):
        run(t, None)
