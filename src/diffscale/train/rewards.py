"""Rewards of a training: verifiers that are timed and checked, and the sum of several in units of their deviation."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, raised
from diffscale.engine.batching import out_of_memory
from diffscale.engine.scoring import score_images
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Verifier


class BadReward(DiffscaleError):
    """A reward is no finite number, or failed."""


@dataclass
class Cost:
    """The seconds that some work took, and how many pictures it was done for."""

    seconds: float = 0.0
    pictures: int = 0

    @contextmanager
    def measured(self, device: torch.device, pictures: int = 0) -> Iterator[None]:
        """Count the work on `device` that is done in the block, unless it fails."""
        began = _now(device)
        yield
        self.seconds += _now(device) - began
        self.pictures += pictures


@dataclass
class Reward:
    """A verifier that raises BadReward for scores that are not finite, and counts what it costs in `cost`."""

    verifier: Verifier
    weight: float = 1.0
    cost: Cost = field(default_factory=Cost)

    @property
    def name(self) -> str:
        return self.verifier.name

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Scores of pictures [B, 3, H, W], with a graph where the verifier keeps one."""
        with self.cost.measured(images.device, len(images)):
            raw = self.scores(images, prompts)
            bad = (~raw.detach().isfinite()).reshape(len(raw), -1).any(1)
            if bool(bad.any()):
                first = int(bad.nonzero()[0])
                raise BadReward(f"the reward {self.name!r} gave {raw[first].tolist()} for {prompts[first]!r}")
        return raw

    def scores(self, images: Tensor, prompts: list[str]) -> Tensor:
        """What the verifier says, finite or not; raises BadReward if it fails. Out of memory passes through."""
        try:
            return score_images(self.verifier, images, prompts)
        except DiffscaleError:
            raise
        except Exception as error:
            if out_of_memory(error):
                raise
            raise BadReward(f"the reward {self.name!r} raised {raised(error)}") from error


class PooledReward(Reward):
    """A reward of several components, see `types.PoolVerifier`."""

    verifier: PoolVerifier  # type: ignore[assignment]

    @property
    def components(self) -> Sequence[str]:
        return self.verifier.components

    def aggregate(self, pool: Tensor) -> Tensor:
        """See `types.PoolVerifier`."""
        return self.verifier.aggregate(pool)


class Mixture:
    """sum_k w_k (r_k - mean_k) / deviation_k over rewards, means and deviations of all that was scored before the step.

    Before anything was, those of the pictures themselves. What is scored counts from the next `end_step` on, so that a
    step's rewards do not depend on the order in which its pictures are scored. `new`: what was scored in this step, to
    be added up over processes: count, sum and sum of squares of each reward, float64 [K, 3].
    """

    def __init__(self, members: Sequence[Reward]) -> None:
        self.members = list(members)
        self.name = "+".join(member.name for member in members)
        self._weights = torch.tensor([member.weight for member in members], dtype=torch.float64)
        self._past, self.new = (torch.zeros(len(members), 3, dtype=torch.float64) for _ in range(2))

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Values float64 [B] of pictures [B, 3, H, W] for their prompts."""
        raw = torch.stack([member(images, prompts).detach().double().cpu() for member in self.members])
        now = torch.stack([torch.full((len(raw),), float(raw.shape[1])), raw.sum(1), raw.square().sum(1)], 1)
        self.new += now
        known = bool((self._past[:, 0] > 1).all())
        count, total, squares = (self._past if known else now).unbind(1)
        mean = total / count
        deviation = (squares / count - mean**2).clamp(min=0).sqrt()
        # What never differed says nothing.
        flat = deviation <= 1e-9 * mean.abs().clamp(min=1e-9)
        scaled = (raw - mean[:, None]) / deviation.masked_fill(flat, torch.inf)[:, None]
        return (scaled * self._weights[:, None]).sum(0)

    def end_step(self, new: Tensor) -> None:
        """The step is over; `new`: that of all processes."""
        self._past += new.to(self._past)
        self.new = torch.zeros_like(self.new)

    def state_dict(self) -> list[list[float]]:
        """Return what a checkpoint keeps."""
        return self._past.tolist()

    def load_state_dict(self, state: list[list[float]]) -> None:
        """Go on from what `state_dict` gave."""
        self._past = torch.tensor(state, dtype=torch.float64)


def load(texts: Sequence[str], device: Any, image_model: str, cost: Cost | None = None) -> list[Reward]:
    """The rewards that "name key=value ... weight=number" say; `image_model`: the base's name, see `verifiers.load`.

    `cost`: of all of them together. Raises DiffscaleError for names and arguments that are none, and for verifiers that
    judge more than single pictures.
    """
    rewards = []
    for text in texts:
        words, weight = split_weight(text)
        verifier = verifiers.load(words, device=device, image_model=image_model)
        if isinstance(verifier, NeedsIntermediateX0 | SetVerifier):
            raise DiffscaleError(f"Verifier {verifier.name!r} judges more than single pictures: reward by another.")
        if isinstance(verifier, PoolVerifier) and len(texts) > 1:
            raise DiffscaleError(f"Verifier {verifier.name!r} is a mixture itself: give it alone, or its members.")
        kind = PooledReward if isinstance(verifier, PoolVerifier) else Reward
        rewards.append(kind(verifier, weight, Cost() if cost is None else cost))
    return rewards


def split_weight(text: str) -> tuple[str, float]:
    """A verifier's own text, and its weight in the mixture; raises DiffscaleError for a weight that is not over 0."""
    words = [word for word in text.split() if not word.startswith("weight=")]
    given = [word.removeprefix("weight=") for word in text.split() if word.startswith("weight=")]
    try:
        weight = float(given[-1]) if given else 1.0
        if not 0 < weight < float("inf"):
            raise ValueError
    except ValueError as error:
        raise DiffscaleError(f"A reward's weight is a number over 0, as in weight=0.5, not {given[-1]!r}.") from error
    return " ".join(words), weight


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
