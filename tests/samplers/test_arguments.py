"""What users get wrong in a pipeline's call is one sentence, on the way from any entry point."""

import families
import pytest
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from pipelines import PROMPTS

from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.models.load import plain_call
from diffscale.models.options import LoadOptions


def sampler(pipe, args, steps=4):
    return make_sampler(pipe, PROMPTS, steps=steps, pipe_args=args, loading=LoadOptions())


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("sd15", {"height": 9}, "does not run with .*height.* as given .*divisible by 8.*: change what does not suit"),
        ("sd15", {"guidance_scale": "much"}, "does not run with guidance_scale, .* as given"),
        ("sd15", {"negative_prompt": 3}, "Give negative_prompt as a text, or as a list of texts, not as 3"),
        ("sd15", {"timesteps": [900, 500]}, r"class 'diffusers\.[a-z_.]*\.DDIMScheduler'>.* custom timestep schedules"),
        ("sd_image", {"image": None}, "StableDiffusionImg2ImgPipeline .*: give image too, from Python in pipe_args"),
        ("sd_image", {"strength": 0}, "A strength of 0 leaves .* none of its 4 steps: give a larger strength, or more"),
        ("sd_image", {"strength": 0.1}, "A strength of 0.1 leaves .* none of its 4 steps"),
        ("sd_inpaint", {"strength": 0.1}, "A strength of 0.1 leaves .* none of its 4 steps"),
        ("flux_image", {"strength": 2}, "does not run with .*strength.* as given"),
    ],
)
def test_arguments_that_do_not_suit_are_told(name, change, said):
    tiny, scheduler, _ = families.WINDOWED[name]
    t = tiny(scheduler(), True)
    args = {k: v for k, v in {**t.args, **change}.items() if v is not None}
    with pytest.raises(DiffscaleError, match=said):
        sampler(t.pipe, args)


def test_a_share_of_a_step_may_be_one():
    """Flux rounds the steps that are left up, where Stable Diffusion rounds down."""
    t = families.flux_image(families._flow(), False)
    assert sampler(t.pipe, {**t.args, "strength": 0.1}).steps == 1


def test_what_nothing_was_given_for_keeps_its_own_error(sd, monkeypatch):
    def broken(*args, **kwargs):
        raise ValueError("a fault of its own")

    monkeypatch.setattr(type(sd.pipe), "check_inputs", broken)
    with pytest.raises(ValueError, match=r"a fault of its own"):
        sampler(sd.pipe, {})


def test_steps_and_pipelines_without_a_prompt(sd):
    with pytest.raises(DiffscaleError, match="1 step or more, not -1"):
        sampler(sd.pipe, sd.args, -1)
    net = UNet2DModel(
        sample_size=8,
        block_out_channels=(4, 8),
        norm_num_groups=2,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
    )
    with pytest.raises(DiffscaleError, match=r"DDPMPipeline takes no prompt, .*: use a pipeline that draws"):
        sampler(DDPMPipeline(net, DDPMScheduler()), {})


def test_a_pipeline_of_stages_states_its_steps_elsewhere():
    class Stages:
        def __call__(self, prompt, prior_num_inference_steps=25):
            """Nothing."""

    assert plain_call(Stages()).args == {}
