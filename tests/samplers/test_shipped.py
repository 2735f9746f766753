"""The shipped models: plain diffusers loads them where it has their class, and our sampler draws the same pictures."""

from __future__ import annotations

import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline, PixArtSigmaPipeline, StableDiffusionXLPipeline

import diffscale
from diffscale.engine import noise
from diffscale.models.load import plain_call
from diffscale.models.shipped import locate
from diffscale.samplers.diffusers import DiffusersSampler

PROMPTS = ["a red circle above a blue square", "three dotted green stars"]


SHIPPED = {
    "shapes-flux": FluxPipeline,
    "shapes-pixart": PixArtSigmaPipeline,
    "shapes-sdxl": StableDiffusionXLPipeline,
}


@pytest.fixture(scope="module", params=SHIPPED)
def pipe(request: pytest.FixtureRequest) -> DiffusionPipeline:
    found = DiffusionPipeline.from_pretrained(locate(request.param))
    assert type(found) is SHIPPED[request.param]
    return found


def test_it_draws_what_the_plain_call_draws_split_or_not(pipe: DiffusionPipeline) -> None:
    call = plain_call(pipe)
    steps = 5
    sampler = DiffusersSampler(pipe, PROMPTS, steps, call.args)
    keys = torch.tensor([noise.fold(0, i) for i in range(2)])
    start = sampler.prior(keys, torch.tensor([0, 1]))
    args = {name: [value] * 2 if name == "negative_prompt" else value for name, value in call.args.items()}
    plain = pipe(PROMPTS, latents=start.x, num_inference_steps=steps, output_type="pt", **args).images
    whole = sampler.run(start)
    # A quarter of a grey level: processors round otherwise in batches of another form.
    torch.testing.assert_close(sampler.decode(whole.x), plain.float(), atol=1e-3, rtol=0)
    split = start
    for to in range(1, steps + 1):
        split = sampler.run(split, to)
    torch.testing.assert_close(split.x, whole.x, atol=1e-5, rtol=1e-5)


def test_the_whole_network_is_loaded_in_one_dtype(pipe: DiffusionPipeline) -> None:
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    "model", ["shapes-sdxl-dpo", "shapes-sdxl-sharpened", "shapes-sit-s", "shapes-sit-b", "shapes-sit-l"]
)
def test_what_diffusers_has_no_class_for_is_searched_by_name(model: str) -> None:
    prompt = "red circle" if "sit" in model else "a red circle"
    found = diffscale.search(model, prompt, nfe=40, device="cpu")
    assert found.candidates == 2 and found.best.score >= found.baseline.score
    assert found.best.image.shape == (3, 64, 64) and found.best.image.std() > 0.02


def test_the_lora_changes_its_base() -> None:
    pictures = [
        diffscale.search(model, "a red circle", nfe=20, device="cpu").best.image
        for model in ("shapes-sdxl", "shapes-sdxl-dpo")
    ]
    assert not torch.equal(*pictures)
