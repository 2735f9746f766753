"""What workers give back: of a micro-batch that is done, and of one whose pictures are still to be scored."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffscale.engine.wanted import Picture
from diffscale.types import Stage


@dataclass
class Output:
    """What one micro-batch of B rows gave and took.

    `tensors`: the answer by name, [B, ...] each; of finished candidates also `choice`, what the chooser gave them,
    shaped as its scores. `pictures`: of finished candidates, what was wanted of each. `images` [B, 3, H, W]: all of
    them as they are, for observers, where there are any. `forwards`: rows sent through the network, with
    `flops_per_forward` each. `decodes`, `scheduler_steps`: those of one row.
    """

    tensors: dict[str, Tensor]
    pictures: Sequence[Picture] | None = None
    images: Tensor | None = None
    decodes: int = 0
    scheduler_steps: int = 0
    verifier_flops: float = 0.0
    forwards: int = 0
    flops_per_forward: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def costs(self, rows: slice, size: int) -> dict[str, float]:
        """What `rows` took of all that the micro-batch of `size` rows did, named as in the ledger."""
        count, forwards = rows.stop - rows.start, _share(self.forwards, rows, size)
        return {
            "network_forwards": forwards,
            "flops": forwards * self.flops_per_forward,
            "scheduler_steps": count * self.scheduler_steps,
            "decodes": count * self.decodes,
            "verifier_calls": count * sum(name in self.tensors for name in ("scores", "choice")),
            "comparisons": count if "probabilities" in self.tensors else 0,
            "verifier_flops": self.verifier_flops * count / size,
            **{f"seconds.{kind}": seconds * count / size for kind, seconds in self.seconds.items()},
        }


@dataclass
class Sampled:
    """Pictures [B, 3, H, W] (or frames of videos) that a verifier is still to score.

    `recorded`: the pictures of recorded x0-predictions, alike, where they are asked for. `flagged`: bool [B], what a
    safety checker took out. `prompts`: what verifiers are told. `stage`: how far they are, None for finished ones,
    whose `latents` are [B, ...]. `output`: what they took so far, to which the scores are added.
    """

    images: Tensor
    recorded: list[Tensor]
    flagged: Tensor
    prompts: list[str]
    stage: Stage | None
    latents: Tensor | None
    output: Output

    def rows(self, part: slice, count: int) -> Sampled:
        """Those of `part`, of `count` rows in all, with their share of the costs."""
        share = (part.stop - part.start) / count
        output = replace(
            self.output,
            forwards=_share(self.output.forwards, part, count),
            seconds={kind: seconds * share for kind, seconds in self.output.seconds.items()},
        )
        return replace(
            self,
            images=self.images[part],
            recorded=[each[part] for each in self.recorded],
            flagged=self.flagged[part],
            prompts=self.prompts[part],
            latents=None if self.latents is None else self.latents[part],
            output=output,
        )


def _share(total: int, rows: slice, size: int) -> int:
    """The share that `rows` have in the `total` of `size` rows.

    They are differences of rounded totals, so that the shares add up to what was counted.
    """
    return total * rows.stop // size - total * rows.start // size


def joined(outputs: Sequence[Output]) -> Output:
    """The output of all rows of two or more micro-batches of the same kind, end to end."""
    first = outputs[0]
    kinds = {kind for each in outputs for kind in each.seconds}
    return replace(
        first,
        tensors={name: torch.cat([each.tensors[name] for each in outputs]) for name in first.tensors},
        pictures=None if first.pictures is None else [one for each in outputs for one in each.pictures or ()],
        images=None if first.images is None else torch.cat([e.images for e in outputs if e.images is not None]),
        verifier_flops=sum(each.verifier_flops for each in outputs),
        forwards=sum(each.forwards for each in outputs),
        seconds={kind: sum(each.seconds.get(kind, 0.0) for each in outputs) for kind in kinds},
    )


class Clock:
    """Laps by kind; waits for CUDA, which runs behind Python's back."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, kind: str, result: Tensor) -> None:
        """Give the time since the last lap to `kind`, once `result` is computed."""
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._last
        self._last = now
