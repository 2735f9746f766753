"""IterPO, turn by turn: the model follows the rewards, and the rewards learn from its pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import Parameter

from diffscale._util.errors import DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale.engine import noise
from diffscale.train import rewards
from diffscale.train.losses.iterpo import iterpo_loss
from diffscale.train.losses.refining import Gallery, refine
from diffscale.train.methods.method import Method, Stage
from diffscale.types import PoolVerifier, Refinable

Gathered = tuple[Tensor, list[str]]


class Iterpo(Method):
    """Each pass follows the rewards' gradients on a batch of prompts.

    With `refine_by` a gallery of prompts is sampled before the first step and again every `refine_every` steps; another
    verifier ranks the pictures, in the place of people, and the rewards are trained on all pairs of the gallery.
    """

    def __init__(self, stage: Stage) -> None:
        super().__init__(stage)
        if any(reward.weight != 1 for reward in stage.rewards):
            raise DiffscaleError("iterpo adds up its rewards as they are: leave their weights out.")
        self._gallery: Gallery | None = None
        self._first: dict[str, Tensor] = {}
        settings = stage.settings
        if settings.refine_by is None:
            return
        device, name = stage.policy.like.device, stage.materials.base.name
        [self._ranker] = rewards.load([settings.refine_by], device, rewards.image_model(name))
        if isinstance(self._ranker.verifier, PoolVerifier):
            raise DiffscaleError(f"Verifier {self._ranker.name!r} has no rank of a picture alone: refine by another.")
        self._first = self._copies()

    def gather(self, number: int) -> Gathered:
        """Keys [B], and the captions that rewards are told; the policy is told the batch."""
        settings = self.stage.settings
        if settings.refine_by is not None:
            step, within = divmod(number, self.passes)
            turn, since = divmod(step, settings.refine_every)
            done = -1 if self._gallery is None else len(self._gallery.pictures) - 1
            if not within and not since and turn > done:
                self._turn(turn)
        captions = self.stage.batch(number).captions
        return self.stage.keys(number), captions

    def loss(self, gathered: Gathered) -> tuple[Tensor, dict[str, float]]:
        """See `iterpo_loss`."""
        keys, captions = gathered
        return iterpo_loss(self.stage.policy, self.stage.rewards, self.stage.rows, keys, captions=captions)

    @contextmanager
    def measuring(self) -> Iterator[None]:
        """Within it the rewards are what they were before the training."""
        now = self._copies() if self._first else {}
        self._fill(self._first)
        try:
            yield
        finally:
            self._fill(now)

    def state_dict(self) -> dict[str, Tensor]:
        if self._gallery is None:
            return {}
        return {"gallery.pictures": self._gallery.pictures, "gallery.ranks": self._gallery.ranks, **self._copies()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self._gallery = Gallery(self._prompts, state.pop("gallery.pictures"), state.pop("gallery.ranks"))
            self._fill(state)

    @cached_property
    def _prompts(self) -> list[str]:
        """Of the gallery: some of the data."""
        every, root = list(dict.fromkeys(self.stage.materials.dataset.prompts)), noise.root(self.stage.settings.seed)
        keys = {prompt: noise.fold(root, "gallery", prompt) for prompt in every}
        return sorted(every, key=keys.__getitem__)[: self.stage.settings.refine_prompts]

    def _turn(self, turn: int) -> None:
        """Pictures of the model as it is join the gallery; from the second time on the rewards learn from it."""
        settings, prompts = self.stage.settings, self._prompts
        order = self.stage.materials.batches.order
        mine = range(order.process, len(prompts), order.processes)
        size, made = settings.train_batch_size, list[tuple[int, Tensor, float]]()
        for start in range(0, len(mine), size):
            made += self._shown(turn, mine[start : start + size], prompts)
        # A picture each, by place, from all processes.
        every = sorted(self.stage.shared(made), key=lambda one: one[0])
        pictures, ranks = torch.stack([one[1] for one in every]), torch.tensor([one[2] for one in every]).double()
        if self._gallery is None:
            self._gallery = Gallery(prompts, pictures[None], ranks[None])
        else:
            self._gallery = self._gallery.joined(pictures, ranks)
        for number, verifier in enumerate(self._refined() if turn else ()):
            key = noise.fold(noise.root(settings.seed), "refining", turn, number)
            refine(verifier, self._gallery, key, settings.refine_epochs, settings.refine_learning_rate)
        if turn and order.processes > 1:
            # Sums may come in another order elsewhere: the first process decides.
            self._fill(self.stage.shared([{} if order.process else self._copies()])[0])

    @torch.no_grad()
    def _shown(self, turn: int, part: range, prompts: list[str]) -> list[tuple[int, Tensor, float]]:
        """Places, pictures uint8 [3, H, W] and ranks of some prompts of the gallery."""
        told = [prompts[i] for i in part]
        materials, root = self.stage.materials, noise.root(self.stage.settings.seed)
        materials.tell_own(told)
        keys = torch.tensor([noise.fold(root, "gallery", turn, prompt) for prompt in told])
        sampler = materials.base.own
        images = sampler.decode(sampler.run(sampler.prior(keys, torch.arange(len(told)))).x)
        pictures = eight_bit(images)
        ranks = self._ranker(pictures.to(images.device).float() / 255, told).double().flatten().tolist()
        return list(zip(part, pictures, ranks, strict=True))

    def _refined(self) -> list[Refinable]:
        found = []
        for reward in self.stage.rewards:
            if not isinstance(reward.verifier, Refinable):
                raise DiffscaleError(
                    f"Verifier {reward.name!r} cannot be refined: reward by clip, pick_score, hps, aesthetic or "
                    "image_reward, or leave refine_by out."
                )
            found.append(reward.verifier)
        return found

    def _weights(self) -> dict[str, Parameter]:
        """Of all rewards, by name."""
        every = [list(verifier.weights()) for verifier in self._refined()]
        return {f"reward.{number}.{i}": weight for number, own in enumerate(every) for i, weight in enumerate(own)}

    def _copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().cpu().clone() for name, weight in self._weights().items()}

    @torch.no_grad()
    def _fill(self, tensors: dict[str, Tensor]) -> None:
        if tensors:
            for name, weight in self._weights().items():
                weight.copy_(tensors[name])
