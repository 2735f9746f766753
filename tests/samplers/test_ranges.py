"""Pictures are what every pipeline gives as arrays, whatever its tensors are between."""

import sys
from pathlib import Path

import families
import pytest
import torch
from pipelines import PROMPTS

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

from pipeline_source import sources, tensors_in

from diffscale._util.errors import DiffscaleError
from diffscale.samplers.calls import pictures
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.whole import WholeSampler, sampler_of

SIGNED = {"if", "kandinsky", "kandinsky_inpaint", "kandinsky3", "prx_pixels"}
EVERY = {**families.OTHERS, **families.WINDOWED, **families.WHOLE}


@pytest.fixture(scope="module")
def stated():
    return {source.name: tensors_in(source) for source in sources()}


@pytest.mark.parametrize("name", EVERY)
def test_pictures_are_the_pipelines_arrays_and_its_source_tells_what_tensors_are(name, stated):
    tiny, scheduler, *_ = EVERY[name]
    t = tiny(scheduler(), True)
    sampler = sampler_of(t.pipe, PROMPTS, 2, t.args)
    start = sampler.prior(torch.arange(1), torch.tensor([1]))
    end = sampler.run(start)
    state = start if isinstance(sampler, WholeSampler) else end
    arrays = torch.as_tensor(sampler.pipeline_output(state, "np", return_dict=False)[0])
    assert torch.equal(sampler.decode(end.x), pictures(arrays)) and 0 <= arrays.min() <= arrays.max() <= 1
    tensors = torch.as_tensor(sampler.pipeline_output(state, "pt", return_dict=False)[0])
    tensors = tensors if tensors.shape == arrays.shape else tensors.movedim(-3, -1)
    signed = stated[type(t.pipe).__name__] == "[-1, 1]"
    brought = tensors / 2 + 0.5 if signed else tensors
    assert torch.allclose(brought.float().clamp(0, 1), arrays, atol=1e-5)
    assert signed == (name in SIGNED or name.startswith("if_"))


def test_every_class_is_stated(stated):
    assert {name for name, kind in stated.items() if kind == "unknown"} == {
        "LTX2HDRPipeline",
        "ShapEPipeline",
        "WuerstchenPriorPipeline",
    }
    assert sum(kind == "[-1, 1]" for kind in stated.values()) == 14


def test_tensors_that_are_neither_have_no_gradient(monkeypatch):
    tiny, scheduler, _ = families.WINDOWED["sd15"]
    t = tiny(scheduler(), False)
    own = t.pipe.image_processor.postprocess

    def other(image, output_type, **more):
        return image * 3 if output_type == "pt" else own(image, output_type=output_type, **more)

    monkeypatch.setattr(t.pipe.image_processor, "postprocess", other)
    sampler = DiffusersSampler(t.pipe, PROMPTS, 2, t.args)
    start = sampler.prior(torch.arange(1), torch.tensor([1]))
    assert sampler.decode(sampler.run(start).x).max() <= 1
    with pytest.raises(DiffscaleError, match="other pictures as tensors than as arrays"):
        sampler.gradient(start, lambda images, _: images.mean((1, 2, 3)))
