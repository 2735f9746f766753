"""Diffusion-Sharpening, step by step: on data, and on samples of the model's own."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from diffscale.registry import parse
from diffscale.searches import SEARCHES
from diffscale.train.configs import TrainConfig
from diffscale.train.losses.sharpen_rlhf import BETA, own_samples, sharpen_rlhf_loss
from diffscale.train.losses.sharpen_sft import sharpen_sft_loss
from diffscale.train.methods.method import Method, Stage
from diffscale.train.selection import Chosen, choose, choose_samples, trajectories


class SharpenSft(Method):
    """Each pass on the best trajectories from a batch of the data."""

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._search = None
        if stage.settings.search is not None:
            name, options = parse(stage.settings.search, "search", SEARCHES)
            self._search = partial(SEARCHES[name], **options)

    def gather(self, number: int) -> Chosen:
        """Trajectories from the data, chosen."""
        batch = self.stage.batch(number)
        return self.chosen(self.stage.materials.latents(batch)[:, 0], batch.captions, self.stage.keys(number))

    def chosen(self, latents: Tensor, captions: list[str], keys: Tensor) -> Chosen:
        """Trajectories from clean `latents` as `choose` takes them, chosen by the reward for the `captions`."""
        settings, reward = self.stage.settings, self.stage.reward
        assert reward is not None
        return choose(
            self.stage.policy, reward, latents, self.stage.rows, keys, settings.n, settings.m, self._search,
            captions=captions,
        )  # fmt: skip

    def loss(self, gathered: Chosen) -> tuple[Tensor, dict[str, float]]:
        """See `sharpen_sft_loss`."""
        loss, logs = sharpen_sft_loss(self.stage.policy, gathered, self.stage.settings.form)
        return loss, {**logs, **_spread(gathered)}


class SharpenRlhf(SharpenSft):
    """Each pass on the best and worst trajectories from samples that the model makes for a batch of prompts.

    A round makes the samples of some batches and learns from each of them once in every inner epoch, noised anew. Where
    every trajectory has a sample of its own the choice is by the rewards of the samples, and made with them: at high
    noise a prediction says little of its sample. A checkpoint within a round holds what later epochs need.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._round, self._held = -1, dict[str, Tensor]()

    def gather(self, number: int) -> Chosen:
        """Trajectories from samples of the model as it is called by users, made in the first epoch of the round."""
        settings, materials = self.stage.settings, self.stage.materials
        round_, _, within = placed(settings, number)
        if round_ != self._round:
            self._round, self._held = round_, {}
        place = round_ * batches(settings) + within
        batch = materials.batches.at(place)
        materials.tell_own(batch.captions)
        materials.tell(batch)
        made = self._each if settings.own_samples == "each" else self._one
        return made(str(within), batch.captions, self.stage.keys(number), self.stage.keys(place, "own"))

    def _one(self, name: str, captions: list[str], keys: Tensor, own: Tensor) -> Chosen:
        """From one sample of each row."""
        held = self._held.get(name)
        if held is None:
            held = self._sampled(self.stage.policy.prior(own), own, self.stage.rows)
            self._hold(**{name: held})
        return self.chosen(held.to(self.stage.policy.like.device), captions, keys)

    def _each(self, name: str, captions: list[str], keys: Tensor, own: Tensor) -> Chosen:
        """From the best and the worst of several samples of each row, noised alike."""
        settings, policy, rows = self.stage.settings, self.stage.policy, self.stage.rows
        names = [f"{name}.{part}" for part in ("best", "worst", "figures")]
        held = [self._held[each] for each in names if each in self._held]
        if not held:
            sampler, reward = self.stage.materials.base.own, self.stage.reward
            assert reward is not None
            found = choose_samples(sampler, reward, own, settings.n, self._search)
            held = [found[0].float().cpu(), found[1].float().cpu(), found[2]]
            self._hold(**dict(zip(names, held, strict=True)))
        best, worst, figures = held
        x0 = torch.cat([best, worst]).to(policy.like.device)
        visits = trajectories(policy, x0, rows.repeat(2), keys.repeat(2), settings.m)
        return Chosen(rows, visits[: len(rows)], visits[len(rows) :], *figures.unbind(1))

    def _hold(self, **tensors: Tensor) -> None:
        if self.stage.settings.num_inner_epochs > 1:
            self._held |= tensors

    def _sampled(self, unit: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        like = self.stage.policy.like
        return own_samples(self.stage.materials.base.own, unit.to(like), keys, rows).to(unit)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._held, "round": torch.tensor(self._round)} if self._held else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self._held = {name: tensor for name, tensor in state.items() if name != "round"}
            self._round = int(state["round"])

    def loss(self, gathered: Chosen) -> tuple[Tensor, dict[str, float]]:
        """See `sharpen_rlhf_loss`."""
        settings = self.stage.settings
        loss, logs = sharpen_rlhf_loss(self.stage.policy, gathered, settings.beta or BETA, settings.form)
        return loss, {**logs, **_spread(gathered)}


def batches(settings: TrainConfig) -> int:
    """That a round of RLHF sharpening makes samples for."""
    step = settings.train_batch_size * settings.gradient_accumulation_steps
    return (settings.samples_per_round or step) // settings.train_batch_size


def placed(settings: TrainConfig, number: int) -> tuple[int, int, int]:
    """Round, inner epoch and batch of the round of pass `number` of RLHF sharpening, from 0; epoch 0 makes samples."""
    size = batches(settings)
    round_, within = divmod(number, size * settings.num_inner_epochs)
    return round_, *divmod(within, size)


def _spread(chosen: Chosen) -> dict[str, float]:
    return {"reward_std": float(chosen.reward.std(correction=0))}
