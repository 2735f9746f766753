"""CPU offload under the windowed sampler: the hooks work together, and networks do not travel more than they must.

Here both ends of the way are the CPU; that memory is saved can only be seen where there is a GPU.
"""

from __future__ import annotations

import diffusers
import pytest
import torch
from accelerate import cpu_offload
from accelerate.hooks import AlignDevicesHook, CpuOffload
from pipelines import PROMPTS, Brightness
from tiny_classes import tiny_dit

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.models import memory
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.searches.svdd import svdd

KEYS, ROWS = torch.arange(3), torch.tensor([0, 1, 2])
ON_CPU = LoadOptions(device="cpu")
SMALL = {"height": 8, "width": 8}


def _sampler(folder: str, offload: str | None) -> DiffusersSampler:
    pipe = load_pipeline(folder, ON_CPU)
    if offload == "sequential":
        # As enable_sequential_cpu_offload, whose device "cpu:0" accelerate mistakes for another than "cpu".
        for network in (pipe.unet, pipe.vae, pipe.text_encoder):
            cpu_offload(network, torch.device("cpu"), offload_buffers=len(network._parameters) > 0)
    else:
        memory.place_networks(pipe, offload, "cpu")
    return DiffusersSampler(pipe, PROMPTS, 4, SMALL)


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_offloaded_networks_give_the_same(sd_folder: str, offload: str) -> None:
    plain, moved = _sampler(sd_folder, None), _sampler(sd_folder, offload)
    hooks = {type(module._hf_hook) for module in moved.pipeline._pipe.unet.modules() if hasattr(module, "_hf_hook")}
    assert (CpuOffload in hooks) == (offload == "model") and (AlignDevicesHook in hooks) == (offload == "sequential")
    assert moved.forwards_per_nfe == 2 and moved.flops_per_forward == plain.flops_per_forward
    states = [sampler.run(sampler.prior(KEYS, ROWS), 2) for sampler in (plain, moved)]
    assert torch.equal(states[0].x, states[1].x)
    states = [s.step(s.predict(state)) for s, state in zip((plain, moved), states, strict=True)]
    assert torch.equal(states[0].x, states[1].x)
    done = [s.decode(s.run(state).x) for s, state in zip((plain, moved), states, strict=True)]
    assert torch.equal(*done)
    assert moved.forwards == plain.forwards == 2 * 3 * 4
    if offload == "sequential":
        assert moved.pipeline._pipe.unet.conv_in.weight.is_meta  # given back when it was used


@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_gradients_flow_through_offloaded_networks(sd_folder: str, offload: str) -> None:
    def gradient(sampler: DiffusersSampler) -> torch.Tensor:
        return sampler.gradient(sampler.prior(KEYS, ROWS), lambda images, _: images.mean((1, 2, 3)))[3]

    expected = gradient(_sampler(sd_folder, None))
    assert expected.norm() > 0
    torch.testing.assert_close(gradient(_sampler(sd_folder, offload)), expected)


def test_networks_are_not_taken_off_at_the_end_of_every_window(sd_folder: str) -> None:
    sampler = _sampler(sd_folder, "model")
    networks = [sampler.pipeline._pipe.unet, sampler.pipeline._pipe.vae, sampler.pipeline._pipe.text_encoder]
    # diffusers takes off by placing every hook anew.
    hooks = [network._hf_hook for network in networks]
    state = sampler.prior(KEYS, ROWS)
    for _ in range(3):
        state = sampler.step(sampler.predict(state))
    sampler.decode(state.x)
    assert [network._hf_hook for network in networks] == hooks
    # The decoder's hook is still the one that makes room by moving the denoiser.
    assert networks[1]._hf_hook.prev_module_hook.model is networks[0]


def test_the_users_offloaded_pipeline_still_works_after_a_search(sd_folder: str) -> None:
    pipe = load_pipeline(sd_folder, ON_CPU)
    pipe.enable_model_cpu_offload(device="cpu")
    pipe.set_progress_bar_config(disable=True)

    def own() -> torch.Tensor:
        generator = torch.Generator().manual_seed(0)
        return pipe("a star", num_inference_steps=2, generator=generator, output_type="pt", **SMALL).images

    before, hooks = own(), list(pipe._all_hooks)
    diffscale.search(pipe, "a star", verifier=Brightness(), nfe=8, steps=4, pipe_args=SMALL, device="cpu")
    assert pipe._all_hooks == hooks
    assert torch.equal(own(), before)


def test_a_search_runs_on_offloaded_networks(sd_folder: str) -> None:
    results = []
    for offload in (None, "model", "sequential"):
        sampler = _sampler(sd_folder, offload)
        (result,) = run_searches([Task(lambda env: svdd(env, m=3), 0, noise.root(0), 60)], sampler, Brightness(), 4)
        results.append(result)
    assert results[0].best.score == results[1].best.score == results[2].best.score


def test_a_class_conditional_network_may_be_offloaded() -> None:
    def pictures(offload: bool) -> torch.Tensor:
        pipe = tiny_dit(diffusers.DDIMScheduler())
        for network in (pipe.transformer, pipe.vae) if offload else ():
            cpu_offload(network, torch.device("cpu"))
            assert next(network.parameters()).is_meta
        sampler = make_sampler(pipe, ["207"], steps=2, pipe_args={}, loading=LoadOptions())
        state = sampler.run(sampler.prior(KEYS[:2], ROWS[[0, 0]]))
        return sampler.decode(state.x)

    assert torch.equal(pictures(True), pictures(False))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_on_a_gpu_a_class_conditional_network_may_be_offloaded(offload: str) -> None:
    pipe = tiny_dit(diffusers.DDIMScheduler())
    memory.place_networks(pipe, offload, "cuda")
    sampler = make_sampler(pipe, ["207"], steps=2, pipe_args={}, loading=LoadOptions())
    state = sampler.run(sampler.prior(KEYS[:2], ROWS[[0, 0]]))
    assert state.x.is_cuda and sampler.decode(state.x).isfinite().all()


def test_offload_without_a_gpu_is_told(sd_folder: str) -> None:
    with pytest.raises(DiffscaleError, match="the device is cpu: leave the option offload out"):
        load_pipeline(sd_folder, LoadOptions(device="cpu", offload="model"))


def test_a_pipeline_without_an_order_is_told(sd_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = load_pipeline(sd_folder, ON_CPU)
    monkeypatch.setattr(diffusers.StableDiffusionPipeline, "model_cpu_offload_seq", None)
    with pytest.raises(DiffscaleError, match="StableDiffusionPipeline cannot be offloaded"):
        memory.place_networks(pipe, "model", "cpu")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("offload", ["model", "sequential"])
def test_on_a_gpu_offload_takes_less_memory_and_gives_the_same(offload: str) -> None:
    peaks, pictures = [], []
    for asked in (None, offload):
        torch.cuda.empty_cache()
        pipe = load_pipeline("shapes-flux", LoadOptions(device="cuda", offload=asked))
        sampler = DiffusersSampler(pipe, PROMPTS, 4, {"height": 64, "width": 64, "max_sequence_length": 24})
        torch.cuda.reset_peak_memory_stats()
        state = sampler.run(sampler.prior(KEYS, ROWS))
        assert state.x.is_cuda
        pictures.append(sampler.decode(state.x).cpu())
        peaks.append(torch.cuda.max_memory_allocated())
        del pipe, sampler, state
    torch.testing.assert_close(*pictures, atol=1e-3, rtol=0)
    assert peaks[1] < peaks[0]
