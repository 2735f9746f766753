"""Recording a tape: every candidate is sampled once, drafted in every way asked for, and scored by every verifier."""

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffscale._util.config import difference
from diffscale._util.errors import DiffscaleError
from diffscale._util.progress import Counter, silent
from diffscale.engine import noise
from diffscale.engine.batching import MicroBatch
from diffscale.engine.ledger import drafter_of
from diffscale.engine.scoring import at_stage, safe_score
from diffscale.tape.tape import DraftKind, Tape, joined, load_tape
from diffscale.types import NeedsIntermediateX0, PoolVerifier, Sampler, SetVerifier, Stage, State, Teachable, Verifier


@dataclass(frozen=True)
class Plan:
    """What to record of every prompt: `candidates` samples from `seed`, their x0-predictions after the numbers of steps
    in `predictions`, and `drafts` as (steps, via). With `views` it is kept what those verifiers that can be taught see
    of predictions and drafts."""

    candidates: int
    seed: int = 0
    predictions: Sequence[int] = ()
    drafts: Sequence[tuple[int, str]] = ()
    views: bool = False


def record(
    sampler: Sampler,
    verifiers: Mapping[str, Verifier],
    plan: Plan,
    path: Path,
    *,
    about: Mapping[str, Any] | None = None,
    batch_size: int = 64,
    progress: Counter = silent,
) -> Tape:
    """Record all prompts of `sampler` and write the tape to the file `path`.

    Blocks of prompts, about `batch_size` rows each, are kept beside it on the way, in files called `path` with .0, .1
    and so on, so that a run that was stopped goes on; they are removed at the end, and a tape that is whole is read. A
    recording is the same if prompts, plan, names of verifiers, `batch_size` and the settings `about` are. Raises
    DiffscaleError for verifiers that give no one score of any picture, for drafts and predictions that the sampler does
    not give, for `views` that no verifier has, and for a tape, or blocks, of another recording.
    """
    for name, verifier in verifiers.items():
        if isinstance(verifier, PoolVerifier | SetVerifier | NeedsIntermediateX0):
            raise DiffscaleError(
                f"Verifier {name} gives no score of one picture alone, so no tape holds it: leave it out."
            )
    if wrong := [step for step in plan.predictions if not 1 <= step < sampler.steps]:
        raise DiffscaleError(f"Predictions are recorded after 1 to {sampler.steps - 1} steps, not after {wrong[0]}.")
    for steps, via in plan.drafts:
        drafter_of(sampler, steps, via)  # told before anything is computed
    teachable = [name for name, verifier in verifiers.items() if plan.views and isinstance(verifier, Teachable)]
    if plan.views and not teachable:
        raise DiffscaleError(
            f"None of {', '.join(verifiers)} has views to keep: leave --views out, or record clip, pick_score, hps or "
            "image_reward too."
        )
    each = max(1, batch_size // plan.candidates)
    blocks = [range(first, min(first + each, len(sampler.prompts))) for first in range(0, len(sampler.prompts), each)]
    kept = [path.with_name(f"{path.name}.{number}") for number in range(len(blocks))]
    settings = {"prompts": list(sampler.prompts), "batch_size": batch_size, **(about or {})}
    wanted = settings | _planned(plan.seed, plan.candidates, plan.predictions, plan.drafts, verifiers, teachable)
    if path.exists():
        return _same(path, wanted)
    done: list[Tape] = []
    for rows, part in zip(blocks, kept, strict=True):
        if part.exists():
            tape = _same(part, wanted)
        else:
            tape = _Recorder(sampler, verifiers, plan, batch_size).block(rows, settings)
            tape.save(part)
        done.append(tape)
        progress(rows.stop, len(sampler.prompts))
    whole = joined(done)
    whole.save(path)
    for part in kept:
        part.unlink()
    return whole


def _planned(
    seed: int,
    candidates: int,
    predictions: Sequence[int],
    drafts: Sequence[tuple[int, str]],
    verifiers: Iterable[str],
    views: Iterable[str],
) -> dict[str, Any]:
    """What of a plan, and of the tape that it gave, is to be the same."""
    planned = {"predictions": list(predictions), "drafts": list(drafts), "verifiers": sorted(verifiers)}
    planned["views"] = sorted(views)
    return {"seed": seed, "candidates": candidates, **planned}


def _same(path: Path, wanted: Mapping[str, Any]) -> Tape:
    """The tape in the file `path`; raises DiffscaleError if it is none, or of another recording than is `wanted`."""
    tape = load_tape(path)
    drafts = [(kind.steps, kind.via) for kind in tape.drafts]
    recorded = {**tape.about, **_planned(tape.seed, tape.candidates, tape.predictions, drafts, tape.scores, tape.views)}
    if recorded != wanted:
        # All prompts would be a long sentence.
        differs = "its prompts" if recorded.get("prompts") != wanted["prompts"] else difference(recorded, wanted)
        raise DiffscaleError(f"{path} is of another recording ({differs}): remove it, or choose another --output.")
    return tape


@dataclass
class _Recorder:
    sampler: Sampler
    verifiers: Mapping[str, Verifier]
    plan: Plan
    batch_size: int
    seconds: dict[str, float] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    @torch.no_grad()
    def block(self, prompts: range, settings: Mapping[str, Any]) -> Tape:
        """The tape of the prompts with these numbers."""
        keys, rows = [], []
        for row in prompts:
            root = noise.fold(noise.root(self.plan.seed), self.sampler.prompts[row], 0)
            keys += [noise.fold(root, "candidate", i) for i in range(self.plan.candidates)]
            rows += [row] * self.plan.candidates
        state = self.sampler.prior(torch.tensor(keys), torch.tensor(rows))
        batches = MicroBatch(self.batch_size).map(lambda part: self._columns(state[part]), len(rows))
        parts = [columns for _, columns in batches]
        shape = len(prompts), self.plan.candidates

        def whole(held: str) -> dict[str, Tensor]:
            columns = {name: torch.cat([part[held][name] for part in parts]) for name in parts[0][held]}
            return {name: each.view(*shape, *each.shape[1:]) for name, each in columns.items()}

        return Tape(
            [self.sampler.prompts[row] for row in prompts],
            list(self.sampler.levels),
            self.plan.seed,
            list(self.plan.predictions),
            [self._kind(steps, via) for steps, via in self.plan.drafts],
            {name: each.float() for name, each in whole("scores").items()},
            {name: self.seconds[name] / self.counts[name] for name in self.seconds},
            settings,
            {name: each.half() for name, each in whole("views").items()},
        )

    def _kind(self, steps: int, via: str) -> DraftKind:
        drafter = drafter_of(self.sampler, steps, via)
        return DraftKind(steps, via, float(drafter.nfe), drafter.steps)

    def _columns(self, start: State) -> dict[str, dict[str, Tensor]]:
        """`scores` of all columns, by verifier, float64 [B, C], and `views` of all but the last, [B, C - 1, F]."""
        predicted, drafts, state = [], [], start
        if not self.plan.predictions:
            state = self._timed("step", len(start) * self.sampler.steps, lambda: self.sampler.run(start))
        for step in range(self.sampler.steps if self.plan.predictions else 0):
            state = self._timed("step", len(start), partial(self.sampler.predict, state))
            if step + 1 in self.plan.predictions:
                assert state.x0 is not None
                stage = Stage.of_prediction(self.sampler.levels[step])
                predicted.append(self._seen(self.sampler.decode, state.x0, state, stage))
            state = self.sampler.step(state)
        for steps, via in self.plan.drafts:
            drafter, stage = drafter_of(self.sampler, steps, via), Stage.of_draft(steps, self.sampler.steps, via)
            drafts.append(self._seen(drafter.decode, drafter.run(start).x, start, stage))
        looks, final = [*predicted, *drafts], self._seen(self.sampler.decode, state.x, state)
        scores = {name: torch.stack([each[name] for each, _ in (*looks, final)], -1) for name in self.verifiers}
        return {
            "scores": scores,
            "views": {name: torch.stack([each[name] for _, each in looks], 1) for name in final[1]},
        }

    def _seen(
        self, decode: Callable[[Tensor], Tensor], latents: Tensor, state: State, stage: Stage | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Scores [B], and views [B, F], by verifier, of finished pictures, or of those of an unfinished `stage`."""
        images = self._timed("decode", len(latents), lambda: decode(latents))
        prompts = [self.sampler.prompts[row] for row in state.prompt_index.tolist()]
        scores, views = {}, {}
        for name, verifier in self.verifiers.items():
            judge = verifier if stage is None else at_stage(verifier, stage)
            scores[name] = self._timed(name, len(images), partial(safe_score, judge, images, prompts))
            if self.plan.views and isinstance(verifier, Teachable):
                views[name] = _views(verifier, images, prompts, scores[name].isfinite())
        return scores, views

    def _timed(self, what: str, rows: int, work: Callable[[], Any]) -> Any:
        began = time.perf_counter()
        done = work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - began
        self.counts[what] = self.counts.get(what, 0) + rows
        return done


def _views(verifier: Teachable, images: Tensor, prompts: list[str], usable: Tensor) -> Tensor:
    """Its views [B, F] of the `usable` pictures [B], those that it could score; NaN for the others.

    Of a video, the mean over its frames.
    """
    shown = torch.where(usable.to(images.device).view(-1, *[1] * (images.ndim - 1)), images, 0.0)
    frames = shown.shape[1] if shown.ndim == 5 else 1
    each = [prompt for prompt in prompts for _ in range(frames)]
    views = verifier.view(shown.flatten(0, -4), each).detach().cpu().float()
    views = views.view(len(images), frames, -1).mean(1)
    views[~usable] = torch.nan
    return views


def every_second(steps: int) -> list[int]:
    """After how many steps predictions are recorded where nothing is said: every second one."""
    return list(range(1, steps, 2))


def short_drafts(steps: int) -> list[int]:
    """How many steps drafts have where nothing is said: 3, 4, 5, 6, 8 and 10, as far as they are at most half."""
    return [count for count in (3, 4, 5, 6, 8, 10) if count <= math.ceil(steps / 2)]
