"""Each option does on the pipeline what it says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention_dispatch import _AttentionBackendRegistry
from pipelines import PROMPTS, tiny_flux, tiny_pixart

import diffscale
from diffscale._util.errors import DiffscaleError
from diffscale.api import make_sampler
from diffscale.models import copies, memory, schedulers
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler

KEYS, ROWS = torch.arange(3), torch.tensor([0, 1, 2])
SMALL = {"height": 8, "width": 8}
ON_CPU = LoadOptions(device="cpu")


def _load(folder: str, **options: Any) -> Any:
    return load_pipeline(folder, LoadOptions(device="cpu", **options))


def test_dtype_is_that_of_all_networks(sd_folder: str) -> None:
    pipe = _load(sd_folder, dtype="bfloat16")
    networks = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    assert networks.keys() == {"unet", "vae", "text_encoder"}
    for network in networks.values():
        assert {p.dtype for p in network.parameters()} == {torch.bfloat16}


def test_the_file_of_the_variant_is_loaded(sd_folder: str) -> None:
    assert (_load(sd_folder, variant="fp16").unet.conv_out.bias == 3).all()
    assert not (_load(sd_folder).unet.conv_out.bias == 3).any()
    with pytest.raises(DiffscaleError, match="fp8"):
        _load(sd_folder, variant="fp8")


def test_the_revision_is_asked_of_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = {}

    def hub(model: str, **given: Any) -> Any:
        asked.update(given, model=model)
        raise OSError("not in this test")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", hub)
    with pytest.raises(DiffscaleError):
        _load("owner/name", revision="refs/pr/7")
    assert (asked["model"], asked["revision"]) == ("owner/name", "refs/pr/7")
    assert not asked.get("trust_remote_code")


def test_the_scheduler_is_of_the_class_and_keeps_what_the_model_states(sd_folder: str) -> None:
    old = _load(sd_folder).scheduler
    new = _load(sd_folder, scheduler="DPMSolverMultistepScheduler use_karras_sigmas=true solver_order=3").scheduler
    assert type(new) is diffusers.DPMSolverMultistepScheduler
    assert new.config.use_karras_sigmas is True and new.config.solver_order == 3
    assert new.config.beta_end == old.config.beta_end and new.config.steps_offset == old.config.steps_offset


@pytest.mark.parametrize(
    ("scheduler", "said"),
    [
        ("DDIMSchedular", "did you mean 'DDIMScheduler'"),
        ("", "Unknown scheduler ''"),
        ("DDIMScheduler steps=3", "argument of scheduler DDIMScheduler"),
        ("DDIMScheduler clip_sample=perhaps", "takes clip_sample as bool"),
        ("DDIMScheduler trained_betas=few", "takes trained_betas as"),
        ("FlowMatchEulerDiscreteScheduler", "is for a flow, and this model is a diffusion: choose one of DDIMSch"),
        ("EDMEulerScheduler", "is for an EDM .*, and this model is a diffusion: choose one of DDIMScheduler"),
    ],
)
def test_wrong_schedulers_are_told(sd_folder: str, scheduler: str, said: str) -> None:
    with pytest.raises(DiffscaleError, match=said):
        _load(sd_folder, scheduler=scheduler)


def test_a_flow_is_not_solved_as_a_diffusion() -> None:
    with pytest.raises(DiffscaleError, match="is a flow, which UniPCMultistepScheduler as given does not solve"):
        _load("shapes-flux", scheduler="UniPCMultistepScheduler")
    asked = "UniPCMultistepScheduler prediction_type=flow_prediction use_flow_sigmas=true"
    assert type(_load("shapes-flux", scheduler=asked).scheduler) is diffusers.UniPCMultistepScheduler
    assert _load("shapes-flux", scheduler="FlowMatchHeunDiscreteScheduler").scheduler.config.shift == 1.0


def test_an_edm_is_neither_a_flow_nor_a_diffusion() -> None:
    with pytest.raises(DiffscaleError, match="is a flow, which EDMEulerScheduler as given does not solve"):
        _load("shapes-flux", scheduler="EDMEulerScheduler")
    pipe = SimpleNamespace(scheduler=diffusers.EDMEulerScheduler(sigma_max=70.0))
    for other, is_for in [("FlowMatchEulerDiscreteScheduler", "a flow"), ("DDIMScheduler", "a diffusion")]:
        with pytest.raises(DiffscaleError, match=f"{other} is for {is_for}, and .* an EDM .*: choose one of EDMDPM"):
            schedulers.replace_scheduler(pipe, *schedulers.parse_scheduler(other))
    schedulers.replace_scheduler(pipe, *schedulers.parse_scheduler("EDMDPMSolverMultistepScheduler"))
    assert type(pipe.scheduler) is diffusers.EDMDPMSolverMultistepScheduler and pipe.scheduler.config.sigma_max == 70.0


def test_a_scheduler_that_the_pipeline_cannot_call_is_told() -> None:
    asked = LoadOptions(device="cpu", scheduler="FlowMatchHeunDiscreteScheduler")
    with pytest.raises(DiffscaleError, match="FluxPipeline does not run with scheduler as given"):
        make_sampler("shapes-flux", PROMPTS, steps=2, pipe_args={}, loading=asked)


@pytest.mark.parametrize("what", ["slicing", "tiling"])
def test_the_vae_decodes_in_parts(sd_folder: str, what: str) -> None:
    assert getattr(_load(sd_folder, **{f"vae_{what}": True}).vae, f"use_{what}")
    assert not getattr(_load(sd_folder).vae, f"use_{what}")


def test_a_vae_that_cannot_is_told(sd_folder: str) -> None:
    pipe = _load(sd_folder)
    del pipe.vae.use_tiling
    with pytest.raises(DiffscaleError, match="The VAE of StableDiffusionPipeline has no tiling"):
        memory.save_decoding(pipe, slicing=True, tiling=True)


def test_slicing_decodes_one_picture_at_a_time_and_to_the_same(sd_folder: str) -> None:
    rows: list[int] = []
    pictures = []
    for slicing in (False, True):
        sampler = make_sampler(sd_folder, PROMPTS, steps=2, pipe_args=SMALL,
                               loading=LoadOptions(device="cpu", vae_slicing=slicing))  # fmt: skip
        end = sampler.run(sampler.prior(KEYS, ROWS))
        sampler.decode(end.x[:1])  # the first time shows what the pipeline's tensors are between
        sampler.pipeline._pipe.vae.decoder.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
        pictures.append(sampler.decode(end.x))
    assert rows == [3, 1, 1, 1]
    torch.testing.assert_close(pictures[0], pictures[1])


def test_the_attention_backend_is_the_denoisers_alone() -> None:
    before = _AttentionBackendRegistry.get_active_backend()[0]
    pipe = _load("shapes-flux", attention="_native_math")
    backends = {m.processor._attention_backend for m in pipe.transformer.modules() if hasattr(m, "processor")}
    assert backends == {"_native_math"}
    assert _AttentionBackendRegistry.get_active_backend()[0] == before
    with pytest.raises(DiffscaleError, match="did you mean 'native'"):
        _load("shapes-flux", attention="nativ")
    with pytest.raises(DiffscaleError, match=r"'sage' cannot be used: .*sageattention"):
        _load("shapes-flux", attention="sage")


def test_a_denoiser_without_a_choice_of_attention_is_told(sd_folder: str) -> None:
    with pytest.raises(DiffscaleError, match="does not let its attention backend be chosen"):
        _load(sd_folder, attention="native")


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs that torch.compile makes, in a backend that runs them as they are."""
    made: list[Any] = []

    def backend(graph: Any, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda what: compiled(what, backend=backend))
    torch._dynamo.reset()
    return made


@pytest.mark.parametrize(("tiny", "expected"), [(tiny_flux, 2), (tiny_pixart, 1)], ids=["blocks", "whole"])
def test_the_denoiser_is_compiled_once_and_gives_the_same(tiny: Any, expected: int, graphs: list[Any]) -> None:
    flow = tiny is tiny_flux
    kind = diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler
    model = tiny(kind())

    def sampled() -> torch.Tensor:
        sampler = DiffusersSampler(model.pipe, PROMPTS, 3, model.args)
        assert sampler.forwards_per_nfe == model.forwards and sampler.flops_per_forward > 0
        done = [sampler.run(sampler.prior(KEYS, ROWS)).x for _ in range(3)]
        assert sampler.forwards == 3 * model.forwards * 3 * 3
        return done[-1]

    plain = sampled()
    assert not graphs
    memory.compile_denoisers(model.pipe)
    torch.testing.assert_close(sampled(), plain)
    # The hooks that count rows come and go with every call: they are not lost, and lead to no other graph.
    assert len(graphs) == expected
    memory.place_networks(model.pipe, "model", "cpu")
    torch.testing.assert_close(sampled(), plain)
    assert len(graphs) <= expected + 1  # accelerate lays its copy of the timesteps out anew


@pytest.mark.parametrize("tiny", [tiny_flux, tiny_pixart], ids=["blocks", "whole"])
def test_copies_of_a_compiled_denoiser_are_compiled_and_compute_with_their_own_weights(
    tiny: Any, graphs: list[Any]
) -> None:
    flow = tiny is tiny_flux
    model = tiny((diffusers.FlowMatchEulerDiscreteScheduler if flow else diffusers.DDIMScheduler)())

    def sampled(pipe: Any) -> torch.Tensor:
        sampler = DiffusersSampler(pipe, PROMPTS, 3, model.args)
        return sampler.run(sampler.prior(KEYS, ROWS)).x

    memory.compile_denoisers(model.pipe)
    pipe, copied = copies.copies_on(model.pipe, ["cpu", "cpu"])
    assert pipe is model.pipe
    with torch.no_grad():
        for weights in copied.transformer.parameters():
            weights.mul_(0.5)
    plain = copies.copies_on(tiny(pipe.scheduler).pipe, ["cpu"])[0]
    plain.transformer.load_state_dict(copied.transformer.state_dict())
    assert not graphs
    torch.testing.assert_close(sampled(copied), sampled(plain))
    assert graphs
    assert not torch.allclose(sampled(copied), sampled(pipe))


def test_the_option_asks_for_it(sd_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(memory, "compile_denoisers", asked.append)
    assert _load(sd_folder, compile=True) is asked[0]
    _load(sd_folder)
    assert len(asked) == 1


def test_devices_that_are_not_there_are_told() -> None:
    with pytest.raises(DiffscaleError, match="There is no device 'cudda': give cuda, mps or cpu"):
        load_pipeline("shapes-flux", LoadOptions(device="cudda"))


def test_negative_prompts_change_the_result_or_are_refused(sd_folder: str) -> None:
    def sampled(**args: Any) -> torch.Tensor:
        sampler = make_sampler(sd_folder, PROMPTS, steps=2, pipe_args=SMALL | args, loading=ON_CPU)
        return sampler.run(sampler.prior(KEYS, ROWS)).x

    plain, empty, dull = sampled(), sampled(negative_prompt=""), sampled(negative_prompt="dull grey")
    assert torch.equal(plain, empty)
    assert not torch.allclose(plain, dull, atol=1e-4)
    # The pipeline's own call, given the same noise, agrees.
    pipe = load_pipeline(sd_folder, ON_CPU)
    sampler = make_sampler(pipe, PROMPTS, steps=2, pipe_args=SMALL, loading=ON_CPU)
    pipe.set_progress_bar_config(disable=True)
    own = pipe(PROMPTS, negative_prompt=["dull grey"] * 3, latents=sampler.prior(KEYS, ROWS).x, output_type="latent",
               num_inference_steps=2, **SMALL).images  # fmt: skip
    torch.testing.assert_close(dull, own, atol=1e-5, rtol=1e-5)
    with pytest.raises(DiffscaleError, match="no effect on StableDiffusionPipeline while guidance_scale is 1"):
        sampled(negative_prompt="dull", guidance_scale=1.0)


def test_a_model_is_found_wrong_before_a_verifier_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffscale.api.load_verifier", None)
    with pytest.raises(DiffscaleError, match="did you mean 'shapes-flux'"):
        diffscale.search("shapes-fluxx", "a star", verifier="clip", device="cpu")
    # What is wrong with the verifier's name costs no model.
    monkeypatch.setattr("diffscale.api.make_sampler", None)
    with pytest.raises(DiffscaleError, match="did you mean 'clip'"):
        diffscale.search("shapes-flux", "a star", verifier="clipp", device="cpu")
