"""Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146): learn from short trajectories that a search selects.

`sharpen-sft` learns from the best trajectory from each picture of a data set; `sharpen-rlhf` prefers the best one from
samples of the model's own to the worst.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError, unknown
from diffscale.train.configs import SharpenRlhfConfig
from diffscale.train.methods.method import Method, RoundMethod, TrainContext
from diffscale.train.policy import Policy
from diffscale.train.selection import Selection, make_trajectories, search_of, select_samples, select_trajectories
from diffscale.train.traits import Sharpening
from diffscale.train.trajectories import Data, Form, Trajectory, batch_of, followed_errors


def sharpen_sft_loss(
    policy: Policy, selection: Selection, form: Form = "consistent"
) -> tuple[Tensor, dict[str, float]]:
    """Mean over the best trajectory's steps of |network(x_t, t, c) - target|^2; scalar, and what to log.

    Diffusion-Sharpening, SFT. `selection`: of `select_trajectories` from the data's latents. In the `form` consistent
    the trajectory is a choice of data: targets lead to the data from wherever the latents are, and no gradient goes
    through its making. `published` is as the authors' code, see `followed_errors`.
    """
    loss = _errors(policy, selection.best, selection.rows, form).mean()
    return loss, {"loss": float(loss.detach()), **_reward_logs(selection)}


def sharpen_rlhf_loss(
    policy: Policy, selection: Selection, beta: float, form: Form = "consistent"
) -> tuple[Tensor, dict[str, float]]:
    """-log sigmoid(beta ((ref_w - ref_l) - (mod_w - mod_l)) - (R_w - R_l)); scalar, mean over rows, and what to log.

    Diffusion-Sharpening, RLHF. `selection`: of the model's own samples; w is the best trajectory and l the worst, mod
    and ref are the squared errors of the trained and of the frozen network, means over the trajectory's steps, and R
    the rewards. `published` is the literal form of the authors' code: the errors of `followed_errors`, the reference at
    the first step only, and the reward gap outside the logarithm, -log sigmoid(...) + (R_w - R_l), where it has no
    gradient. In `consistent` no gradient goes through the trajectories.

    Raises DiffscaleError if a row has but one trajectory.
    """
    if bool((selection.count < 2).any()):
        raise DiffscaleError("Preferring needs two trajectories of a row: give n >= 2, and a search that ends in 2.")
    both, rows = (selection.best, selection.worst), selection.rows
    mod_w, mod_l = (_errors(policy, which, rows, form) for which in both)
    with policy.reference():
        seen = both if form == "consistent" else [[one.first() for one in which] for which in both]
        ref_w, ref_l = (_errors(policy, which, rows, form) for which in seen)
    gap = (selection.reward - selection.lowest).to(mod_w)
    inside = beta * ((ref_w - ref_l) - (mod_w - mod_l))
    each = -F.logsigmoid(inside - gap) if form == "consistent" else -F.logsigmoid(inside) + gap
    loss = each.mean()
    return loss, {
        "loss": float(loss.detach()),
        **_reward_logs(selection),
        "reward_gap": float(gap.mean()),
        "accuracy": float((inside > 0).double().mean()),
    }


def _errors(policy: Policy, trajectories: Sequence[Trajectory], rows: Tensor, form: Form) -> Tensor:
    """Squared errors [B], means over each trajectory's steps."""
    match form:
        case "consistent":
            steps = batch_of(trajectories, rows)
            target = policy.times.consistent_target(steps.x, steps.x0, steps.time)
            return steps.mean(policy.errors(steps.x, steps.time, steps.rows, target))
        case "published":
            return followed_errors(policy, trajectories, rows)
        case other:
            raise unknown("form", other, ("consistent", "published"))


def _reward_logs(selection: Selection) -> dict[str, float]:
    return {
        "reward": float(selection.reward.mean()),
        "reward_mean": float(selection.mean.mean()),
        "reward_std": float(selection.reward.std(correction=0)),
    }


class SharpenSft(Method):
    """Each pass on the best trajectories from a batch of the data."""

    settings: Sharpening

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        self.search = search_of(self.settings.search)

    def gather(self, number: int) -> Selection:
        """The trajectories from the data of the batch that are selected."""
        batch = self.context.use_batch(number)
        return self.select(self.context.data.latents(batch)[:, 0], batch.captions, self.context.keys(number))

    def select(self, latents: Data, captions: list[str], keys: Tensor) -> Selection:
        """Trajectories from clean `latents` [B, ...], or other `Data`, selected by the reward for the `captions`."""
        settings, reward = self.settings, self.context.reward
        assert reward is not None
        return select_trajectories(
            self.policy, reward, latents, self.context.rows, keys, settings.n, settings.m, self.search,
            captions=captions,
        )  # fmt: skip

    def loss(self, gathered: Selection) -> tuple[Tensor, dict[str, float]]:
        return sharpen_sft_loss(self.policy, gathered, self.settings.form)


class SharpenRlhf(RoundMethod, SharpenSft):
    """Each pass on the best and worst trajectories from samples that the model makes for a batch of prompts.

    A round makes the samples of some batches and learns from each of them once in every inner epoch, noised anew.
    By default all trajectories of a row begin from one sample. Where each has a sample of its own (`own_samples` each)
    the selection is by the rewards of the samples, and made with them: at high noise a prediction says little of its
    sample. In the authors' code (`own_samples` published) each begins from an unguided sample of its own, noised with
    the very noise that the sample began from, and the selection is by the trajectories' rewards.
    """

    settings: SharpenRlhfConfig

    def gather(self, number: int) -> Selection:
        """The selected trajectories from the samples of the pass's batch; the samples are made if there are none."""
        round_, _, place = self.settings.place_in_round(number)
        if round_ != self.round:
            self.round, self.samples = round_, {}
        batch_number = round_ * self.settings.batches_per_round + place
        batch = self.context.use_batch(batch_number)
        if self.settings.own_samples == "published":
            return self.select(self.policy.sample, batch.captions, self.context.keys(number))
        samples = [self.samples[name] for name in sorted(self.samples) if name.startswith(f"{place}.")]
        if not samples:
            samples = self.make_samples(batch.captions, self.context.keys(batch_number, "own"))
            if self.settings.num_inner_epochs > 1:
                self.samples |= {f"{place}.{i}": tensor for i, tensor in enumerate(samples)}
        keys, device = self.context.keys(number), self.policy.like.device
        if self.settings.own_samples == "one":
            return self.select(samples[0].to(device), batch.captions, keys)
        best, worst, figures = samples
        rows, x0 = self.context.rows, torch.cat([best, worst]).to(device)
        trajectories = make_trajectories(self.policy, x0, rows.repeat(2), keys.repeat(2), self.settings.m)
        return Selection(rows, trajectories[: len(rows)], trajectories[len(rows) :], *figures.unbind(1))

    def make_samples(self, captions: list[str], keys: Tensor) -> list[Tensor]:
        """Clean latents [B, ...] that the model makes as users call it, of noise by `keys` int64 [B].

        One of each row; or the best and the worst of several, and their figures, see `select_samples`.
        """
        if self.settings.own_samples != "each":
            return [self.context.own_samples(captions, keys)]
        reward, data = self.context.reward, self.context.data
        assert reward is not None
        data.set_own_prompts(captions)
        best, worst, figures = select_samples(data.base.own, reward, keys, self.settings.n, self.search)
        return [best.float().cpu(), worst.float().cpu(), figures]

    def loss(self, gathered: Selection) -> tuple[Tensor, dict[str, float]]:
        return sharpen_rlhf_loss(self.policy, gathered, self.settings.beta, self.settings.form)
