"""What computes micro-batches: a sampler and a verifier on one device. It knows requests and states, and no search."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, Unsuited, raised
from diffscale.engine.answers import answer_tensors
from diffscale.engine.batching import out_of_memory
from diffscale.engine.flops import count_flops
from diffscale.engine.ledger import drafter_of, price, scheduler_steps
from diffscale.engine.scoring import (
    at_stage,
    finite_pictures,
    frame_strip,
    record_level,
    safe_compare,
    score_images,
    score_rows,
    score_unflagged,
    usable_scores,
    warn_of_flagged,
)
from diffscale.engine.ties import Compare, Pairs
from diffscale.types import (
    ChecksPictures,
    Compares,
    Draft,
    Drafter,
    Evaluate,
    Gradient,
    NeedsIntermediateX0,
    PoolVerifier,
    PredictGradient,
    Request,
    Run,
    Sampler,
    Score,
    Solve,
    Stage,
    State,
    Verifier,
    own_prompt,
)


@dataclass
class Output:
    """What one micro-batch of B rows gave and took.

    `tensors`: the answer by name, [B, ...] each; of finished candidates also `choice`, what the chooser gave them,
    shaped as its scores. `images` [B, 3, H, W] and `latents` [B, ...]: of finished candidates. `forwards`: rows sent
    through the network, with `flops_per_forward` each. `decodes`, `scheduler_steps`: those of one row.
    """

    tensors: dict[str, Tensor]
    images: Tensor | None = None
    latents: Tensor | None = None
    decodes: int = 0
    scheduler_steps: int = 0
    verifier_flops: float = 0.0
    forwards: int = 0
    flops_per_forward: float = 0.0
    seconds: dict[str, float] = field(default_factory=dict)

    def costs(self, rows: slice, size: int) -> dict[str, float]:
        """What `rows` took of all that the micro-batch of `size` rows did, named as in the ledger."""
        count = rows.stop - rows.start
        # Differences of rounded totals, so that the shares add up to what was counted.
        forwards = self.forwards * rows.stop // size - self.forwards * rows.start // size
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


class Worker:
    """Computes requests of any kind with one sampler and one verifier, and scores what is finished by `chooser` too."""

    def __init__(self, sampler: Sampler, verifier: Verifier, chooser: Verifier | None = None) -> None:
        self.sampler, self.verifier, self.chooser = sampler, verifier, chooser
        self.record = record_level(verifier, chooser)
        self._counted_forwards: dict[Sampler | Drafter, int] = {sampler: sampler.forwards}

    def price_per_row(self, request: Request) -> int:
        """NFE that each row of `request` costs."""
        return price(request, self.sampler) // len(request.state)

    def compute(self, request: Request | Compare, state: State | Pairs) -> Output | Unsuited:
        """The answer to `request`, asked about `state` instead of its own; an error that says what does not suit it.

        Memory that runs out passes through. Raises DiffscaleError for what else a sampler or a decoder raises.
        """
        clock = _Clock()
        if isinstance(state, Pairs):
            return self._compare(state, clock)
        assert not isinstance(request, Compare)  # which is about pairs
        runner = drafter_of(self.sampler, request.steps, request.via) if isinstance(request, Draft) else self.sampler
        self._counted_forwards.setdefault(runner, runner.forwards)
        try:
            if isinstance(request, Gradient | PredictGradient):
                output = self._differentiate(state, clock, isinstance(request, PredictGradient))
            elif isinstance(request, Score):
                output = self._score(state, clock)
            elif isinstance(runner, Drafter):
                assert isinstance(request, Draft)
                after = runner.run(state, self.record)
                clock.lap("denoise", after.x)
                output = self._score(after, clock, runner, request)
            else:
                after = self._denoise(request, state)
                clock.lap("denoise", after.x)
                score = isinstance(request, Evaluate)
                output = self._score(after, clock) if score else Output(answer_tensors(request, after))
        except Unsuited as error:
            self._counted_forwards[runner] = runner.forwards  # no other search is to pay for these
            return error
        except Exception as error:  # whatever somebody's model does with the arguments of its call
            if isinstance(error, DiffscaleError) or out_of_memory(error):
                raise
            mend = "check the arguments of its call, or mend it"
            raise DiffscaleError(f"The model failed ({raised(error)}): {mend}.") from error
        # Counted from the last micro-batch that went well: rows lost to a lack of memory did run.
        output.forwards = runner.forwards - self._counted_forwards[runner]
        self._counted_forwards[runner] = runner.forwards
        # Backward is worth two forwards. Rows of a whole gradient are counted twice already: there and recomputed.
        worth = 2 if isinstance(request, Gradient) else 3 if isinstance(request, PredictGradient) else 1
        output.flops_per_forward = runner.flops_per_forward * worth
        output.scheduler_steps = scheduler_steps(request, self.sampler)
        output.seconds = clock.seconds
        return output

    def _compare(self, pairs: Pairs, clock: _Clock) -> Output:
        ranker = self.verifier if self.chooser is None else self.chooser
        assert isinstance(ranker, Compares)
        with count_flops() as counter:
            probabilities = safe_compare(ranker, pairs.side(0), pairs.side(1), self._prompts(pairs))
        clock.lap("verify", probabilities)
        return Output({"probabilities": probabilities}, verifier_flops=counter.total, seconds=clock.seconds)

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

    def _score(self, state: State, clock: _Clock, drafter: Drafter | None = None, draft: Draft | None = None) -> Output:
        """Score pictures, which are finished candidates if the `state` is at its end and no `drafter` made it, as that
        `draft`."""
        final = state.step == self.sampler.steps
        latents = state.x if final else state.x0
        assert latents is not None  # see `check_request`
        recorded = self._recorded(state, final)
        finished, prompts = final and drafter is None, self._prompts(state)
        decode = self.sampler.decode if drafter is None else drafter.decode
        images, flagged = self._pictures(decode, latents, finished)
        early = [decode(x0) for x0 in recorded]
        clock.lap("decode", images)
        verifier = self.verifier if finished else self._unfinished(state, draft)
        with count_flops() as counter:
            scores = score_unflagged(flagged, verifier, images, prompts, *_asked(verifier, early))
            choice = self._choice(scores, images, prompts, early) if finished else {}
        clock.lap("verify", images)
        output = Output({"scores": scores, **choice}, decodes=1 + len(early), verifier_flops=counter.total)
        return replace(output, images=frame_strip(images), latents=latents) if finished else output

    def _unfinished(self, state: State, draft: Draft | None = None) -> Verifier:
        """What judges the x0-predictions of `state`, or its pictures as those of a `draft`."""
        if draft is not None:
            return at_stage(self.verifier, Stage.of_draft(draft.steps, self.sampler.steps, draft.via))
        level = self.sampler.levels[state.step] if state.level is None else state.level
        return at_stage(self.verifier, Stage.of_prediction(level))

    def _choice(
        self, scores: Tensor, images: Tensor, prompts: list[str], recorded: Sequence[Tensor]
    ) -> dict[str, Tensor]:
        """What the chooser gives finished pictures, -inf for those that `scores` drop; empty without a chooser."""
        if self.chooser is None:
            return {}
        usable = scores.view(len(scores), -1).isfinite().all(1)
        return {"choice": score_rows(usable, self.chooser, images, prompts, *_asked(self.chooser, recorded))}

    def _pictures(self, decode: Callable[[Tensor], Tensor], latents: Tensor, final: bool) -> tuple[Tensor, Tensor]:
        """Pictures, and which of them a safety checker flagged (bool [B]), which looks at those that are `final`."""
        if final and isinstance(self.sampler, ChecksPictures) and self.sampler.checks_pictures:
            return self.sampler.decode_checked(latents)
        return decode(latents), torch.zeros(len(latents), dtype=torch.bool)

    def _recorded(self, state: State, final: bool) -> list[Tensor]:
        """The x0-predictions that the verifier and the chooser ask for, none if they ask for none."""
        if not final and isinstance(self.verifier, NeedsIntermediateX0):
            raise Unsuited(
                f"Verifier {self.verifier.name!r} compares finished pictures with earlier predictions of them, so it "
                "cannot score unfinished ones: use a search over noises, see `diffscale list searches`."
            )
        if not final or self.record is None:
            return []
        if state.recorded is None:
            asking = isinstance(self.verifier, NeedsIntermediateX0)
            by = self.verifier if asking or self.chooser is None else self.chooser
            raise Unsuited(
                f"No prediction at noise level {self.record} was recorded, which {by.name!r} compares finished "
                "pictures with: use a search over noises, see `diffscale list searches`."
            )
        return [state.recorded]

    def _differentiate(self, state: State, clock: _Clock, of_prediction: bool) -> Output:
        prompts = self._prompts(state)
        record = None if of_prediction else self.record
        if of_prediction:
            self._recorded(state, final=False)
        if isinstance(self.verifier, PoolVerifier):
            raise Unsuited(
                f"Verifier {self.verifier.name!r} compares candidates with each other and has no gradient: search with "
                "one of its members, or by another algorithm."
            )
        without = Unsuited(
            f"Verifier {self.verifier.name!r} has no gradient: search with another verifier, or by another algorithm."
        )
        verifier = self._unfinished(state) if of_prediction else self.verifier
        flops, finite = 0, torch.ones(0)
        early: list[Tensor] = []

        def score(images: Tensor, recorded: Tensor | None) -> Tensor:
            nonlocal flops, finite, early
            early = [] if recorded is None else [recorded]
            with count_flops() as counter:
                # The verifier sees no picture that is not finite: black ones instead, whose scores are not used.
                seen = [images, *_asked(verifier, early)]
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

        after, images, raw, grad = self.sampler.gradient(state, score, record, of_prediction)
        clock.lap("denoise", grad)
        scores, decodes = usable_scores(verifier, raw, prompts, finite), 1 if record is None else 2
        if of_prediction:
            assert after.model_output is not None
            tensors = {"scores": scores, "grad": grad, "model_output": after.model_output}
            return Output(tensors, decodes=decodes, verifier_flops=flops)
        if isinstance(self.sampler, ChecksPictures) and self.sampler.checks_pictures:
            images, flagged = self.sampler.decode_checked(after.x)
            warn_of_flagged(flagged, prompts)
            scores[flagged], decodes = -math.inf, decodes + 1
        with count_flops() as counter:
            choice = self._choice(scores, images, prompts, [each.detach() for each in early])
        clock.lap("verify", images)
        return Output(
            {"scores": scores, "grad": grad, **choice},
            images=frame_strip(images),
            latents=after.x,
            decodes=decodes,
            verifier_flops=flops + counter.total,
        )

    def _prompts(self, state: State | Pairs) -> list[str]:
        """What verifiers are told: the users' own prompts, in whatever wording the model was asked."""
        return [own_prompt(self.sampler.prompts[row]) for row in state.prompt_index.tolist()]


def _asked(verifier: Verifier, recorded: Sequence[Tensor]) -> Sequence[Tensor]:
    """Those pictures of recorded x0-predictions that `verifier` is called with."""
    return recorded if isinstance(verifier, NeedsIntermediateX0) else ()


def _black_unless(finite: Tensor, images: Tensor) -> Tensor:
    """Pictures [B, ...] whose rows are black where `finite` [B] is False."""
    return torch.where(finite.to(images.device).view(-1, *[1] * (images.ndim - 1)), images, torch.zeros_like(images))


class _Clock:
    """Laps by kind; waits for CUDA, which runs behind Python's back."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, kind: str, result: Tensor) -> None:
        if result.is_cuda:
            torch.cuda.synchronize(result.device)
        now = time.perf_counter()
        self.seconds[kind] = self.seconds.get(kind, 0.0) + now - self._last
        self._last = now
