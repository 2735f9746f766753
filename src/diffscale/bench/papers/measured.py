"""What a model and a verifier take on this machine, measured for a second or two and kept."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch

from diffscale.bench.papers import trained
from diffscale.bench.papers.calls import Call, Models, Slot
from diffscale.bench.papers.plan import Plan, nfe_of
from diffscale.bench.papers.pool import finish, key_of
from diffscale.bench.papers.scoring import Scoring
from diffscale.train.configs import TrainConfig
from diffscale.types import NeedsIntermediateX0, SetVerifier

_ROWS, _MOST, _SECONDS = 16, 64, 1.0
_PROMPT = "a red circle"
"""Where nothing is sampled, only trained."""


@dataclass(frozen=True)
class Speed:
    """Of a call: NFE a second with decoding, FLOPs of an NFE, peak memory in bytes after it, side of its pictures."""

    nfe_per_second: float
    flops_per_nfe: float
    memory: int
    side: int


@dataclass(frozen=True)
class Estimate:
    """Of a cold start: denoiser evaluations, their FLOPs, seconds with decoding and scoring, peak bytes."""

    nfe: int
    flops: float
    seconds: float
    memory: int


class Speeds:
    """Measured speeds, kept in `folder`."""

    def __init__(self, folder: Path, models: Models, scoring: Scoring) -> None:
        self._path, self._models, self._scoring = folder / "speeds.json", models, scoring
        self._seen: dict[str, torch.Tensor] = {}
        self._kept = json.loads(self._path.read_text()) if self._path.exists() else {}

    def of(self, call: Call, prompt: str) -> Speed:
        """The speed of a call, of samples of `prompt`; of what a training gives, that of its base."""
        call = replace(call, model=trained.base_of(call.model))
        if call.id not in self._kept:
            self._keep(call.id, asdict(self._measure(call, prompt)))
        return Speed(**self._kept[call.id])

    def verifier(self, text: str, model: str, prompt: str, side: int) -> float:
        """Seconds that a verifier takes for a picture."""
        key = f"{text} | {self._scoring.id(text, model)} | {side}"
        if key not in self._kept:
            verifier = self._scoring.verifier(text, model)
            # The judge of Shapes looks for shapes, and takes its time where there are none: show it samples.
            shown = self._seen.get(trained.base_of(model), torch.full((1, 3, side, side), 0.5))
            images = shown.repeat(_ROWS, 1, 1, 1)[:_ROWS].to(self._scoring.device)
            if isinstance(verifier, SetVerifier):
                verifier.begin()
            given = [images] if isinstance(verifier, NeedsIntermediateX0) else []
            with torch.no_grad():
                verifier(images[:1], [prompt], *(each[:1] for each in given))
                began = time.perf_counter()
                verifier(images, [prompt] * _ROWS, *given)
            self._keep(key, (time.perf_counter() - began) / _ROWS)
        return float(self._kept[key])

    def estimate(self, plan: Plan, told: Callable[[str], None] | None = None) -> Estimate:
        """What `plan` takes; `told` hears what is being measured."""
        prompts = _prompts(plan)
        nfe, flops, seconds, memory = 0, 0.0, 0.0, 0
        sides: dict[str, int] = {}
        for call, count in plan.nfe().items():
            if told is not None:
                told(f"{call.model}, {nfe_of(call)} NFE")
            speed = self.of(call, prompts[call])
            sides[call.model] = speed.side
            nfe, flops = nfe + count, flops + count * speed.flops_per_nfe
            seconds, memory = seconds + count / speed.nfe_per_second, max(memory, speed.memory)
        for (text, call, _), count in plan.verified.items():
            seconds += count * self.verifier(text, call.model, prompts[call], sides[call.model])
        for config in plan.trainings.values():
            call = _call_of(config, prompts)
            speed = self.of(call, prompts.get(call, _PROMPT))
            memory = max(memory, speed.memory)
            seconds += trained.seconds(config, nfe_of(call), speed.nfe_per_second)
        return Estimate(nfe, flops, seconds, memory)

    @torch.no_grad()
    def _measure(self, call: Call, prompt: str) -> Speed:
        sampler = self._models.sampler(call, [prompt])
        slot = Slot(prompt, 0)
        keys = torch.tensor([key_of(call.seed, slot, number) for number in range(_MOST)])
        start = sampler.prior(keys, torch.zeros(_MOST, dtype=torch.int64))
        finish(sampler, start[:1])  # what is slow the first time
        began = time.perf_counter()
        pictures, _ = finish(sampler, start[:1])
        # As many rows as a second may hold: batches are what makes small models fast.
        rows = max(1, min(_MOST, round(2 * _SECONDS / (time.perf_counter() - began))))
        before, done, began = sampler.forwards, 0, time.perf_counter()
        while not done or time.perf_counter() - began < _SECONDS:
            finish(sampler, start[:rows])
            done += rows * sampler.steps
        took = time.perf_counter() - began
        forwards = (sampler.forwards - before) / done
        self._seen[call.model] = pictures.float() / 255
        return Speed(done / took, forwards * sampler.flops_per_forward, _memory(), int(pictures.shape[-1]))

    def _keep(self, key: str, value: object) -> None:
        self._kept[key] = value
        fresh = self._path.with_suffix(".new")
        fresh.write_text(json.dumps(self._kept, indent=1))
        fresh.replace(self._path)


def _prompts(plan: Plan) -> dict[Call, str]:
    found = {call: next(iter(need.most.values()))[0].prompt for call, need in plan.pools.items() if len(need)}
    for point, slots in plan.searches.items():
        found.setdefault(point.call, slots[0].prompt)
        if point.final is not None:
            found.setdefault(point.final, slots[0].prompt)
    first = {call.model: prompt for call, prompt in found.items()}
    return {**{call: first[call.model] for call in plan.again}, **found}


def _call_of(config: TrainConfig, calls: Iterable[Call]) -> Call:
    """A call of a training's base by which its speed can be told: one of `calls` if there is any."""
    model = config.pretrained_model_name_or_path
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(config.mixed_precision or "", "float32")
    return next((call for call in calls if call.model == model), Call(model, None, (), dtype, 0))


def _memory() -> int:
    """Peak bytes of this process, or of the GPU."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak if sys.platform == "darwin" else peak * 1024)
