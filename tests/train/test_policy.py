"""The thing that is trained, on tiny pipelines of epsilon, v and flow prediction."""

import families
import pytest
import torch
from diffusers import EulerDiscreteScheduler, FluxImg2ImgPipeline, StableDiffusionXLImg2ImgPipeline
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from peft import LoraConfig
from pipelines import PROMPTS, tiny_pixart, with_text
from policies import FAMILIES, policy_of, tiny

from diffscale._util.errors import DiffscaleError
from diffscale.train.base import add_lora
from diffscale.train.methods.sft import sft_loss
from diffscale.train.methods.sharpen import sharpen_sft_loss
from diffscale.train.policy import Policy
from diffscale.train.selection import select_trajectories

KEYS, ROWS = torch.arange(3), torch.tensor([2, 0, 1])
EULER = "sdxl by Euler"


class Brightness:
    name = "brightness"

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def given(name, **more):
    if name == EULER:
        return policy_of("sdxl", scheduler=EulerDiscreteScheduler(beta_schedule="scaled_linear"), **more)
    return policy_of(name, **more)


def perfect(t, x0):
    """Have the network of `t` answer what a perfect one does, by what it is told itself."""
    table = getattr(t.pipe.scheduler, "alphas_cumprod", None)
    flux = type(t.net).__name__.startswith("Flux")

    def forward(*args, **kwargs):
        x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
        time = kwargs["timestep"] if "timestep" in kwargs else args[1]
        data = x0.to(x)
        if table is None:
            level = (time if flux else time / 1000).to(x).view(-1, *[1] * (x.ndim - 1))
            return ((x - data) / level,)
        kept = table.double()[time.long()].view(-1, 1, 1, 1)
        eps = (x - kept.sqrt() * data) / (1 - kept).sqrt()
        v = t.pipe.scheduler.config.prediction_type == "v_prediction"
        return (kept.sqrt() * eps - (1 - kept).sqrt() * data if v else eps,)

    t.net.forward = forward


@pytest.mark.parametrize("name", [*FAMILIES, EULER])
def test_a_perfect_network_has_no_loss(name):
    t, policy = given(name)
    x0 = policy.prior(torch.tensor([9])).expand(3, *policy.like.shape[1:])
    perfect(t, x0[:1])
    # What schedulers keep in float32 is the only error.
    assert float(sft_loss(policy, x0, ROWS, KEYS)[0]) < 1e-9
    time = policy.times.draw(KEYS)
    x = policy.times.noised(x0, policy.prior(KEYS + 3), time)
    assert torch.allclose(policy.times.clean(x, policy.output(x, time, ROWS), time), x0, atol=1e-3)
    chosen = select_trajectories(policy, Brightness(), x0, ROWS, KEYS)
    assert float(sharpen_sft_loss(policy, chosen)[0]) < 1e-9
    assert float(sft_loss(policy, x0 + 0.1, ROWS, KEYS)[0]) > 1e-4


@pytest.mark.parametrize("name", [*FAMILIES, EULER, "pixart", "aura", "wan22"])
def test_batches_mix_times_and_each_row_is_as_the_sampler_has_it(name):
    if name == "pixart":
        t = tiny_pixart(families._ddim())
        policy = Policy(t.pipe, PROMPTS, 4, t.args)
    else:
        t, policy = given(name, **({} if name in (*FAMILIES, EULER) else {"dtype": torch.float32}))
    assert policy._network.mixes_times == (name not in ("aura", "wan22"))
    sampler = policy.sampler
    steps = [1, 3, 2]
    states = [sampler.run(sampler.prior(KEYS[[i]], ROWS[[i]]), step) for i, step in enumerate(steps)]
    wanted = torch.cat([sampler.predict(state).model_output for state in states])
    x = torch.cat([state.x for state in states])
    if name == EULER:
        sigma = t.pipe.scheduler.sigmas if t.pipe.scheduler.num_inference_steps else sampler.pipeline.scheduler.sigmas
        x = x / (sigma[steps] ** 2 + 1).sqrt().to(x).view(-1, 1, 1, 1)
    time = policy.grid()[steps]
    time = time.floor() if name == "wan22" else time  # as its solver tells them
    close = {"rtol": 1e-3, "atol": 1e-3 * float(wanted.abs().max())}
    assert torch.allclose(policy.output(x, time, ROWS), wanted, **close)
    apart = [policy.output(x[[i]], time[[i]], ROWS[[i]]) for i in range(3)]
    assert torch.allclose(policy.output(x, time, ROWS), torch.cat(apart), **close)
    moved = policy.output(x, time.flip(0), ROWS)
    assert not torch.allclose(moved[0], wanted[0], rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", FAMILIES)
def test_training_a_lora_leaves_the_reference_as_it_was(name):
    _, policy = policy_of(name, "default")
    x, time = policy.prior(KEYS), policy.times.draw(KEYS)
    before = policy.output(x, time, ROWS).detach()
    add_lora(policy.networks.values(), 2)
    (net,) = policy.networks.values()
    trained = [p for p in net.parameters() if p.requires_grad]
    optimiser = torch.optim.SGD(trained, 1.0)
    assert 0 < sum(p.numel() for p in trained) < sum(p.numel() for p in net.parameters())
    assert torch.equal(policy.output(x, time, ROWS), before)
    for _ in range(2):  # the second half of a LoRA is zero at first
        sft_loss(policy, policy.prior(KEYS + 5), ROWS, KEYS)[0].backward()
        assert all(p.grad is not None for p in trained)
        optimiser.step()
    with policy.reference():
        reference = policy.output(x, time, ROWS)
    assert torch.equal(reference, before) and not reference.requires_grad
    now = policy.output(x, time, ROWS)
    assert now.requires_grad and not torch.allclose(now, before, rtol=1e-6)


def test_a_network_without_the_layers_of_a_lora_is_told_of():
    with pytest.raises(DiffscaleError, match="takes no LoRA on to_query"):
        add_lora(policy_of("sdxl", None)[1].networks.values(), 2, targets=["to_query"])


def test_a_lora_that_the_base_came_with_stays_in_the_reference():
    _, policy = policy_of("sdxl", "new")
    (net,) = policy.networks.values()
    x, time = policy.prior(KEYS), policy.times.draw(KEYS)
    bare = policy.output(x, time, ROWS).detach()
    net.add_adapter(LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_v"]), "old")
    based = policy.output(x, time, ROWS).detach()
    add_lora([net], 2, name="new")
    net.set_adapters(["old", "new"])
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if "lora_B.new" in name:
                parameter += 1
    with policy.reference():
        assert torch.allclose(policy.output(x, time, ROWS), based)
    assert not torch.allclose(based, bare) and not torch.allclose(policy.output(x, time, ROWS), based)


def test_full_weights_have_a_copy_as_reference():
    t, policy = policy_of("sd3")
    x, time = policy.prior(KEYS), policy.times.draw(KEYS)
    with pytest.raises(DiffscaleError, match="freeze"), policy.reference():
        pass
    policy.freeze()
    before = policy.output(x, time, ROWS).detach()
    with torch.no_grad():
        for parameter in t.net.parameters():
            parameter += 0.01
    with policy.reference():
        assert torch.equal(policy.output(x, time, ROWS), before)
    assert not torch.allclose(policy.output(x, time, ROWS), before)
    assert t.pipe.transformer is t.net and next(iter(policy.networks.values())) is t.net


def test_a_reference_needs_the_lora_that_was_named():
    _, policy = policy_of("sdxl", "mine")
    with pytest.raises(DiffscaleError, match="mine"), policy.reference():
        pass


@pytest.mark.parametrize("name", ["sdxl", "sd3", "flux"])
def test_pictures_are_encoded_as_by_the_image_to_image_sibling(name):
    t, policy = policy_of(name, dtype=torch.float32)
    side = t.args["height"]
    pictures = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(0))
    own = policy.encode(pictures)
    z = t.pipe.vae.encode(pictures * 2 - 1).latent_dist.mode()
    if name == "flux":
        sibling = FluxImg2ImgPipeline(t.pipe.scheduler, t.pipe.vae, None, None, None, None, t.net)
        sibling_z = (z - t.pipe.vae.config.shift_factor) * t.pipe.vae.config.scaling_factor
        wanted = sibling._pack_latents(sibling_z, 3, *sibling_z.shape[1:])
    elif name == "sd3":
        wanted = (z - t.pipe.vae.config.shift_factor) * t.pipe.vae.config.scaling_factor
    else:
        sibling = StableDiffusionXLImg2ImgPipeline(**t.pipe.components, add_watermarker=False)
        mode = DiagonalGaussianDistribution.mode
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(DiagonalGaussianDistribution, "sample", lambda self, generator=None: mode(self))
            wanted = sibling.prepare_latents(
                pictures * 2 - 1, None, 3, 1, torch.float32, torch.device("cpu"), None, add_noise=False
            )
    assert own.shape == wanted.shape and torch.allclose(own, wanted, atol=1e-5)
    again = (t.pipe.vae.decode(z).sample / 2 + 0.5).clamp(0, 1)
    assert torch.allclose(policy.decode(own), again, atol=1e-4)
    with pytest.raises(DiffscaleError, match="height"):
        policy.encode(torch.rand(1, 3, 2 * side, 2 * side))


def test_channels_of_their_own_scale_are_encoded_back():
    """Qwen-Image packs, and has a mean and a deviation for every channel."""
    t = tiny("qwen", dtype=torch.float32)
    t.pipe.vae.register_to_config(latents_mean=[0.5, -1.0, 0.0, 2.0], latents_std=[2.0, 0.5, 1.0, 3.0])
    policy = Policy(t.pipe, PROMPTS, 4, t.args)
    pictures = torch.rand(2, 3, t.args["height"], t.args["width"], generator=torch.Generator().manual_seed(0))
    z = t.pipe.vae.encode(pictures[:, :, None] * 2 - 1).latent_dist.mode()
    again = (t.pipe.vae.decode(z).sample[:, :, 0] / 2 + 0.5).clamp(0, 1)
    latents = policy.encode(pictures)
    assert torch.allclose(policy.decode(latents), again, atol=1e-4)
    mean, std = (torch.tensor(v).view(4, 1, 1) for v in ([0.5, -1.0, 0.0, 2.0], [2.0, 0.5, 1.0, 3.0]))
    wanted = t.pipe._pack_latents(((z[:, :, 0] - mean) / std)[:, :, None], 2, 4, *z.shape[-2:])
    assert torch.allclose(latents, wanted, atol=1e-5)


def test_guidance_is_off():
    t = tiny("sdxl")
    guided = {**t.args, "guidance_scale": 5.0}
    policy, plain = Policy(t.pipe, PROMPTS, 4, guided), Policy(t.pipe, PROMPTS, 4, t.args)
    x, time = policy.prior(KEYS), policy.times.draw(KEYS)
    assert policy.sampler.forwards_per_nfe == 1
    assert torch.equal(policy.output(x, time, ROWS), plain.output(x, time, ROWS))
    flux = tiny("flux")
    low, high = (
        Policy(flux.pipe, PROMPTS, 4, {**flux.args, "guidance_scale": scale}).output(
            torch.ones(1, 64, 4, dtype=torch.float64), torch.tensor([500.0]), ROWS[:1]
        )
        for scale in (1.0, 4.0)
    )
    assert not torch.allclose(low, high)  # told to the network, not done by two evaluations


def test_prompts_are_encoded_by_the_pipeline_and_may_be_others_for_every_batch():
    t = tiny("sd21", dtype=torch.float32)
    with_text(t.pipe)
    args = {"height": 8, "width": 8}
    policy = Policy(t.pipe, ["a star", "a circle"], 4, args)
    assert policy.prompts == ["a star", "a circle", ""]
    x, time = policy.prior(KEYS[:2]), policy.times.draw(KEYS[:2])
    star, circle = (policy.output(x, time, torch.tensor([row] * 2)) for row in (0, 1))
    policy.set_prompts(["a circle"])
    assert torch.allclose(policy.output(x, time, torch.tensor([0, 0])), circle, atol=1e-6)
    assert not torch.allclose(star, circle, atol=1e-6)
    with pytest.raises(DiffscaleError, match="prompt_embeds"):
        policy.set_prompts(["a"], {"prompt_embeds": torch.zeros(1, 7, 16)})


def test_embeddings_may_be_others_for_every_batch():
    t, policy = policy_of("sdxl")
    x, time = policy.prior(KEYS), policy.times.draw(KEYS)
    before = policy.output(x, time, ROWS)
    own = {name: t.args[name][[1]] for name in t.args if name.endswith("prompt_embeds")}
    policy.set_prompts([PROMPTS[1]], own)
    assert torch.allclose(policy.output(x[2:], time[2:], torch.tensor([0])), before[2:])
