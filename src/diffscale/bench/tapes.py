"""Recording a tape of a model, and finding out what a tape is replayed with by default."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError
from diffscale._util.progress import Counter, silent
from diffscale.api import make_sampler
from diffscale.bench.networks import Networks
from diffscale.bench.tape_config import TapeConfig, TuneConfig
from diffscale.models.dtypes import DtypeChoice
from diffscale.models.load import best_device, settle_dtype, warn_of_slow_dtype, world_of
from diffscale.registry.sources import sources
from diffscale.samplers.whole import WholeSampler
from diffscale.tape.record import Plan, every_second, record, short_drafts
from diffscale.tape.tape import Tape, load_tape
from diffscale.types import Drafts, Sampler
from diffscale.verifiers.heldout import can_judge


def make(
    settings: TapeConfig | TuneConfig,
    prompts: Sequence[str],
    path: Path,
    progress: Counter = silent,
    say: Callable[[DtypeChoice], None] = warn_of_slow_dtype,
) -> Tape:
    """Record `prompts` as `settings` say and write the tape to the file `path`; a run that was stopped goes on.

    The judge of the model's world is recorded beside the verifiers if it can read all prompts, and the pictures; its
    name is in `about` of the tape. `say` is told which dtype was chosen. Raises DiffscaleError for settings that cannot
    be met and for a file of another recording.
    """
    settings.drafting.check(settings)
    settings = settle_dtype(settings.model, settings, _recorded(path).get("dtype"), say)
    networks = Networks(best_device(settings.device))
    sampler = make_sampler(
        settings.model, prompts, steps=settings.steps, pipe_args=settings.call_args, loading=settings,
        load=networks.pipeline, drafting=settings.drafting,
    )  # fmt: skip
    judge = _judge_name(settings.model, sampler)
    names = list(dict.fromkeys([*settings.verifiers, *([] if judge is None else [judge])]))
    about: dict[str, Any] = settings.model_dump(mode="json", include={"model", "steps", "pipe_args", "negative_prompt"})
    about |= settings.decisive() | settings.drafting.decisive()
    about |= {"judge": judge, "sources": sources(*settings.verifiers)}
    verifiers = {name: networks.verifier(name, settings.model) for name in names}
    plan = _plan(settings, sampler)
    return record(sampler, verifiers, plan, path, about=about, batch_size=settings.batch_size, progress=progress)


def _recorded(path: Path) -> dict[str, Any]:
    """What the tape at `path`, or the first part of it, says about itself; empty if there is none.

    Raises DiffscaleError for a file that is none.
    """
    if path.exists():
        try:
            return dict(load_tape(path).about)
        except DiffscaleError as error:
            raise DiffscaleError(f"{path} exists and is no tape: choose another --output.") from error
    first = path.with_name(f"{path.name}.0")
    return dict(load_tape(first).about) if first.exists() else {}


def _plan(settings: TapeConfig | TuneConfig, sampler: Sampler) -> Plan:
    predictions, drafts = settings.predictions, settings.drafts
    if predictions is None:  # a pipeline that can only be run whole has none
        predictions = [] if isinstance(sampler, WholeSampler) else every_second(sampler.steps)
    if drafts is None and isinstance(sampler, Drafts):
        drafts = [(steps, "") for steps in short_drafts(sampler.steps)]
        drafts += [(sampler.draft_steps(via), via) for via in sampler.drafts if via]
    views = isinstance(settings, TapeConfig) and settings.views
    return Plan(settings.candidates, settings.seed, sorted(set(predictions)), list(dict.fromkeys(drafts or [])), views)


def _judge_name(model: str, sampler: Sampler) -> str | None:
    """The judge of the model's world, if it can read all prompts and a picture of that size; else None."""
    world = world_of(model)
    if world is None:
        return None
    start = sampler.prior(torch.tensor([0]), torch.tensor([0]))
    picture = sampler.decode(start.x)[0]
    return world.judge_name if all(can_judge(world, prompt, picture) for prompt in sampler.prompts) else None


def default_judge(tape: Tape, verifier: str) -> str | None:
    """The judge that was recorded beside the verifiers, unless that is the `verifier` itself."""
    judge = tape.about.get("judge")
    return judge if judge in tape.scores and judge != verifier else None


def default_budget(tape: Tape) -> int:
    """A quarter of what the samples of a prompt cost, of which searches may draft many more than they finish."""
    return max(1, tape.candidates // 4) * tape.steps
