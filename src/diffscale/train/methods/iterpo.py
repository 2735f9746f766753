"""IterPO, turn by turn: the model follows differentiable rewards, and the rewards learn from its pictures.

Reward feedback learning as IterComp has it (Zhang et al. 2024, arXiv 2410.07171, and its authors' code).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Final

import torch
from accelerate.utils import gather_object
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale._util.pixels import eight_bit
from diffscale.engine import noise
from diffscale.engine.scoring import score_images
from diffscale.train import rewards
from diffscale.train.configs import IterpoConfig
from diffscale.train.methods.method import Method, TrainContext
from diffscale.train.policy import Policy
from diffscale.types import NeedsIntermediateX0, PoolVerifier, Refinable, SetVerifier, Verifier

MARGIN: Final = 2.0
SCALE: Final = 1e-3
LATE: Final = 0.25
PAIRS: Final = 8
"""Pairs of pictures in a step of a reward's training."""


def iterpo_loss(
    policy: Policy,
    verifiers: Sequence[Verifier],
    rows: Tensor,
    keys: Tensor,
    scale: float = SCALE,
    captions: Sequence[str] | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """scale * mean of sum_k relu(2 - r_k) of x0-predictions at a late step; scalar, and what to log.

    Sample without noise to a random step of the last quarter (30 to 39 of 40), and follow the rewards' gradient through
    that one evaluation and the decoder. `verifiers`: differentiable ones of single pictures, in units in which 2 is
    high, as ImageReward's. `rows` int64 [B]: prompts; all draws are functions of `keys` int64 [B]; the step is that of
    the first key. `captions`: what the verifiers are told of each row, by default its prompt, which may have been left
    out for the network alone.

    Raises DiffscaleError for verifiers without gradient.
    """
    for verifier in verifiers:
        if isinstance(verifier, PoolVerifier | NeedsIntermediateX0 | SetVerifier):
            raise DiffscaleError(f"Verifier {verifier.name!r} gives no gradient: name its members one by one.")
    grid = policy.grid()
    late = max(1, round(LATE * len(grid)))
    last = len(grid) - late + int(float(noise.uniform(noise.fold_rows(keys[:1], "stop"))) * late)
    x = _denoised(policy, rows, keys, grid[: last + 1])
    now = grid[last].repeat(len(rows))
    x0 = policy.times.clean(x, policy.output(x, now, rows), now)
    pictures = policy.decode(x0)
    prompts = [policy.prompts[row] for row in rows.tolist()] if captions is None else list(captions)
    each = [score_images(verifier, pictures, prompts).to(x0) for verifier in verifiers]
    for verifier, reward in zip(verifiers, each, strict=True):
        if not reward.requires_grad:
            raise DiffscaleError(f"Verifier {verifier.name!r} gives no gradient: train with another, or by DDPO.")
    values = torch.stack(each)
    loss = scale * F.relu(MARGIN - values).sum(0).mean()
    logs = {f"reward_{v.name}": float(r.detach().mean()) for v, r in zip(verifiers, each, strict=True)}
    together = values.detach().mean(0)
    spread = {"reward": float(together.mean()), "reward_std": float(together.std(correction=0))}
    return loss, {"loss": float(loss.detach()), **logs, **spread}


@torch.no_grad()
def _denoised(policy: Policy, rows: Tensor, keys: Tensor, grid: Tensor) -> Tensor:
    """Latents [B, ...] at the last time of `grid`, from noise at its first."""
    x = policy.prior(noise.fold_rows(keys, "start"))
    for here, there in pairwise(grid):
        time, to = here.repeat(len(x)), there.repeat(len(x))
        x0 = policy.times.clean(x, policy.output(x, time, rows), time)
        x = policy.times.step_mean_and_std(x, x0, time, to, 0.0)[0]
    return x


@dataclass(frozen=True)
class Gallery:
    """Pictures uint8 [V, G, 3, H, W] of G `prompts` by V models, one after the other, and their `ranks` float64 [V, G].

    The higher rank of a prompt is the better picture. In IterComp the gallery expands by the new model's pictures, and
    the rewards are refined on it.
    """

    prompts: list[str]
    pictures: Tensor
    ranks: Tensor

    def pairs(self) -> Tensor:
        """All pairs of pictures of a prompt that differ in rank: prompt, better and worse model, int64 [P, 3]."""
        better, worse, prompt = (self.ranks[:, None] > self.ranks[None]).nonzero().unbind(1)
        return torch.stack([prompt, better, worse], 1)


def ranking_loss(verifier: Verifier, better: Tensor, worse: Tensor, prompts: list[str]) -> Tensor:
    """-log sigmoid(r(better) - r(worse)), mean over pairs of pictures [B, 3, H, W] in [0, 1] for the same prompts.

    How IterComp (Zhang et al. 2024, arXiv 2410.07171) and ImageReward train their rewards.
    """
    return -F.logsigmoid(score_images(verifier, better, prompts) - score_images(verifier, worse, prompts)).mean()


def refine(verifier: Refinable, gallery: Gallery, key: int, epochs: int, rate: float) -> None:
    """Train `verifier` on all pairs of `gallery`, `epochs` times, by AdamW at the learning rate `rate`.

    The order of pairs is a function of `key`.
    """
    pairs, weights = gallery.pairs(), list(verifier.weights())
    for weight in weights:
        weight.requires_grad_(True)
    try:
        optimizer = torch.optim.AdamW(weights, lr=rate)
        for epoch in range(epochs):
            for part in noise.permutation(noise.fold(key, "epoch", epoch), len(pairs)).split(PAIRS):
                prompt, *models = pairs[part].unbind(1)
                better, worse = (gallery.pictures[each, prompt].to(weights[0].device).float() / 255 for each in models)
                loss = ranking_loss(verifier, better, worse, [gallery.prompts[i] for i in prompt.tolist()])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    finally:
        for weight in weights:
            weight.requires_grad_(False).grad = None


class Iterpo(Method):
    """Each pass follows the rewards' gradients on a batch of prompts.

    With `refine_by` a gallery of prompts is sampled before the first step and again every `refine_every` steps; another
    verifier ranks the pictures, in the place of people, and the rewards are trained on all pairs of the gallery.
    """

    settings: IterpoConfig

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        if any(reward.weight != 1 for reward in context.rewards):
            raise DiffscaleError("iterpo adds up its rewards as they are: leave their weights out.")
        self._gallery: Gallery | None = None
        self._original: dict[str, Tensor] = {}
        if self.settings.refine_by is None:
            return
        device, name = self.policy.like.device, context.data.base.name
        [self._ranker] = rewards.load([self.settings.refine_by], device, name)
        if isinstance(self._ranker.verifier, PoolVerifier):
            raise DiffscaleError(f"Verifier {self._ranker.name!r} has no rank of a picture alone: refine by another.")
        self._original = self._weight_copies()

    def gather(self, number: int) -> tuple[Tensor, list[str]]:
        """Keys [B], and the captions that rewards are told; where it is time the rewards are refined first."""
        if self.settings.refine_by is not None:
            step, within = divmod(number, self.passes)
            turn, since = divmod(step, self.settings.refine_every)
            done = -1 if self._gallery is None else len(self._gallery.pictures) - 1
            if not within and not since and turn > done:
                self._refine_rewards(turn)
        captions = self.context.use_batch(number).captions
        return self.context.keys(number), captions

    def loss(self, gathered: tuple[Tensor, list[str]]) -> tuple[Tensor, dict[str, float]]:
        keys, captions = gathered
        return iterpo_loss(self.policy, self.context.rewards, self.context.rows, keys, captions=captions)

    @contextmanager
    def original_rewards(self) -> Iterator[None]:
        """Give the rewards the weights that they had before the training, until the block ends."""
        refined = self._weight_copies() if self._original else {}
        self._load_weights(self._original)
        try:
            yield
        finally:
            self._load_weights(refined)

    def state_dict(self) -> dict[str, Tensor]:
        if self._gallery is None:
            return {}
        gallery = {"gallery.pictures": self._gallery.pictures, "gallery.ranks": self._gallery.ranks}
        return {**gallery, **self._weight_copies()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state:
            self._gallery = Gallery(self._prompts, state.pop("gallery.pictures"), state.pop("gallery.ranks"))
            self._load_weights(state)

    @cached_property
    def _prompts(self) -> list[str]:
        """The prompts of the gallery, which are some of the data."""
        every, root = dict.fromkeys(self.context.data.dataset.prompts), noise.root(self.settings.seed)
        return sorted(every, key=lambda prompt: noise.fold(root, "gallery", prompt))[: self.settings.refine_prompts]

    def _refine_rewards(self, turn: int) -> None:
        """Pictures of the model as it is join the gallery; from the second time on the rewards learn from it."""
        settings, order = self.settings, self.context.data.batches.order
        places = range(order.process, len(self._prompts), order.processes)
        shown = list[tuple[int, Tensor, float]]()
        for start in range(0, len(places), settings.train_batch_size):
            shown += self._ranked_pictures(turn, places[start : start + settings.train_batch_size])
        # A picture each, by place, from all processes.
        _, new_pictures, new_ranks = zip(*sorted(gather_object(shown), key=lambda one: one[0]), strict=True)
        pictures, ranks = torch.stack(new_pictures)[None], torch.tensor([new_ranks], dtype=torch.float64)
        if self._gallery is not None:
            pictures = torch.cat([self._gallery.pictures, pictures])
            ranks = torch.cat([self._gallery.ranks, ranks])
        self._gallery = Gallery(self._prompts, pictures, ranks)
        for number, verifier in enumerate(self._refinable() if turn else ()):
            key = noise.fold(noise.root(settings.seed), "refining", turn, number)
            refine(verifier, self._gallery, key, settings.refine_epochs, settings.refine_learning_rate)
        if turn and order.processes > 1:
            # Sums may come in another order elsewhere: the first process decides.
            self._load_weights(gather_object([{} if order.process else self._weight_copies()])[0])

    @torch.no_grad()
    def _ranked_pictures(self, turn: int, places: range) -> list[tuple[int, Tensor, float]]:
        """Places, pictures uint8 [3, H, W] and ranks of some prompts of the gallery."""
        prompts, root = [self._prompts[i] for i in places], noise.root(self.settings.seed)
        self.context.data.set_own_prompts(prompts)
        keys = torch.tensor([noise.fold(root, "gallery", turn, prompt) for prompt in prompts])
        sampler = self.context.data.base.own
        images = sampler.decode(sampler.run(sampler.prior(keys, torch.arange(len(prompts)))).x)
        pictures = eight_bit(images)
        ranks = self._ranker(pictures.to(images.device).float() / 255, prompts).double().flatten().tolist()
        return list(zip(places, pictures, ranks, strict=True))

    def _refinable(self) -> list[Refinable]:
        verifiers = [reward.verifier for reward in self.context.rewards]
        for verifier in verifiers:
            if not isinstance(verifier, Refinable):
                raise DiffscaleError(
                    f"Verifier {verifier.name!r} cannot be refined: reward by clip, pick_score, hps, aesthetic or "
                    "image_reward, or leave refine_by out."
                )
        return [verifier for verifier in verifiers if isinstance(verifier, Refinable)]

    def _weights(self) -> dict[str, Parameter]:
        """The weights of all rewards, by name."""
        every = enumerate(self._refinable())
        return {f"reward.{number}.{i}": w for number, verifier in every for i, w in enumerate(verifier.weights())}

    def _weight_copies(self) -> dict[str, Tensor]:
        return {name: weight.detach().cpu().clone() for name, weight in self._weights().items()}

    @torch.no_grad()
    def _load_weights(self, tensors: dict[str, Tensor]) -> None:
        for name, weight in self._weights().items() if tensors else ():
            weight.copy_(tensors[name])
