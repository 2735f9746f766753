"""Safety checkers: flagged candidates are dropped and told, and nothing but finished pictures is looked at."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace

import families
import numpy as np
import pytest
import torch
from pipelines import PROMPTS, Brightness, tiny_sd

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from diffusers import DDIMScheduler
from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from pipeline_source import sources
from transformers import CLIPConfig, CLIPImageProcessor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.scoring import DroppedCandidate
from diffscale.engine.task import Task
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.safety import noted_flags, unchecked
from diffscale.samplers.whole import sampler_of
from diffscale.searches import SEARCHES, choose_search

EVERY = {**families.OTHERS, **families.WINDOWED, **families.WHOLE}
STEPS = 2


def _checked():
    """Names of the tiny pipelines that have a place for a safety checker."""
    for name, (tiny, scheduler, *_) in EVERY.items():
        if "safety_checker" in tiny(scheduler(), True).pipe.components:
            yield name


class Darkness(Brightness):
    """It likes what a safety checker leaves."""

    name = "darkness"

    def __call__(self, images, prompts):
        assert images.sum((1, 2, 3)).min() > 0, "a picture was shown that had been taken out"
        return -super().__call__(images, prompts)


def guard(pipe, every=2):
    """Have `pipe` checked by diffusers' own checker of its kind, that flags every second picture; gives the calls."""
    deepfloyd = "deepfloyd" in type(pipe).__module__
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    vision = {**sizes, "image_size": 8, "patch_size": 4, "projection_dim": 8}
    config = CLIPConfig(text_config=sizes, vision_config=vision, projection_dim=8)
    torch.manual_seed(0)
    checker = (IFSafetyChecker if deepfloyd else StableDiffusionSafetyChecker)(config).eval()
    seen = []

    def forward(clip_input, images, **_):
        flags = [(len(seen) + row) % every == every - 1 for row in range(len(images))]
        seen.extend(flags)
        for row in [row for row, flag in enumerate(flags) if flag]:
            images[row] = images[row] * 0
        return (images, flags, [False] * len(flags)) if deepfloyd else (images, flags)

    checker.forward = forward
    pipe.register_modules(
        safety_checker=checker, feature_extractor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8)
    )
    return seen


@pytest.mark.parametrize("name", _checked())
def test_flagged_candidates_are_dropped_counted_and_told(name):
    tiny, scheduler, *_ = EVERY[name]
    t = tiny(scheduler(), True)
    seen = guard(t.pipe)
    sampler = sampler_of(t.pipe, PROMPTS, STEPS, t.args)
    seen.clear()
    with pytest.warns(DroppedCandidate, match="the pipeline's safety checker flagged its picture"):
        (found,) = run_searches([Task(SEARCHES["random"], 1, 0, 4 * sampler.steps)], sampler, Darkness())
    assert found.candidates == 4 and found.dropped == sum(seen) == 2 and found.best.image.sum() > 0
    assert t.pipe.safety_checker is not None and "safety_checker" in t.pipe.components


def test_real_checkers_that_flag_everything_leave_nothing():
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    guard(t.pipe)
    del t.pipe.safety_checker.forward
    torch.nn.init.constant_(t.pipe.safety_checker.concept_embeds_weights, -2.0)
    with pytest.warns(DroppedCandidate), pytest.raises(DiffscaleError, match="None of the 4 candidates"):
        run_searches([Task(SEARCHES["random"], 1, 0, 8)], sampler_of(t.pipe, PROMPTS, 2, t.args), Darkness())


@pytest.mark.parametrize(
    ("search", "budget"), [("svdd b=1 m=2", 30), ("first_order rate=0.1", 60), ("fk k=2", 30), ("dps n=2", 30)]
)
def test_predictions_and_gradients_go_around_the_checker(search, budget):
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    seen = guard(t.pipe, every=1000)
    sampler = DiffusersSampler(t.pipe, PROMPTS, 3, t.args)
    task = Task(choose_search(search).make(device="cpu"), 1, noise.root(0), budget)
    (found,) = run_searches([task], sampler, Brightness())
    assert len(seen) == found.candidates > 0 and found.dropped == 0
    plain = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    (wanted,) = run_searches([task], DiffusersSampler(plain.pipe, PROMPTS, 3, plain.args), Brightness())
    assert found.best.score == wanted.best.score


def test_a_flagged_candidate_of_a_gradient_is_dropped():
    t = tiny_sd(DDIMScheduler(clip_sample=False, steps_offset=1))
    guard(t.pipe)
    task = Task(choose_search("first_order rate=0.1").make(device="cpu"), 1, noise.root(0), 80)
    with pytest.warns(DroppedCandidate, match="safety checker"):
        (found,) = run_searches([task], DiffusersSampler(t.pipe, PROMPTS, 3, t.args), Brightness())
    assert 0 < found.dropped < found.candidates and found.best.image.sum() > 0


def test_checkers_of_videos():
    class Guard:
        def check_video_safety(self, frames):
            return None if frames.mean() > 100 else frames + 1

    pipe = SimpleNamespace(safety_checker=Guard())
    frames = [np.full((2, 4, 4, 3), level, dtype=np.uint8) for level in (7, 200)]
    with noted_flags(pipe) as flags:
        assert [pipe.safety_checker.check_video_safety(each).max() for each in frames] == [8, 0]
    assert flags == [False, True]
    with unchecked(pipe):
        assert pipe.safety_checker.check_video_safety(frames[1]) is frames[1]
    assert pipe.safety_checker.check_video_safety(frames[1]) is None and not vars(pipe.safety_checker)


def test_no_pipeline_of_diffusers_asks_its_checker_in_another_way():
    ways = {way for each in sources() for way in re.findall(r"self\.safety_checker(\.\w+)?\(", each.text)}
    assert ways == {"", ".to", ".check_text_safety", ".check_video_safety"}
    named = {name for each in sources() for name in re.findall(r"self\.(\w*(?:guard|safety_check)\w*)", each.text)}
    assert named == {"safety_checker", "run_safety_checker", "_apply_video_safety_check"}
