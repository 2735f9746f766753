"""The published form of Diffusion-Sharpening against a loop that does what the authors' scripts do, on a tiny SDXL."""

import pytest
import torch
from diffusers import DDIMScheduler
from policies import policy_of
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.searches import choose_search
from diffscale.train.methods.sharpen import sharpen_rlhf_loss, sharpen_sft_loss
from diffscale.train.selection import select_trajectories

N, M, STEPS, BETA = 3, 3, 4, 7.0


class Brightness:
    name = "brightness"

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3))


def scheduler():
    return DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, set_alpha_to_one=False)


class Scripts:
    """What the authors' scripts do for a row, with the graph of everything but rewards and own samples."""

    def __init__(self, tiny, row):
        self.net, self.vae, self.row, self.args = tiny.net, tiny.pipe.vae, row, tiny.args
        self.scheduler = scheduler()

    def predict(self, net, x, t):
        many = len(x)
        given = {
            "text_embeds": self.args["pooled_prompt_embeds"][self.row].expand(many, -1),
            "time_ids": torch.tensor([[8, 8, 0, 0, 8, 8]]).expand(many, -1).double(),
        }
        states = self.args["prompt_embeds"][self.row].expand(many, -1, -1)
        return net(x, torch.full((many,), float(t)), states, added_cond_kwargs=given).sample

    @torch.no_grad()
    def sample(self, x):
        self.scheduler.set_timesteps(STEPS)
        for t in self.scheduler.timesteps:
            x = self.scheduler.step(self.predict(self.net, x, t), t, x).prev_sample
        return x

    def trajectories(self, x0, eps, t, through_steps=True):
        """Losses and rewards of all trajectories: means over their steps."""
        self.scheduler.set_timesteps(25)
        x, losses, rewards = self.scheduler.add_noise(x0, eps, torch.tensor([t])), [], []
        for i in range(min(M, 1 + t // 40)):
            out = self.predict(self.net, x, t - 40 * i)
            losses.append(F.mse_loss(out, eps, reduction="none").mean((1, 2, 3)))
            step = self.scheduler.step(out, t - 40 * i, x)
            x = step.prev_sample if through_steps else step.prev_sample.detach()
            with torch.no_grad():
                pictures = self.vae.decode(step.pred_original_sample / self.vae.config.scaling_factor).sample
                rewards.append((pictures / 2 + 0.5).clamp(0, 1).mean((1, 2, 3)))
        return torch.stack(losses).mean(0), torch.stack(rewards).mean(0)

    def rlhf(self, frozen, x0, eps, t):
        losses, rewards = self.trajectories(x0, eps, t)
        with torch.no_grad():
            first = self.predict(frozen, self.scheduler.add_noise(x0, eps, torch.tensor([t])), t)
            before = F.mse_loss(first, eps, reduction="none").mean((1, 2, 3))
        best, worst = rewards.argmax(), rewards.argmin()
        inside = (before[best] - before[worst]) - (losses[best] - losses[worst])
        return -(F.logsigmoid(BETA * inside) - (rewards[best] - rewards[worst]))


def trained():
    """A policy that has moved away from its reference, and the noises that it draws."""
    tiny, policy = policy_of("sdxl", None, STEPS, scheduler=scheduler())
    tiny.net.requires_grad_(True)
    policy.freeze()
    with torch.no_grad():
        for i, parameter in enumerate(tiny.net.parameters()):
            parameter += 0.02 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(i)).double()
    drawn, own = [], policy.prior  # the driver may draw one more at first, to see how latents are shaped
    policy.prior = lambda keys: drawn.append(own(keys)) or drawn[-1]
    return tiny, policy, drawn


def gradient(tiny, loss):
    found = torch.autograd.grad(loss, list(tiny.net.parameters()), allow_unused=True, retain_graph=True)
    return torch.cat([g.flatten() for g in found if g is not None])


def assert_same(tiny, loss, wanted):
    assert float(loss) == pytest.approx(float(wanted), rel=1e-7)
    found, wanted = gradient(tiny, loss), gradient(tiny, wanted)
    assert float((found - wanted).abs().max()) < 1e-6 * float(wanted.abs().max())  # diffusers' table is float32


@pytest.mark.parametrize(("row", "key"), [(0, 3), (2, 8), (1, 41)])
def test_sft_has_the_loss_and_gradient_of_the_authors_script(row, key):
    tiny, policy, drawn = trained()
    x0 = torch.randn(1, *policy.like.shape[1:], generator=torch.Generator().manual_seed(1)).double()
    rows = torch.tensor([row])
    chosen = select_trajectories(policy, Brightness(), x0, rows, torch.tensor([key]), N, M)
    given = x0.expand(N, -1, -1, -1), torch.cat(drawn)[-N:], int(chosen.best[0].time[0])
    loss = sharpen_sft_loss(policy, chosen, "published")[0]
    (losses, rewards), (alone, _) = (Scripts(tiny, row).trajectories(*given, each) for each in (True, False))
    best = rewards.argmax()
    assert_same(tiny, loss, losses[best])
    apart = (gradient(tiny, alone[best]) - gradient(tiny, loss)).abs().max() / gradient(tiny, loss).abs().max()
    assert len(chosen.best[0].time) == 1 or apart > 0.01  # another gradient without the way through the steps


@pytest.mark.parametrize(("row", "key"), [(0, 3), (2, 8)])
def test_rlhf_has_the_samples_loss_and_gradient_of_the_authors_script(row, key):
    tiny, policy, drawn = trained()
    rows = torch.tensor([row])
    chosen = select_trajectories(policy, Brightness(), policy.sample, rows, torch.tensor([key]), N, M)
    scripts, eps = Scripts(tiny, row), torch.cat(drawn)[-N:]
    own = scripts.sample(eps)
    best = int((eps - chosen.best[0].eps).abs().flatten(1).amax(1).argmin())
    torch.testing.assert_close(own[best], chosen.best[0].x0, rtol=1e-6, atol=1e-9)
    wanted = scripts.rlhf(policy.copies["unet"], own, eps, int(chosen.best[0].time[0]))
    assert_same(tiny, sharpen_rlhf_loss(policy, chosen, BETA, "published")[0], wanted)


def test_rows_of_other_lengths_are_followed_together():
    tiny, policy, _ = trained()
    x0 = torch.randn(4, *policy.like.shape[1:], generator=torch.Generator().manual_seed(1)).double()
    rows, keys = torch.tensor([0, 1, 2, 0]), torch.arange(4) + 40
    policy.times = policy.times.biased(1e6, 0, 100)
    chosen = select_trajectories(policy, Brightness(), x0, rows, keys, 2, M)
    lengths = [len(one.time) for one in chosen.best]
    assert len(set(lengths)) > 1
    each = [
        sharpen_sft_loss(
            policy,
            select_trajectories(policy, Brightness(), x0[i : i + 1], rows[i : i + 1], keys[i : i + 1], 2, M),
            "published",
        )[0]
        for i in range(4)
    ]
    assert_same(tiny, sharpen_sft_loss(policy, chosen, "published")[0], torch.stack(each).mean())


@pytest.mark.parametrize("search", ["zero_order n=2", "random", "svdd b=1 m=3", "paths n=1 m=2 length=1"])
def test_only_plain_steps_are_gone_back_through(search):
    _, policy, _ = trained()
    x0 = torch.zeros(1, *policy.like.shape[1:]).double()
    make = choose_search(search).make()
    chosen = select_trajectories(policy, Brightness(), x0, torch.tensor([0]), torch.tensor([3]), 16, M, make)
    if search.startswith(("zero_order", "random")):
        assert sharpen_sft_loss(policy, chosen, "published")[0].requires_grad
    else:
        with pytest.raises(DiffscaleError, match="leave the search out, or the form"):
            sharpen_sft_loss(policy, chosen, "published")
    assert sharpen_sft_loss(policy, chosen)[0].requires_grad


def held_memory(loss):
    """The bytes that a graph keeps for the way back."""
    kept = {}

    def pack(tensor):
        kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss()
    return sum(kept.values())


def test_both_forms_hold_about_as_much():
    _, policy, _ = trained()
    x0 = torch.zeros(2, *policy.like.shape[1:]).double()
    chosen = select_trajectories(policy, Brightness(), x0, torch.tensor([0, 1]), torch.tensor([3, 4]), N, M)
    held = {
        form: held_memory(lambda f=form: sharpen_sft_loss(policy, chosen, f)) for form in ("consistent", "published")
    }
    assert 0.5 < held["published"] / held["consistent"] < 1.5, held
