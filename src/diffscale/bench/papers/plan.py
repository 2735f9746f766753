"""What items have to compute from a cold start, told before any model is opened, and how long it takes here.

Speeds are measured for a second or two, and kept.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_json, write_json
from diffscale.api import make_sampler
from diffscale.bench.networks import Networks
from diffscale.bench.papers import trainings
from diffscale.bench.papers.points import Call, Point, call_of, every_point, prompt_repeats
from diffscale.bench.papers.recipe import Part, Setting, of_shapes
from diffscale.bench.series import PromptRepeat
from diffscale.models.options import LoadOptions
from diffscale.train import loop
from diffscale.train.output import peak_memory
from diffscale.train.settings import TrainConfig
from diffscale.types import NeedsIntermediateX0, SetVerifier
from diffscale.verifiers import check as check_verifier

_ROWS, _MOST, _SECONDS = 16, 64, 1.0
_PROMPT = "a red circle"
"""Where nothing is sampled, only trained."""


@dataclass
class Plan:
    """`pools`: how many candidates of every prompt's repeat are chosen from, by call. `points`: all points, with what
    is wanted of them. `verified`: how many pictures each verifier scores, by call and by what for ("judge", "pool", or
    a search); a pool is scored once for all budgets. `trainings`: as recipes have them, by ID."""

    pools: dict[Call, Counter[PromptRepeat]] = field(default_factory=dict)
    points: dict[Point, set[PromptRepeat]] = field(default_factory=dict)
    verified: Counter[tuple[str, Call, str]] = field(default_factory=Counter)
    trainings: dict[str, dict[str, Any]] = field(default_factory=dict)

    def nfe(self) -> Counter[Call]:
        """Denoiser evaluations by call, of what the plan names."""
        nfe = Counter({call: pool.total() * call.nfe for call, pool in self.pools.items()})
        largest: Counter[Point] = Counter()
        for point, wanted in self.points.items():
            if point.final is not None:
                nfe[point.final] += point.final.nfe * len(wanted)
            if not point.pooled:
                # Of a search that a larger budget only continues, the largest pays for all.
                whole = replace(point, budget=0) if point.anytime else point
                largest[whole] = max(largest[whole], point.budget * len(wanted))
        for point, spent in largest.items():
            nfe[point.call] += spent
        return nfe

    def add(self, part: Part) -> None:
        """Also compute a part; what it shares with others is counted once."""
        wanted = prompt_repeats(part)
        for name, _, point in every_point(part):
            self.points.setdefault(point, set()).update(wanted)
            for judge in part.judges:
                if part.series[name].pool:
                    key = judge, point.call, "judged pool"
                    self.verified[key] = max(self.verified[key], len(wanted) * point.candidates)
                else:
                    self.verified[judge, point.last, "judge"] += len(wanted)
            if point.pooled:
                self._pool(point.call, wanted, point.candidates if point.searching else 1)
            if point.searching:
                # Of a search that a larger budget only continues, and of a pool, what is scored is not scored again.
                grown = f"{point.search} {'' if point.anytime else point.budget}"
                key = point.verifier, point.call, "pool" if point.pooled else grown
                self.verified[key] = max(self.verified[key], len(wanted) * point.candidates)
        if part.pairs is not None:
            call, n = call_of(part), part.pairs.candidates
            self._pool(call, wanted, n)
            for text in part.pairs.of:
                self.verified[text, call, "pool"] = max(self.verified[text, call, "pool"], len(wanted) * n)

    def whole_trainings(self) -> list[dict[str, Any]]:
        """The trainings without those that are the beginning of a longer one."""
        every = list(self.trainings.values())
        return [each for each in every if not any(trainings.begins_with(other, each) for other in every)]

    def _pool(self, call: Call, wanted: Iterable[PromptRepeat], n: int) -> None:
        self.pools[call] = self.pools.get(call, Counter()) | Counter(dict.fromkeys(wanted, n))


def plan(settings: Iterable[Setting]) -> Plan:
    """What all these settings take together: what they share is counted once."""
    together = Plan()
    for setting in settings:
        for training in setting.trainings.values():
            together.trainings[trainings.id_of(training)] = training
        for part in setting.parts.values():
            together.add(part)
    return together


def check(setting: Setting) -> None:
    """Raise DiffscaleError for a search, verifier, prompt, budget, metric or training of `setting` that cannot be,
    before anything runs.

    Functions as verifiers are not looked at.
    """
    for training in setting.trainings.values():
        loop.check_names(trainings.config_of(training))
    for part in setting.parts.values():
        prompt_repeats(part)
        _check_sets(part)
        for text in [*part.judges, *(series.verifier for series in part.series.values())]:
            if text and ":" not in text.split()[0]:
                check_verifier(text)


def _check_sets(part: Part) -> None:
    compared = [name for name in part.sets if name.partition(" ")[0] in ("fid", "precision", "recall")]
    if part.reference is not None and not Path(part.reference).expanduser().is_file():
        raise DiffscaleError(
            f"There is no file {part.reference}: give --reference what `diffscale evaluate --save-reference` wrote."
        )
    if compared and part.reference is None and not of_shapes(part.model):
        raise DiffscaleError(f"{compared[0]} compares with real pictures: give --reference, their statistics.")
    if "diversity" in part.sets and part.repeats < 2:
        raise DiffscaleError("Diversity compares pictures of a prompt: give the recipe repeats of 2 or more.")


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
    """Measured speeds, kept in `folder`; `loading` says on which device."""

    def __init__(self, folder: Path, loading: LoadOptions, networks: Networks) -> None:
        self._path, self._loading, self._networks = folder / "speeds.json", loading, networks
        self._samples: dict[str, torch.Tensor] = {}
        self._known = read_json(self._path, dict[str, Speed | float]) or {}

    def of_call(self, call: Call, prompt: str) -> Speed:
        """The speed of a call, of samples of `prompt`; of what a training gives, that of its base."""
        call = replace(call, model=trainings.base_of(call.model))
        return Speed(**self._once(call.id, lambda: asdict(self._measured(call, prompt))))

    def of_verifier(self, text: str, model: str, prompt: str, side: int) -> float:
        """Seconds that a verifier takes for a picture."""
        return self._once(
            f"{text} | {trainings.base_of(model)} | {side}", lambda: self._scoring(text, model, prompt, side)
        )

    def estimate(self, plan: Plan) -> Estimate:
        """What `plan` takes."""
        prompts: dict[Call, str] = {}
        for point, wanted in plan.points.items():
            for call in {point.call, point.last}:
                prompts.setdefault(call, min(wanted, key=lambda each: each.name).prompt)
        for call, pool in plan.pools.items():
            prompts.setdefault(call, next(iter(pool)).prompt)
        nfe = plan.nfe()
        speeds = {call: self.of_call(call, prompts[call]) for call in nfe}
        sides = {call.model: speed.side for call, speed in speeds.items()}
        seconds = sum(nfe[call] / speed.nfe_per_second for call, speed in speeds.items())
        for (text, call, _), count in plan.verified.items():
            seconds += count * self.of_verifier(text, call.model, prompts[call], sides[call.model])
        for training in plan.whole_trainings():
            call = _call_of(trainings.config_of(training), prompts)
            speed = speeds[call] = self.of_call(call, prompts.get(call, _PROMPT))
            seconds += trainings.seconds(training, call.nfe, speed.nfe_per_second, speed.flops_per_nfe)
        flops = sum(nfe[call] * speed.flops_per_nfe for call, speed in speeds.items())
        return Estimate(nfe.total(), flops, seconds, max((speed.memory for speed in speeds.values()), default=0))

    @torch.no_grad()
    def _measured(self, call: Call, prompt: str) -> Speed:
        settings = call.settings(self._loading)
        sampler = make_sampler(
            call.model, [prompt], steps=call.steps, pipe_args=settings.call_args, loading=settings,
            load=self._networks.pipeline,
        )  # fmt: skip
        start = sampler.prior(torch.arange(_MOST), torch.zeros(_MOST, dtype=torch.int64))
        sampler.decode(sampler.run(start[:1]).x)  # what is slow the first time
        began = time.perf_counter()
        pictures = sampler.decode(sampler.run(start[:1]).x)
        # As many rows as a second may hold: batches are what makes small models fast.
        rows = max(1, min(_MOST, round(2 * _SECONDS / (time.perf_counter() - began))))
        before, done, began = sampler.forwards, 0, time.perf_counter()
        while not done or time.perf_counter() - began < _SECONDS:
            sampler.decode(sampler.run(start[:rows]).x)
            done += rows * sampler.steps
        took = time.perf_counter() - began
        forwards = (sampler.forwards - before) / done
        self._samples[call.model] = pictures
        return Speed(done / took, forwards * sampler.flops_per_forward, peak_memory(), int(pictures.shape[-1]))

    @torch.no_grad()
    def _scoring(self, text: str, model: str, prompt: str, side: int) -> float:
        verifier = self._networks.verifier(text, trainings.base_of(model))
        # The judge of Shapes looks for shapes, and takes its time where there are none: show it samples.
        shown = self._samples.get(trainings.base_of(model), torch.full((1, 3, side, side), 0.5))
        images = shown.repeat(_ROWS, 1, 1, 1)[:_ROWS].to(self._networks.device)
        if isinstance(verifier, SetVerifier):
            verifier.begin()
        early = [images] if isinstance(verifier, NeedsIntermediateX0) else []
        verifier(images[:1], [prompt], *(each[:1] for each in early))
        began = time.perf_counter()
        verifier(images, [prompt] * _ROWS, *early)
        return (time.perf_counter() - began) / _ROWS

    def _once(self, key: str, measure: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known[key] = measure()
            write_json(self._path, self._known, 1)
        return self._known[key]


def _call_of(config: TrainConfig, calls: Iterable[Call]) -> Call:
    """A call of a training's base by which its speed can be told: one of `calls` if there is any."""
    model = config.pretrained_model_name_or_path
    dtype = {"bf16": "bfloat16", "fp16": "float16"}.get(config.mixed_precision or "", "float32")
    return next((call for call in calls if call.model == model), Call(model, None, (), dtype, 0))
