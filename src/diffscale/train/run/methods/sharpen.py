"""Diffusion-Sharpening, step by step: on data, and on samples of the model's own."""

from __future__ import annotations

import hashlib
from functools import partial

import torch
from torch import Tensor

from diffscale.named import parse
from diffscale.searches import SEARCHES
from diffscale.train.choosing import Chosen, Own, choose
from diffscale.train.run.methods.stage import Method, Stage
from diffscale.train.sharpen_rlhf import BETA, own_samples, sharpen_rlhf_loss
from diffscale.train.sharpen_sft import sharpen_sft_loss


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

    def chosen(
        self, latents: Tensor | Own, captions: list[str], keys: Tensor, search_keys: Tensor | None = None
    ) -> Chosen:
        """Trajectories from clean `latents` as `choose` takes them, chosen by the reward for the `captions`."""
        settings, reward = self.stage.settings, self.stage.reward
        assert reward is not None
        return choose(
            self.stage.policy, reward, latents, self.stage.rows, keys, settings.n, settings.m, self._search,
            captions=captions, search_keys=search_keys,
        )  # fmt: skip

    def loss(self, gathered: Chosen) -> tuple[Tensor, dict[str, float]]:
        """See `sharpen_sft_loss`."""
        loss, logs = sharpen_sft_loss(self.stage.policy, gathered, self.stage.settings.form)
        return loss, {**logs, **_spread(gathered)}


class SharpenRlhf(SharpenSft):
    """Each pass on the best and worst trajectories from samples that the model makes for a batch of prompts.

    A round makes the samples of some batches and learns from each of them once in every inner epoch. A checkpoint
    within a round holds what it sampled.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        self._round, self._held = -1, dict[str, Tensor]()

    def gather(self, number: int) -> Chosen:
        """Trajectories from samples of the model as it is called by users, and as it was when the round began."""
        settings, materials = self.stage.settings, self.stage.materials
        step = settings.train_batch_size * settings.gradient_accumulation_steps
        size = (settings.samples_per_round or step) // settings.train_batch_size
        round_, within = divmod(number, size * settings.num_inner_epochs)
        if round_ != self._round:
            self._round, self._held = round_, {}
        place = round_ * size + within % size
        batch = materials.batches.at(place)
        materials.tell_own(batch.captions)
        materials.tell(batch)
        keys, own = self.stage.keys(number), self.stage.keys(place, "own")
        if settings.own_samples == "each":
            return self.chosen(self._own, batch.captions, keys, own)
        latents = self._own(self.stage.policy.prior(own), own, self.stage.rows)
        return self.chosen(latents, batch.captions, keys)

    def state_dict(self) -> dict[str, Tensor]:
        return {**self._held, "round": torch.tensor(self._round)} if self._held else {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self._held = {name: tensor for name, tensor in state.items() if name != "round"}
            self._round = int(state["round"])

    def _own(self, unit: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        """Samples from `unit` noise [B, ...], those that the round has already as they are."""
        names = [hashlib.sha256(one.numpy().tobytes()).hexdigest() for one in unit.float().cpu()]
        missing = [i for i, name in enumerate(names) if name not in self._held]
        made = self._held
        if missing:
            sampler, like = self.stage.materials.base.own, self.stage.policy.like
            latents = own_samples(sampler, unit[missing].to(like), keys[missing], rows[missing]).float().cpu()
            made = made | {names[i]: latents[at] for at, i in enumerate(missing)}
        if self.stage.settings.num_inner_epochs > 1:
            self._held = made
        return torch.stack([made[name] for name in names]).to(unit)

    def loss(self, gathered: Chosen) -> tuple[Tensor, dict[str, float]]:
        """See `sharpen_rlhf_loss`."""
        settings = self.stage.settings
        loss, logs = sharpen_rlhf_loss(self.stage.policy, gathered, settings.beta or BETA, settings.form)
        return loss, {**logs, **_spread(gathered)}


def _spread(chosen: Chosen) -> dict[str, float]:
    return {"reward_std": float(chosen.reward.std(correction=0))}
