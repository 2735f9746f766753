"""What denoises and decodes micro-batches: a sampler on one device, which knows requests and states, and no search."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from diffscale._util.errors import Unsuited
from diffscale.engine.answers import answer_tensors
from diffscale.engine.ledger import drafter_of, scheduler_steps
from diffscale.engine.output import Clock, Output, Sampled
from diffscale.engine.scoring import Recording
from diffscale.types import (
    ChecksPictures,
    Draft,
    Drafter,
    Evaluate,
    Gradient,
    PredictGradient,
    Request,
    Run,
    Sampler,
    Score,
    Solve,
    Stage,
    State,
    own_prompt,
)


class SamplerWorker:
    """Denoises and decodes with one sampler; `recording`: the x0-predictions that are asked for on the way."""

    def __init__(self, sampler: Sampler, recording: Recording | None = None) -> None:
        self.sampler, self.recording = sampler, recording
        self.record = None if recording is None else recording.level
        self._counted_forwards: dict[Sampler | Drafter, int] = {sampler: sampler.forwards}

    def runner_of(self, request: Request) -> Sampler | Drafter:
        """Whose rows through the network answer `request`, counted from now on."""
        runner = drafter_of(self.sampler, request.steps, request.via) if isinstance(request, Draft) else self.sampler
        self._counted_forwards.setdefault(runner, runner.forwards)
        return runner

    def sample(self, request: Request) -> Output | Sampled:
        """The answer to `request`, or pictures to score for it; raises Unsuited as `check_recorded`."""
        clock, state = Clock(), request.state
        runner = self.runner_of(request)
        if isinstance(request, Score):
            sampled = self._decoded(state, clock)
        elif isinstance(request, Draft):
            assert isinstance(runner, Drafter)
            after = runner.run(state, self.record)
            clock.lap("denoise", after.x)
            stage = Stage.of_draft(request.steps, self.sampler.steps, request.via)
            sampled = self._decoded(after, clock, runner, stage)
        else:
            after = self._denoise(request, state)
            clock.lap("denoise", after.x)
            if not isinstance(request, Evaluate):
                output = Output(answer_tensors(request, after), seconds=clock.seconds)
                self.count(request, runner, output)
                return output
            sampled = self._decoded(after, clock)
        self.count(request, runner, sampled.output)
        return sampled

    def count(self, request: Request, runner: Sampler | Drafter, output: Output) -> None:
        """Book in `output` what `runner` did since the last micro-batch that went well: lost rows did run, too."""
        output.forwards = runner.forwards - self._counted_forwards[runner]
        # Backward is worth two forwards. Rows of a whole gradient are counted twice already: there and recomputed.
        worth = 2 if isinstance(request, Gradient) else 3 if isinstance(request, PredictGradient) else 1
        output.flops_per_forward = runner.flops_per_forward * worth
        output.scheduler_steps = scheduler_steps(request, self.sampler)
        self.forgive(runner)

    def forgive(self, runner: Sampler | Drafter) -> None:
        """Let nobody pay for what `runner` has done."""
        self._counted_forwards[runner] = runner.forwards

    def check_recorded(self, state: State, final: bool) -> None:
        """Raise Unsuited where pictures of `state` are to be compared with predictions that it does not have."""
        if self.recording is None:
            return
        if not final and self.recording.steers:
            raise Unsuited(
                f"Verifier {self.recording.by!r} compares finished pictures with earlier predictions of them, so it "
                "cannot score unfinished ones: use a search over noises, see `diffscale list searches`."
            )
        if final and state.recorded is None:
            raise Unsuited(
                f"No prediction at noise level {self.record} was recorded, which {self.recording.by!r} compares "
                "finished pictures with: use a search over noises, see `diffscale list searches`."
            )

    def stage_of(self, state: State) -> Stage:
        """How far x0-predictions of `state` are."""
        return Stage.of_prediction(self.sampler.levels[state.step] if state.level is None else state.level)

    def prompts_of(self, prompt_index: Tensor) -> list[str]:
        """What verifiers are told: the users' own prompts, in whatever wording the model was asked."""
        return [own_prompt(self.sampler.prompts[row]) for row in prompt_index.tolist()]

    def _denoise(self, request: Request, state: State) -> State:
        match request:
            case Run(_, to):
                return self.sampler.run(state, to, self.record)
            case Evaluate():
                return self.sampler.run(state, None, self.record)
            case Solve(_, level, steps):
                return self.sampler.solve(state, level, steps, self.record)
            case _:
                return self.sampler.predict(state)

    def _decoded(
        self, state: State, clock: Clock, drafter: Drafter | None = None, stage: Stage | None = None
    ) -> Sampled:
        """Pictures of `state`, which are finished candidates if it is at its end and no `drafter` made it."""
        final = state.step == self.sampler.steps
        latents = state.x if final else state.x0
        assert latents is not None  # see `check_request`
        self.check_recorded(state, final)
        finished = final and drafter is None
        decode = self.sampler.decode if drafter is None else drafter.decode
        images, flagged = self._pictures(decode, latents, finished)
        early = [decode(state.recorded)] if final and self.recording and state.recorded is not None else []
        clock.lap("decode", images)
        stage = None if finished else stage or self.stage_of(state)
        output = Output({}, decodes=1 + len(early), seconds=clock.seconds)
        prompts = self.prompts_of(state.prompt_index)
        return Sampled(images, early, flagged, prompts, stage, latents if finished else None, output)

    def _pictures(self, decode: Callable[[Tensor], Tensor], latents: Tensor, final: bool) -> tuple[Tensor, Tensor]:
        """Pictures, and which of them a safety checker flagged (bool [B]), which looks at those that are `final`."""
        if final and isinstance(self.sampler, ChecksPictures) and self.sampler.checks_pictures:
            return self.sampler.decode_checked(latents)
        return decode(latents), torch.zeros(len(latents), dtype=torch.bool)
