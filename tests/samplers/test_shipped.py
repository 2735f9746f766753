"""The shipped pipeline: plain diffusers loads it, and our sampler draws the same pictures."""

from __future__ import annotations

import pytest
import torch
from diffusers import FluxPipeline

from diffscale import noise
from diffscale.models import plain_call
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.weights import locate

PROMPTS = ["a red circle above a blue square", "three dotted green stars"]


@pytest.fixture(scope="module")
def pipe() -> FluxPipeline:
    return FluxPipeline.from_pretrained(locate("shapes-flux"))


def test_it_draws_what_the_plain_call_draws_split_or_not(pipe: FluxPipeline) -> None:
    call = plain_call(pipe)
    steps = 5
    sampler = DiffusersSampler(pipe, PROMPTS, steps, call.args)
    keys = torch.tensor([noise.fold(0, i) for i in range(2)])
    start = sampler.prior(keys, torch.tensor([0, 1]))
    args = {name: [value] * 2 if name == "negative_prompt" else value for name, value in call.args.items()}
    plain = pipe(PROMPTS, latents=start.x, num_inference_steps=steps, output_type="pt", **args).images
    whole = sampler.run(start)
    torch.testing.assert_close(sampler.decode(whole.x), plain.float(), atol=1e-4, rtol=0)
    split = start
    for to in range(1, steps + 1):
        split = sampler.run(split, to)
    torch.testing.assert_close(split.x, whole.x, atol=1e-5, rtol=1e-5)


def test_the_whole_network_is_loaded_in_one_dtype(pipe: FluxPipeline) -> None:
    modules = [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]
    assert {parameter.dtype for module in modules for parameter in module.parameters()} == {torch.float32}
