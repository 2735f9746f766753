"""A pipeline that cannot be windowed, as a Sampler whose only move is the whole trajectory."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Final, NoReturn

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.flops import count_flops
from diffscale.samplers.arguments import arguments_of_rows, call_parameters, check_arguments
from diffscale.samplers.caches import caches, forget
from diffscale.samplers.calls import (
    NormalDraws,
    answering,
    counted_rows,
    networks_of,
    overridden,
    pictures,
    same_in_every_row,
    together_or_alone,
)
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.drafts import Around, DraftingSampler
from diffscale.samplers.safety import flags_of_rows, has_checker, noted_flags
from diffscale.samplers.windowed.loop import NotWindowed
from diffscale.types import State

_FLAGGED: Final = -1.0
_log = logging.getLogger(__name__)


def sampler_of(
    pipe: Any, prompts: Sequence[str], inference_steps: int, pipe_args: Mapping[str, Any] | None = None
) -> DiffusersSampler | WholeSampler:
    """A DiffusersSampler of `pipe`, or a WholeSampler with a warning that says why; arguments as of these.

    Raises DiffscaleError for pipelines that can be neither, and for arguments that they do not take.
    """
    try:
        return DiffusersSampler(pipe, prompts, inference_steps, pipe_args)
    except NotWindowed as error:
        why = str(error)
        name = type(pipe).__name__
        _log.warning("%s is run whole, for searches over noises only, because %s.", name, why)
        return WholeSampler(pipe, prompts, inference_steps, pipe_args, why)


class WholeSampler(DraftingSampler):
    """A Sampler over any pipeline that draws normal noise and answers pictures or videos; for searches over noises.

    `pipe`: left as it is. `why`: why it cannot be windowed, a clause. The other arguments are as of
    `diffusers.DiffusersSampler`. The pipeline's own call is run from end to end; the noise that its latents start from
    is the searched one (see `KeyedDraws`), every other draw comes from the row's key. The final latents of a State
    are the pictures themselves, -1 throughout where the pipeline's safety checker flagged one.

    `caches`: of the pipeline's networks, see `caches.caches`. With one, each row is run alone, and `flops_per_forward`
    is that of the last run, as a cache leaves out more of one trajectory than of another.

    Building one runs one whole sample, in no ledger, to learn the noise's shape and what a trajectory costs: `steps`
    is the number of scheduler steps, or of calls of the denoiser, the network that is called most often, where that is
    no multiple of them; `forwards_per_nfe` is its rows in each. One of other steps learns the same of the call alone,
    in which what the denoiser said then stands for it. Raises DiffscaleError if the pipeline draws no noise or calls no
    network.
    """

    predictable: Final = ()
    forwards: int = 0

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        inference_steps: int,
        pipe_args: Mapping[str, Any] | None = None,
        why: str = "it was asked for whole",
    ) -> None:
        check_arguments(pipe, prompts, pipe_args or {})
        self.prompts, self.why, self.alone = list(prompts), why, False
        self._pipe, self._name = pipe, type(pipe).__name__
        self.intervals, self._args = inference_steps, dict(pipe_args or {})
        self._taken = call_parameters(pipe)
        if not {"output_type", "return_dict"} <= set(self._taken):
            raise DiffscaleError(f"{self._name} has no output type, so it gives no pictures to search; use another.")
        self.caches = caches(pipe)
        if self.caches:
            self.alone = True
            _log.warning("%s has a cache, which may decide over a whole batch: each row is run alone.", self._name)
        self._flops, self._measured = 0, 0
        self._denoisers: list[torch.nn.Module] = []
        self._around: Around = nullcontext
        self._start: int | None = None
        self._said: dict[tuple[int, Any, Any], Any] = {}
        steps, called, flops = self._probe()
        kinds = [type(network) for network, _ in called]
        most = max(kinds, key=kinds.count)
        self._denoisers = [network for network in networks_of(self._pipe) if type(network) is most]
        rows = [rows for network, rows in called if type(network) is most]
        self._take_costs(steps, rows, flops / sum(rows))
        own = {id(network) for network in self._denoisers}
        self._said = {key: answer for key, answer in self._said.items() if key[0] in own}
        self._probed = flops, sum(rows)

    def in_steps(self, intervals: int) -> WholeSampler:
        other = copy.copy(self)
        other.intervals = intervals
        steps, called, beside = other._probe()
        other.forwards = 0  # of what was counted, nothing was computed
        rows = [rows for network, rows in called if network in self._denoisers]
        flops, theirs = self._probed
        other._take_costs(steps, rows, (flops - beside) / theirs + beside / sum(rows))
        return other

    @property
    def denoisers(self) -> Sequence[torch.nn.Module]:
        return self._denoisers

    def call_within(self, around: Around) -> None:
        self._around = around

    @property
    def noise_scale(self) -> float:
        return 1.0

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        return State(noise.normal(keys, self._shape), 0, keys, rows)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        """From noise to the end; nothing else, see the class."""
        if record is not None or to not in (None, self.steps) or state.step not in (0, self.steps):
            self._refuse()
        if state.step == self.steps:
            return state
        self._flops, self._measured = 0, 0
        images = together_or_alone(self, self._name, len(state), lambda: self._pictures(state))
        if self._measured:
            self.flops_per_forward = self._flops / self._measured
        return replace(state, x=images, step=self.steps)

    def pipeline_output(self, state: State, output_type: str, return_dict: bool) -> Any:
        """What the pipeline's own call gives for the noise of `state`, at step 0: its output class, or a tuple.

        It runs again, as the final latents are pictures (of a video a few frames) and no longer all that it gave.
        """
        return self._call(state.key, state.prompt_index.tolist(), state.x, output_type, return_dict)[0]

    def decode(self, latents: Tensor) -> Tensor:
        """`latents`, which are pictures [B, 3, H, W] in [0, 1], or frames [B, F, 3, H, W]."""
        return latents.clamp(min=0)

    @property
    def checks_pictures(self) -> bool:
        return has_checker(self._pipe)

    def decode_checked(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self.decode(latents), (latents == _FLAGGED).flatten(1).all(1).cpu()

    def _pictures(self, state: State) -> Tensor:
        batches = [state[[row]] for row in range(len(state))] if self.alone else [state]
        return torch.cat([self._marked(batch) for batch in batches])

    def _marked(self, state: State) -> Tensor:
        answer, draws = self._call(state.key, state.prompt_index.tolist(), state.x)
        images = pictures(answer[0])
        images[torch.tensor(flags_of_rows(draws.flags, len(state)))] = _FLAGGED
        return images

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise DiffscaleError(
            f"{self._name} can only be run whole ({self.why}), but this needs the middle of its trajectories: use a "
            "search over noises (see `diffscale list searches`) and a verifier of finished pictures."
        )

    predict = predicted = step = renoise = solve = gradient = _refuse

    def _probe(self) -> tuple[int, list[tuple[torch.nn.Module, int]], float]:
        """What a call for one row does: scheduler steps, networks that it calls with their rows, and operations.

        Of a network that has answered such a call before, nothing is computed.
        """
        networks = networks_of(self._pipe)
        schedulers = [part for part in self._pipe.components.values() if hasattr(part, "set_timesteps")]
        known = self._denoisers or networks
        with (
            counted_rows(networks) as called,
            count_flops() as flops,
            _listed_steps(schedulers) as steps,
            answering(known, self._said, again=bool(self._denoisers)),
        ):
            _, draws = self._call(torch.zeros(1, dtype=torch.int64), [0], None)
        if not draws.shapes:
            raise DiffscaleError(f"{self._name} draws no normal noise, so there is nothing to search; use another.")
        if not called:
            raise DiffscaleError(f"No network of {self._name} was called, so its cost cannot be counted; use another.")
        self._start = draws.last_prepared or 0
        self._shape = draws.shapes[self._start][1:]
        return len(steps), called, flops.total

    def _take_costs(self, steps: int, rows: Sequence[int], flops_per_forward: float) -> None:
        """Take what a trajectory costs: scheduler steps, and the denoiser's rows in each of its calls."""
        # Guidance by a second call belongs to the same step.
        self.steps = steps if steps and len(rows) % steps == 0 else len(rows)
        self.levels = [1 - i / self.steps for i in range(self.steps + 1)]
        self.forwards_per_nfe = sum(rows) / self.steps
        self.flops_per_forward = flops_per_forward

    def _call(
        self, keys: Tensor, rows: Sequence[int], start: Tensor | None, output: str = "np", as_class: bool = False
    ) -> tuple[Any, KeyedDraws]:
        """The pipeline's answer, and what it drew."""
        args = arguments_of_rows(self._args, rows, self.prompts)
        if "num_inference_steps" in self._taken:
            args["num_inference_steps"] = self.intervals
        if "generator" in self._taken:
            args["generator"] = torch.Generator().manual_seed(0)
        draws = KeyedDraws(keys, start, self._start)
        # The user's own, not a copy: a cache's callback may ask it where in its trajectory it is.
        with _left_as_it_is(self._pipe) as pipe, self._counted(), torch.no_grad(), self._around(pipe), draws:
            pipe.set_progress_bar_config(disable=True)
            draws.watch_prepare_latents(pipe)
            if self.caches:
                forget(pipe)
            with noted_flags(pipe) as draws.flags:
                answer = pipe(**args, output_type=output, return_dict=as_class)
        return answer, draws

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Within it the denoiser's rows are counted, and their operations where a cache leaves out some."""
        measured = bool(self.caches and self._denoisers)
        with counted_rows(self._denoisers) as called, count_flops() if measured else nullcontext() as flops:
            try:
                yield
            finally:
                rows = sum(rows for _, rows in called)
                self.forwards += rows
        if flops is not None:
            self._flops, self._measured = self._flops + flops.total, self._measured + rows


class KeyedDraws(NormalDraws):
    """Within it torch's normal draws come from `keys` (int64 [B]), and the starting noise is `given`, if not None.

    A draw that is not one a row is the same for all rows. `start`: number of the starting noise among the draws; None
    where it is not known yet. It is the last draw of the pipeline's first `prepare_latents`, after what a picture's
    encoding draws, `last_prepared`, or the first draw of all where there is none. `flags`: of the pictures that were
    made within it, by a safety checker.
    """

    def __init__(self, keys: Tensor, given: Tensor | None, start: int | None) -> None:
        super().__init__(self._keyed)
        self._keys, self._given, self._start = keys, given, start
        self.last_prepared: int | None = None
        self.flags: list[bool] = []

    def watch_prepare_latents(self, pipe: Any) -> None:
        """Notice the draws of `prepare_latents` of `pipe`, whose attributes are put back later."""
        if (own := getattr(type(pipe), "prepare_latents", None)) is None:
            return

        @functools.wraps(own)
        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            before = len(self.shapes)
            prepared = own(pipe, *args, **kwargs)
            if self.last_prepared is None and len(self.shapes) > before:
                self.last_prepared = len(self.shapes) - 1
            return prepared

        pipe.__dict__["prepare_latents"] = prepare_latents

    def _keyed(self, drawn: Tensor, number: int) -> Tensor:
        if self._given is not None and number == self._start:
            return self._given.to(drawn)
        if len(drawn) != len(self._keys):
            return same_in_every_row(drawn, number)
        return noise.normal(noise.fold_rows(self._keys, "draw", number), drawn.shape[1:]).to(drawn)


@contextmanager
def _left_as_it_is(pipe: Any) -> Iterator[Any]:
    """Gives `pipe`, whose attributes are as before afterwards."""
    before = dict(vars(pipe))
    try:
        yield pipe
    finally:
        vars(pipe).clear()
        vars(pipe).update(before)


@contextmanager
def _listed_steps(schedulers: Sequence[Any]) -> Iterator[list[Any]]:
    """Within it every step of `schedulers` is listed."""
    steps: list[Any] = []

    def noted(own: Any) -> Any:
        @functools.wraps(own)
        def step(*args: Any, **kwargs: Any) -> Any:
            steps.append(own)
            return own(*args, **kwargs)

        return step

    with ExitStack() as stack:
        for scheduler in schedulers:
            stack.enter_context(overridden(scheduler, step=noted(scheduler.step)))
        yield steps
