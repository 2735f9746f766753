"""Diffusion-Sharpening, step by step: on data, and on samples of the model's own."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from diffscale import noise
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

    def chosen(self, latents: Tensor | Own, captions: list[str], keys: Tensor) -> Chosen:
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
    """Each pass on the best and worst trajectories from samples that the model makes for a batch of prompts."""

    def gather(self, number: int) -> Chosen:
        """Trajectories from samples of the model as it is now, as it is called by users, chosen."""
        materials, keys = self.stage.materials, self.stage.keys(number)
        batch = materials.batches.at(number)
        materials.tell_own(batch.captions)
        materials.tell(batch)
        if self.stage.settings.own_samples == "each":
            return self.chosen(self._own, batch.captions, keys)
        own = noise.fold_rows(keys, "own")
        latents = self._own(self.stage.policy.prior(own), own, self.stage.rows)
        return self.chosen(latents, batch.captions, keys)

    def _own(self, unit: Tensor, keys: Tensor, rows: Tensor) -> Tensor:
        sampler = self.stage.materials.base.own
        return own_samples(sampler, unit.to(self.stage.policy.like), keys, rows).float()

    def loss(self, gathered: Chosen) -> tuple[Tensor, dict[str, float]]:
        """See `sharpen_rlhf_loss`."""
        settings = self.stage.settings
        loss, logs = sharpen_rlhf_loss(self.stage.policy, gathered, settings.beta or BETA, settings.form)
        return loss, {**logs, **_spread(gathered)}


def _spread(chosen: Chosen) -> dict[str, float]:
    return {"reward_std": float(chosen.reward.std(correction=0))}
