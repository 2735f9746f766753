"""What computes micro-batches on one device, with a sampler and a verifier beside it."""

from __future__ import annotations

import math
from typing import Self

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, Unsuited, raised
from diffscale.engine.batching import out_of_memory
from diffscale.engine.flops import count_flops
from diffscale.engine.output import Clock, Output, Sampled
from diffscale.engine.sampler_worker import SamplerWorker
from diffscale.engine.scoring import (
    at_stage,
    finite_pictures,
    recording_of,
    score_images,
    usable_scores,
    warn_of_flagged,
)
from diffscale.engine.ties import Compare
from diffscale.engine.verifier_worker import VerifierWorker, asked, hand_in_pictures
from diffscale.engine.work import Job
from diffscale.types import ChecksPictures, Gradient, PoolVerifier, PredictGradient, Request, Sampler, Verifier


class Worker:
    """Computes requests of any kind by `sampling`, and scores pictures by `judging`.

    Where one of them is None, that is done elsewhere: pictures are then handed on as they are, or come from there.
    """

    def __init__(self, sampling: SamplerWorker | None, judging: VerifierWorker | None) -> None:
        self.sampling, self.judging = sampling, judging

    @classmethod
    def beside(cls, sampler: Sampler, verifier: Verifier, chooser: Verifier | None = None) -> Self:
        """One that does both, on one device."""
        return cls(SamplerWorker(sampler, recording_of(verifier, chooser)), VerifierWorker(verifier, chooser))

    def compute(self, job: Job, sampled: Sampled | None = None) -> Output | Sampled | Unsuited:
        """The answer to a job, or an error that says what of it does not suit the sampler or the verifier.

        `sampled`: its pictures, where they are made already. Memory that runs out passes through. Raises DiffscaleError
        for what else a sampler or a decoder raises.
        """
        request = job.request
        if isinstance(request, Compare):
            assert self.judging is not None
            return self.judging.compare(request.state)
        try:
            if sampled is None:
                assert self.sampling is not None
                made = self._sample(self.sampling, request, job)
                if self.judging is None or not isinstance(made, Sampled):
                    return made
                sampled = made
            assert self.judging is not None
            return self.judging.judge(sampled, job)
        except Unsuited as error:
            return error
        except Exception as error:  # whatever somebody's model does with the arguments of its call
            if isinstance(error, DiffscaleError) or out_of_memory(error):
                raise
            mend = "check the arguments of its call, or mend it"
            raise DiffscaleError(f"The model failed ({raised(error)}): {mend}.") from error

    def _sample(self, sampling: SamplerWorker, request: Request, job: Job) -> Output | Sampled:
        runner = sampling.runner_of(request)
        try:
            if isinstance(request, Gradient | PredictGradient):
                if self.judging is None:
                    raise Unsuited(
                        "A gradient needs the verifier beside the model: leave the workers for verifiers out, or use "
                        "another search."
                    )
                output = self._differentiate(sampling, self.judging, request, job)
                sampling.count(request, runner, output)
                return output
            return sampling.sample(request)
        except Unsuited:
            sampling.forgive(runner)  # no other search is to pay for these
            raise

    @staticmethod
    def _differentiate(
        sampling: SamplerWorker, judging: VerifierWorker, request: Gradient | PredictGradient, job: Job
    ) -> Output:
        clock, state, sampler = Clock(), request.state, sampling.sampler
        of_prediction, verifier = isinstance(request, PredictGradient), judging.verifier
        prompts = sampling.prompts_of(state.prompt_index)
        record = None if of_prediction else sampling.record
        if of_prediction:
            sampling.check_recorded(state, final=False)
        if isinstance(verifier, PoolVerifier):
            raise Unsuited(
                f"Verifier {verifier.name!r} compares candidates with each other and has no gradient: search with "
                "one of its members, or by another algorithm."
            )
        without = Unsuited(
            f"Verifier {verifier.name!r} has no gradient: search with another verifier, or by another algorithm."
        )
        if of_prediction:
            verifier = at_stage(verifier, sampling.stage_of(state))
        flops, finite = 0, torch.ones(0)
        early: list[Tensor] = []

        def score(images: Tensor, recorded: Tensor | None) -> Tensor:
            nonlocal flops, finite, early
            early = [] if recorded is None else [recorded]
            with count_flops() as counter:
                # The verifier sees no picture that is not finite: black ones instead, whose scores are not used.
                seen = [images, *asked(verifier, early)]
                finite = finite_pictures(*seen)
                shown = [_black_unless(finite, given) for given in seen]
                try:
                    raw = score_images(verifier, shown[0], prompts, *shown[1:])
                except RuntimeError as error:
                    if "requires grad" not in str(error):
                        raise
                    raise without from error  # it handed the pictures to NumPy
            flops = 3 * counter.total  # backward is worth two forwards
            if not raw.requires_grad:
                raise without
            return raw

        after, images, raw, grad = sampler.gradient(state, score, record, of_prediction)
        clock.lap("denoise", grad)
        scores, decodes = usable_scores(verifier, raw, prompts, finite), 1 if record is None else 2
        if of_prediction:
            assert after.model_output is not None
            tensors = {"scores": scores, "grad": grad, "model_output": after.model_output}
            return Output(tensors, decodes=decodes, verifier_flops=flops, seconds=clock.seconds)
        if isinstance(sampler, ChecksPictures) and sampler.checks_pictures:
            images, flagged = sampler.decode_checked(after.x)
            warn_of_flagged(flagged, prompts)
            scores[flagged], decodes = -math.inf, decodes + 1
        with count_flops() as counter:
            choice = judging.choice(scores, images, prompts, [each.detach() for each in early])
        clock.lap("verify", images)
        output = Output({"scores": scores, "grad": grad, **choice}, decodes=decodes, seconds=clock.seconds)
        output.verifier_flops = flops + counter.total
        hand_in_pictures(output, job, images, after.x)
        return output


def _black_unless(finite: Tensor, images: Tensor) -> Tensor:
    """Pictures [B, ...] whose rows are black where `finite` [B] is False."""
    return torch.where(finite.to(images.device).view(-1, *[1] * (images.ndim - 1)), images, torch.zeros_like(images))
