"""What scores and compares the pictures of micro-batches: a verifier, and a chooser where there is one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from diffscale.engine.flops import count_flops
from diffscale.engine.leaderboard import by_rows
from diffscale.engine.output import Clock, Output, Sampled
from diffscale.engine.scoring import at_stage, frame_strip, safe_compare, score_rows, score_unflagged
from diffscale.engine.ties import Pairs
from diffscale.engine.wanted import deal_pictures
from diffscale.engine.work import Job
from diffscale.types import Compares, NeedsIntermediateX0, Verifier


class VerifierWorker:
    """Scores pictures by `verifier`, and what is finished by `chooser` too."""

    def __init__(self, verifier: Verifier, chooser: Verifier | None = None) -> None:
        self.verifier, self.chooser = verifier, chooser

    def judge(self, sampled: Sampled, job: Job) -> Output:
        """The output that `sampled` has, with scores, and with the pictures that `job` wants of what is finished."""
        clock, output = Clock(), sampled.output
        finished = sampled.stage is None
        verifier = self.verifier if sampled.stage is None else at_stage(self.verifier, sampled.stage)
        images, prompts = sampled.images, sampled.prompts
        with count_flops() as counter:
            scores = score_unflagged(sampled.flagged, verifier, images, prompts, *asked(verifier, sampled.recorded))
            choice = self.choice(scores, images, prompts, sampled.recorded) if finished else {}
        clock.lap("verify", images)
        output.tensors = {"scores": scores, **choice}
        output.verifier_flops += counter.total
        output.seconds = output.seconds | clock.seconds
        if sampled.latents is not None:
            hand_in_pictures(output, job, images, sampled.latents)
        return output

    def choice(
        self, scores: Tensor, images: Tensor, prompts: list[str], recorded: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """What the chooser gives finished pictures, -inf for those that `scores` drop; empty without a chooser."""
        if self.chooser is None:
            return {}
        usable = scores.view(len(scores), -1).isfinite().all(1)
        return {"choice": score_rows(usable, self.chooser, images, prompts, *asked(self.chooser, recorded))}

    def compare(self, pairs: Pairs) -> Output:
        """The probability that the first of each of the `pairs` is better."""
        clock = Clock()
        ranker = self.verifier if self.chooser is None else self.chooser
        assert isinstance(ranker, Compares)
        with count_flops() as counter:
            probabilities = safe_compare(ranker, pairs.side(0), pairs.side(1), list(pairs.prompts))
        clock.lap("verify", probabilities)
        return Output({"probabilities": probabilities}, verifier_flops=counter.total, seconds=clock.seconds)


def hand_in_pictures(output: Output, job: Job, images: Tensor, latents: Tensor) -> None:
    """Put what `job` wants of finished pictures into the `output` that has their scores."""
    scores = by_rows(output.tensors["scores"])
    ranking = by_rows(output.tensors["choice"]) if "choice" in output.tensors else scores
    # Whatever they are ranked by, those that the verifier drops are not chosen.
    ranking = ranking.masked_fill(~scores.isfinite().all(1, keepdim=True), -math.inf)
    strips = frame_strip(images)
    output.pictures = deal_pictures(job.wanted, ranking, strips, latents)
    output.images = strips if job.images else None


def asked(verifier: Verifier, recorded: Sequence[Tensor]) -> Sequence[Tensor]:
    """Those pictures of recorded x0-predictions that `verifier` is called with."""
    return recorded if isinstance(verifier, NeedsIntermediateX0) else ()
