"""Guards against rewards that are hacked: what held-out verifiers, recall and diversity say on the way of a training.

A reward that is trained on rises in any case. A verifier that takes no part tells whether pictures do get better: by it
the best weights are kept, and the training ends where it falls while the reward rises.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.distances import diversity, recall
from diffscale.train.rewards import split_weight
from diffscale.train.settings import TrainConfig

NEIGHBOURS: Final = 3  # of recall


def check(settings: TrainConfig) -> None:
    """Raises DiffscaleError for a validation verifier that is a reward too, and guards without one."""
    held_out = settings.validation_verifier
    rewards = {split_weight(text)[0].split()[0] for text in settings.rewards}
    if both := [text for text in held_out if text.split()[0] in rewards]:
        raise DiffscaleError(
            f"{both[0]} is a reward, so it cannot tell whether rewards are hacked: give another validation_verifier."
        )
    if (settings.keep_best or settings.patience is not None) and not (held_out and settings.validation_steps):
        raise DiffscaleError(
            "keep_best and patience go by a validation_verifier every so often: give it, and validation_steps."
        )


@torch.no_grad()
def spread(
    extract: Callable[[Tensor], Tensor], base: Sequence[Tensor], images: Sequence[Tensor], prompts: Sequence[str]
) -> dict[str, float]:
    """Recall and diversity of pictures [3, H, W] of `prompts` beside those of the `base`, in features that `extract`s.

    Recall is the share of the base's pictures that lie no further from one of the others than its `NEIGHBOURS`th
    neighbour among these (Kynkaanniemi et al. 2019, arXiv 1904.06991); there must be more of them. Diversity is as of
    `metrics.distances`.
    """
    features, before = (extract(torch.stack([*each])).double().cpu() for each in (images, base))
    found = {}
    if len(images) > NEIGHBOURS:
        found["recall"] = recall(before, features, k=NEIGHBOURS)
    if (apart := diversity(features, prompts)) is not None:
        found["diversity"] = apart
    return found


@dataclass
class Guard:
    """Follows the validations of a training.

    `rewards`: their weights, by name; `held_out`: the name of the verifier that decides, None without one; `keep_best`
    and `patience` as in the settings. `seen`: of each validation its step and the means of what was told; the first
    one, of the base, has the rewards' standard deviations too. `best`: the weights at the best one, on the CPU.
    """

    rewards: Mapping[str, float]
    held_out: str | None
    keep_best: bool = False
    patience: int | None = None
    seen: list[dict[str, Any]] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)

    def see(
        self, step: int, scores: Mapping[str, Sequence[Any]], spread: Mapping[str, float], weights: Mapping[str, Tensor]
    ) -> str:
        """Take what was told of the pictures after `step`; returns why to stop, or nothing.

        `scores`: by verifier, of each picture; those of several components are left out. `spread`: as `spread` gives
        it. `weights`: copies of those that are trained, if the best are to be kept.
        """
        told = {name: values for name, values in scores.items() if np.ndim(values) == 1}
        self.seen.append({"step": step, **{name: float(np.mean(values)) for name, values in told.items()}, **spread})
        if len(self.seen) == 1:
            self.seen[0]["deviations"] = {name: float(np.std(told[name])) for name in self.rewards if name in told}
        if (name := self.held_out) is None:
            return ""
        best = max(self.seen, key=lambda one: float(one[name]))
        if best is self.seen[-1]:
            if self.keep_best:
                self.best = dict(weights)
            return ""
        later = self.seen[self.seen.index(best) + 1 :]
        if self.patience is None or len(later) < self.patience:
            return ""
        if not all(self._rose(best, one) for one in later[-self.patience :]):
            return ""
        return (
            f"The training stopped at step {step}, since {name} fell from {best[name]:.4f} after step {best['step']} "
            f"to {self.seen[-1][name]:.4f} while the reward rose."
        )

    def _rose(self, before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
        """Whether the sum of rewards rose, each in its standard deviation among the pictures of the base."""
        deviations = self.seen[0]["deviations"]
        changes = [self.rewards[name] * (now[name] - before[name]) / (d or 1.0) for name, d in deviations.items()]
        return sum(changes) > 0
