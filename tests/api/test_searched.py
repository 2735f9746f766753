"""`Searched` in the place of a pipeline, against `diffscale.search` and the pipeline's own call."""

import copy
import logging

import families
import numpy as np
import PIL.Image
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    UniPCMultistepScheduler,
)
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from diffusers.pipelines.flux import FluxPipelineOutput
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput
from diffusers.pipelines.stable_diffusion_xl import StableDiffusionXLPipelineOutput
from diffusers.pipelines.wan.pipeline_output import WanPipelineOutput
from pipelines import PROMPTS, Brightness, tiny_flux, tiny_sd, tiny_sdxl, with_text
from tiny_classes import tiny_dit

import diffscale
from diffscale._util.errors import BudgetTooSmall, DiffscaleError
from diffscale.api.searched import Searched, joined
from diffscale.samplers.calls import pictures
from diffscale.samplers.toy import ToySampler

STEPS = 3


def wan():
    return families.wan(
        UniPCMultistepScheduler(flow_shift=3.0, use_flow_sigmas=True, prediction_type="flow_prediction"), True
    )


TINY = {
    "sd": (lambda: tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1)), StableDiffusionPipelineOutput, 1),
    "sdxl": (lambda: tiny_sdxl(EulerDiscreteScheduler()), StableDiffusionXLPipelineOutput, 1),
    "flux": (lambda: tiny_flux(FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)), FluxPipelineOutput, 1),
    "wan": (wan, WanPipelineOutput, 5),
}


def made(name, **options):
    """A tiny pipeline, searched; its arguments for one prompt; and its output class."""
    tiny, output_class, _ = TINY[name]
    t = tiny()
    t.pipe.set_progress_bar_config(disable=True)
    args = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in t.args.items()}
    options = {"search": "random", "verifier": Brightness(), "nfe": 6 * STEPS, **options}
    return Searched(t.pipe, **options), args, output_class


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def redness(picture):
    return float(np.asarray(picture.convert("RGB"))[..., 0].mean())


def values_of(output):
    return next(iter(output.values()))


@pytest.mark.parametrize("search", ["random", "zero_order n=2", "svdd b=3"])
@pytest.mark.parametrize("name", TINY)
def test_gives_the_same_best_as_search_in_the_pipelines_own_class(name, search):
    searched, args, output_class = made(name, search=search)
    output = searched(prompt="a cat", num_inference_steps=STEPS, generator=seeded(7), **args)
    wanted = diffscale.search(
        searched.pipe, "a cat", search=search, verifier=Brightness(), nfe=6 * STEPS, seed=7, steps=STEPS, pipe_args=args
    )
    assert type(output) is output_class
    (own,) = values_of(output)
    frames = pictures([own])
    found = torch.cat(list(frames[0]), -1) if frames.ndim == 5 else frames[0]
    assert (found - wanted.best.image).abs().max() < 1.01 / 255
    assert searched.results[0].best.key == wanted.best.key and searched.results[0].best.score == wanted.best.score
    assert searched.seeds == [7]


@pytest.mark.parametrize("name", TINY)
def test_many_are_the_best_ones_best_first(name):
    searched, args, _ = made(name)
    count = {"num_videos_per_prompt" if name == "wan" else "num_images_per_prompt": 4}
    output = searched("a cat", num_inference_steps=STEPS, generator=seeded(0), output_type="pt", **count, **args)
    every = diffscale.search(
        searched.pipe, "a cat", verifier=Brightness(), nfe=6 * STEPS, steps=STEPS, pipe_args=args
    ).pool[:, 0]
    images = pictures(values_of(output))
    assert len(images) == 4
    red = images[..., 0, :, :].flatten(1).mean(1).double()
    torch.testing.assert_close(red, every.sort(descending=True).values[:4], atol=1e-5, rtol=0)


@pytest.mark.parametrize("output_type", ["pil", "np", "pt", "latent"])
@pytest.mark.parametrize("name", TINY)
def test_every_output_type_is_what_the_pipelines_own_call_gives(name, output_type):
    """A search of one candidate, whose noise is given to the pipeline itself."""
    searched, args, _ = made(name, nfe=STEPS)
    asked = {"num_inference_steps": STEPS, "output_type": output_type, "return_dict": False, **args}
    own, *rest = searched("a cat", generator=seeded(3), **asked)
    noise = searched.results[0].best.noise[None]
    if name == "sdxl":  # which scales the latents that it is given
        searched.scheduler.set_timesteps(STEPS)
        noise = noise / searched.scheduler.init_noise_sigma
    wanted, *wanted_rest = searched.pipe(latents=noise, **asked)
    assert rest == wanted_rest and type(own) is type(wanted)
    if isinstance(own, list):
        own, wanted = (np.asarray(np.stack([np.asarray(frame) for frame in np.ravel(x)]), float) for x in (own, wanted))
        assert np.abs(own - wanted).max() <= 1
        return
    assert own.shape == wanted.shape and own.dtype == wanted.dtype
    np.testing.assert_allclose(np.asarray(own), np.asarray(wanted), atol=1e-4)


def test_a_list_of_prompts_is_searched_in_lock_step_and_each_as_if_alone(rows_of):
    t = TINY["sd"][0]()
    t.pipe.set_progress_bar_config(disable=True)
    with_text(t.pipe)
    searched = Searched(t.pipe, verifier=Brightness(), nfe=4 * STEPS, batch_size=12)
    rows = rows_of(t.net)
    asked = {"num_inference_steps": STEPS, "height": 8, "width": 8, "num_images_per_prompt": 2}
    together = searched(PROMPTS, generator=seeded(5), negative_prompt="ugly", **asked)
    # With guidance two rows a candidate, four candidates a prompt.
    assert max(rows) == 2 * 4 * len(PROMPTS)
    assert len(together.images) == 6 and together.nsfw_content_detected is None
    assert searched.seeds == [5, 5, 5] and [each.prompt for each in searched.results] == PROMPTS
    for i, prompt in enumerate(PROMPTS):
        alone = searched([prompt], generator=[seeded(5)], negative_prompt=["ugly"], **asked)
        for a, b in zip(alone.images, together.images[2 * i : 2 * i + 2], strict=True):
            assert np.abs(np.asarray(a, float) - np.asarray(b, float)).max() <= 1
        assert redness(alone.images[0]) >= redness(alone.images[1])


def test_the_same_prompt_twice_is_searched_from_other_noises_unless_generators_say_otherwise():
    t = TINY["sd"][0]()
    t.pipe.set_progress_bar_config(disable=True)
    searched = Searched(t.pipe, verifier=Brightness(), nfe=2 * STEPS)
    args = {name: value[:1].repeat(2, 1, 1) if name.endswith("embeds") else value for name, value in t.args.items()}
    keys = []
    for generator in (seeded(1), [seeded(1), seeded(1)], [seeded(1), seeded(2)]):
        searched(["a cat", "a cat"], num_inference_steps=STEPS, generator=generator, **args)
        keys.append([each.baseline.key for each in searched.results])
    shared, equal, apart = keys
    assert shared[0] != shared[1] and equal[0] == equal[1] == shared[0] == apart[0] != apart[1] != shared[1]


def test_without_a_generator_a_fresh_seed_is_logged_and_gives_the_same_again(caplog):
    searched, args, _ = made("sd")
    with caplog.at_level(logging.WARNING):
        first = searched("a cat", num_inference_steps=STEPS, output_type="np", **args).images
    (seed,) = searched.seeds
    assert f"the seed is {seed}" in caplog.text
    again = searched("a cat", num_inference_steps=STEPS, output_type="np", generator=seeded(seed), **args).images
    assert np.array_equal(first, again)
    searched("a cat", num_inference_steps=STEPS, **args)
    assert searched.seeds != [seed]


def test_arguments_come_in_the_pipelines_own_order_and_none_means_not_given():
    t = TINY["sd"][0]()
    t.pipe.set_progress_bar_config(disable=True)
    with_text(t.pipe)
    searched = Searched(t.pipe, verifier=Brightness(), nfe=2 * STEPS)
    by_name = {"height": 8, "width": 16, "num_inference_steps": STEPS}
    a = searched("a cat", 8, 16, STEPS, generator=seeded(0), latents=None, callback_on_step_end=None).images[0]
    b = searched("a cat", generator=seeded(0), num_images_per_prompt=None, **by_name).images[0]
    assert isinstance(a, PIL.Image.Image) and a.size == (16, 8) and np.array_equal(np.asarray(a), np.asarray(b))


def test_embeddings_alone_do_for_a_verifier_that_reads_no_prompts():
    searched, args, _ = made("flux")
    with pytest.raises(DiffscaleError, match="reads prompts: give `prompt` too"):
        searched(num_inference_steps=STEPS, **args)

    class Blind(Brightness):
        needs_prompts = False

    blind, args, _ = made("flux", verifier=Blind())
    assert len(blind(num_inference_steps=STEPS, generator=seeded(0), **args).images) == 1


REFUSALS = [
    ({"latents": torch.zeros(1, 4, 8, 8)}, "Leave latents out of the call: the search draws the latents itself"),
    ({"callback_on_step_end": lambda *_: {}}, "Leave callback_on_step_end out of the call"),
    ({"callback": lambda *_: None}, "Leave callback out of the call"),
    ({"generator": [seeded(0)] * 2}, "Give one generator, or one for each of the 1 prompts, not 2"),
    ({"generator": 3}, "Give generator as a torch.Generator or a list of them, not as 3"),
    ({"num_images_per_prompt": 0}, "1 or more, not 0"),
    ({"num_images_per_prompt": 7}, "7 samples of a prompt cost 21 NFE, and nfe is 18: ask for fewer"),
    ({"output_type": "jpg"}, "Give output_type as one of pil, np, pt, latent, not 'jpg'"),
    ({"num_inference_steps": "many"}, "num_inference_steps as a whole number"),
    ({"num_inference_steps": 0}, "takes 1 step or more, not 0"),
    ({"prompt": None, "prompt_embeds": None}, "Give a prompt, or a list of prompts"),
    ({"prompt": []}, "Give prompt as a text, or as a list of texts"),
    ({"prompt": ["a cat", "a dog"]}, "Give one row of prompt_embeds for each of the 2 prompts, not 1"),
    ({"height": 9}, r"does not run with .*height.* as given"),
    ({"timesteps": [900, 500]}, "custom timestep schedules"),
    ({"colour": "red"}, "Unknown argument of StableDiffusionPipeline 'colour'"),
]


@pytest.mark.parametrize(("wrong", "sentence"), REFUSALS, ids=[next(iter(wrong)) for wrong, _ in REFUSALS])
def test_what_a_search_cannot_heed_is_refused_in_a_sentence(wrong, sentence):
    searched, args, _ = made("sd")
    with pytest.raises(DiffscaleError, match=sentence):
        searched(**{"prompt": "a cat", "num_inference_steps": STEPS, "generator": seeded(0), **args, **wrong})


def test_a_call_that_the_pipelines_signature_does_not_have_is_refused():
    searched, args, _ = made("flux")
    with pytest.raises(DiffscaleError, match="argument of FluxPipeline 'heigth', did you mean 'height'"):
        searched("a cat", heigth=8, **args)
    with pytest.raises(DiffscaleError, match="Unknown argument of FluxPipeline 'colour'"):
        searched("a cat", colour="red", **args)
    with pytest.raises(DiffscaleError, match="multiple values for argument 'prompt'"):
        searched("a cat", prompt="a dog", **args)


WRONG_NUMBERS = [
    *[("nfe", value) for value in (0, -5, "80", 100.5, True, None)],
    *[("batch_size", value) for value in (0, "4", 2.0)],
]


@pytest.mark.parametrize(("name", "value"), WRONG_NUMBERS)
@pytest.mark.parametrize("call", [Searched, lambda pipe, **more: diffscale.search(pipe, "a cat", **more)])
def test_what_is_no_whole_number_is_told_before_anything_is_loaded(call, name, value):
    with pytest.raises(DiffscaleError, match=f"Give {name} as a whole number, 1 or more, not {value!r}"):
        call("no/such/model", **{name: value})


@pytest.mark.parametrize(
    ("name", "value"), [("seed", "a"), ("seed", 1.5), ("gallery", -1), ("keep_best", 0), ("steps", 2.5), ("steps", 0)]
)
def test_so_are_the_other_numbers_of_a_search(name, value):
    with pytest.raises(DiffscaleError, match=f"Give {name} as a whole number.*, not {value!r}"):
        diffscale.search("no/such/model", "a cat", **{name: value})


def test_numbers_of_numpy_are_numbers(tmp_path):
    numbers = {"nfe": np.int64(4), "seed": np.int32(3), "journal": tmp_path / "journal"}
    found = diffscale.search(ToySampler(steps=2), "a point", verifier=Brightness(), **numbers)
    assert found.ledger.nfe == 4


def test_a_budget_below_one_sample_and_wrong_names_are_refused():
    searched, args, _ = made("sd", nfe=STEPS - 1)
    with pytest.raises(BudgetTooSmall, match="does not pay for one sample"):
        searched("a cat", num_inference_steps=STEPS, **args)
    with pytest.raises(DiffscaleError, match="randm"):
        Searched(searched.pipe, search="randm")
    with pytest.raises(DiffscaleError, match="loaded already: set dtype on it"):
        Searched(searched.pipe, dtype="bfloat16")


def test_more_samples_than_a_budget_pays_for_are_refused_before_anything_is_spent(rows_of):
    searched, args, _ = made("sd")
    rows = rows_of(searched.unet)
    searched("a cat", num_inference_steps=STEPS, num_images_per_prompt=1, generator=seeded(0), **args)
    probed = len(rows)
    with pytest.raises(DiffscaleError, match="7 samples of a prompt cost 21 NFE, and nfe is 18: ask for fewer"):
        searched("a cat", num_inference_steps=STEPS, num_images_per_prompt=7, generator=seeded(0), **args)
    assert sum(rows[probed:]) <= 2 * STEPS  # the plain call by which every sampler is tried
    searched, args, _ = made("sd", search="zero_order n=2")
    with pytest.raises(DiffscaleError, match="finished 6 usable samples and 7 were asked for: ask for fewer"):
        searched("a cat", num_inference_steps=STEPS, num_images_per_prompt=7, generator=seeded(0), **args)


def test_custom_sigmas_reach_the_pipeline():
    searched, args, _ = made("flux", nfe=4)
    sigmas = [1.0, 0.7, 0.4, 0.1]
    asked = {"sigmas": sigmas, "output_type": "np", "return_dict": False, **args}
    (own,) = searched("a cat", generator=seeded(3), **asked)
    assert searched.results[0].ledger.nfe == 4
    (wanted,) = searched.pipe(latents=searched.results[0].best.noise[None], **asked)
    np.testing.assert_allclose(own, wanted, atol=1e-4)


def test_a_pipeline_that_only_runs_whole_gives_its_own_output_too(monkeypatch):
    # Else the pipeline encodes its picture with a draw of its own.
    monkeypatch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode())
    tiny, scheduler, _ = families.WHOLE["sd_blended"]
    t = tiny(scheduler(), True)
    t.pipe.set_progress_bar_config(disable=True)
    args = {key: value[:1] if isinstance(value, torch.Tensor) else value for key, value in t.args.items()}
    searched = Searched(t.pipe, verifier=Brightness(), nfe=4 * STEPS)
    output = searched("a cat", num_inference_steps=STEPS, generator=seeded(0), num_images_per_prompt=2, **args)
    assert isinstance(output, StableDiffusionPipelineOutput) and len(output.images) == 2
    found = pictures([output.images[0]])[0]
    assert (found - searched.results[0].best.image).abs().max() < 1.01 / 255


def test_all_else_is_the_pipelines():
    searched, args, _ = made("sd")
    pipe = searched.pipe
    assert searched.unet is pipe.unet and searched.device == pipe.device and searched.components == pipe.components
    assert searched.config == pipe.config and searched.to("cpu") is searched and searched.to(torch.float32) is searched
    searched.scheduler = EulerDiscreteScheduler()
    assert pipe.scheduler is searched.scheduler and "scheduler" not in vars(searched)
    with pytest.raises(AttributeError, match="no attribute 'colour'"):
        searched.colour  # noqa: B018
    assert copy.copy(searched).pipe is pipe
    assert diffscale.Searched is Searched and "brightness" in repr(searched)
    assert len(searched("a cat", num_inference_steps=STEPS, **args).images) == 1


def test_a_shipped_model_by_its_name():
    searched = Searched("shapes-flux", verifier="clip", nfe=16, device="cpu")
    searched.set_progress_bar_config(disable=True)
    output = searched("a red circle", num_inference_steps=4, num_images_per_prompt=2, generator=seeded(0))
    wanted = diffscale.search("shapes-flux", "a red circle", nfe=16, steps=4, device="cpu", keep_best=2)
    for picture, candidate in zip(output.images, wanted.best_candidates, strict=True):
        assert (pictures([picture])[0] - candidate.image).abs().max() < 1.01 / 255


def test_what_is_no_pipeline_or_takes_no_prompt_is_refused():
    with pytest.raises(DiffscaleError, match=r"is class-conditional .*: search it by diffscale\.search"):
        Searched("shapes-sit-s", device="cpu")
    with pytest.raises(DiffscaleError, match=r"ToySampler is no diffusers pipeline"):
        Searched(ToySampler())
    with pytest.raises(DiffscaleError, match=r"class-conditional .* diffscale\.search"):
        Searched(tiny_dit(DDIMScheduler()))


@pytest.mark.parametrize("given", [None, torch.nn.Sequential(), lambda x, t: x])
@pytest.mark.parametrize("call", [Searched, lambda given, **more: diffscale.search(given, "a cat", **more)])
def test_what_is_no_pipeline_is_told_how_it_becomes_a_sampler(call, given):
    said = rf"{type(given).__name__} is no diffusers pipeline: .*DenoiserSampler.*own_network\.md"
    with pytest.raises(DiffscaleError, match=said):
        call(given, verifier=Brightness())


def test_outputs_are_joined_by_what_they_are():
    parts = [
        StableDiffusionPipelineOutput(images=["a"], nsfw_content_detected=[True]),
        StableDiffusionPipelineOutput(images=["b"], nsfw_content_detected=[False]),
    ]
    whole = joined(parts)
    assert whole.images == ["a", "b"] and whole.nsfw_content_detected == [True, False]
    assert joined([(torch.ones(1, 2), None)] * 2)[0].shape == (2, 2)
    assert joined([(np.ones((1, 2)), None)] * 2)[1] is None


def test_the_prompts_of_a_call_share_their_budgets():
    pipe, args, _ = made("flux", allocation="threshold minimum=2 chance=0")
    args = {name: value for name, value in args.items() if not isinstance(value, torch.Tensor)}
    args |= {
        name: value.repeat(2, *[1] * (value.ndim - 1))
        for name, value in made("flux")[1].items()
        if hasattr(value, "repeat")
    }
    given = {"prompt": PROMPTS[:2], "generator": seeded(0), "num_inference_steps": STEPS, "num_images_per_prompt": 2}
    assert len(pipe(**args | given).images) == 4
    spent = [each.ledger.nfe for each in pipe.results]
    assert sum(spent) <= 12 * STEPS and min(spent) >= 2 * STEPS
    with pytest.raises(DiffscaleError, match="3 samples of a prompt are asked for, and the allocation's minimum is 2"):
        pipe(**args | given | {"num_images_per_prompt": 3})
    with pytest.raises(DiffscaleError, match="cannot be given more on its way"):
        made("flux", allocation="threshold", search="svdd")
