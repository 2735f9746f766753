"""Calls of a pipeline with a window of its time grid: text encoded once, networks counted, a pipeline left as it is."""

import copy
import inspect
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.engine.flops import count_flops
from diffscale.samplers.arguments import arguments_of_rows, call_parameters, embeddings, is_text, no_step_left
from diffscale.samplers.caches import caches
from diffscale.samplers.calls import counted_rows, networks_of, overridden, same_in_every_row
from diffscale.samplers.safety import flags_of_rows, has_checker, noted_flags, unchecked
from diffscale.samplers.windowed.latents import InitialLatents
from diffscale.samplers.windowed.loop import NotWindowed, windowed_call
from diffscale.samplers.windowed.scheduler import StepWindow, own_class, windowed
from diffscale.samplers.windowed.text import PromptEncodings

_KEPT: Final = "it does not give its latents back"


class WindowedPipeline:
    """A copy of `pipe` whose calls run windows; it shares the networks, and what is set on it stays off the user's.

    `forwards`: rows through the denoiser so far. `alone`: whether every row is a batch of its own. `differentiable`:
    whether calls keep a graph. `around`: what each call runs within, given the copy. `encodings`: of the prompts, None
    if embeddings are in `args`. Raises NotWindowed for pipelines that cannot be windowed.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], inference_steps: int, args: Mapping[str, Any]) -> None:
        taken = call_parameters(pipe)
        if "output_type" not in taken or not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
            raise NotWindowed("it has no output type or no scheduler of its own")
        if cached := caches(pipe):
            raise NotWindowed(f"its {' and '.join(cached)} caches what it does, from one step to the next")
        self.prompts, self.forwards, self.alone, self.differentiable = list(prompts), 0, False, False
        self._steps, self._args, self._taken = inference_steps, dict(args), taken
        self.around: Callable[[Any], AbstractContextManager[Any]] = nullcontext
        self._denoisers: list[torch.nn.Module] = []
        self._own = pipe
        self._pipe = copy.copy(pipe)
        # A pipeline with model offload takes all networks off the device at the end of every call, and every window is
        # one. Without this list the copy leaves them; their own hooks still move them as others need the room.
        self._pipe.__dict__["_all_hooks"] = []
        self._pipe.set_progress_bar_config(disable=True)
        self.scheduler = windowed(pipe.scheduler)
        self._pipe.__dict__["scheduler"] = self.scheduler
        self.encodings = None if embeddings(args) else PromptEncodings(self._pipe)
        self.initial = InitialLatents(self._pipe)
        self.scheduler.keeps_noise_scale = self.initial.replaceable
        if not self.initial.replaceable and "latents" not in taken:
            raise NotWindowed("it makes its latents where they cannot be handed over")
        inputs = taken.get("callback_on_step_end_tensor_inputs")
        self._tells_latents = "callback_on_step_end" in taken and inputs is not None and inputs.default == ["latents"]
        self._stepped_latents: Any = None
        # Bria compares its scheduler's class, which ours is derived from.
        names: dict[str, Any] = {"type": own_class}
        if own := inspect.unwrap(type(pipe).__call__).__globals__.get("randn_tensor"):
            names["randn_tensor"] = lambda *a, **kw: same_in_every_row(own(*a, **kw), -1)
        self._call = windowed_call(self._pipe, self.scheduler.visits_of, **names)

    def run(self, latents: Tensor, rows: Sequence[int], window: StepWindow, output: str = "latent") -> Tensor:
        """The pipeline's answer for `window` from `latents` [B, ...], for the prompts `rows`, that no checker saw."""
        with unchecked(self._pipe):
            return self._run(latents, rows, window, output)

    def run_checked(
        self, latents: Tensor, rows: Sequence[int], window: StepWindow, output: str
    ) -> tuple[Any, list[bool]]:
        """As `run`, of the pictures that the pipeline's safety checker leaves, and a flag for each."""
        with noted_flags(self._pipe) as flags:
            answer = self._run(latents, rows, window, output)
        return answer, flags_of_rows(flags, len(rows))

    def _run(self, latents: Tensor, rows: Sequence[int], window: StepWindow, output: str) -> Any:
        self.initial.latents = latents
        given = {} if self.initial.replaceable else {"latents": latents}
        return self._answer(window, {**self._arguments(rows), **given}, output)

    def output(self, latents: Tensor, rows: Sequence[int], window: StepWindow, output_type: str, as_class: bool) -> Any:
        """As `run`, but all that the pipeline's own call gives: an object of its output class, or a tuple."""
        self.initial.latents = latents
        given = {} if self.initial.replaceable else {"latents": latents}
        return self._called(window, {**self._arguments(rows), **given}, output_type, as_class)[0]

    def mix_noise(self, unit: Tensor, rows: Sequence[int]) -> Tensor:
        """Latents that the pipeline makes of its picture and unit noise [B, ...]."""
        self.initial.noise = unit
        return self._answer(StepWindow(0, 0), self._arguments(rows))

    def encode_prompts(self) -> Tensor:
        """Have every prompt encoded; returns latents that the pipeline drew itself [1, ...].

        Raises NotWindowed for pipelines that cannot be windowed, DiffscaleError for arguments that leave no step.
        """
        drawn = [self._answer(StepWindow(0, 0), self._arguments_of_next(row)) for row in range(len(self.prompts))]
        if isinstance(drawn[0], np.ndarray):
            raise NotWindowed(_KEPT)
        if not isinstance(drawn[0], Tensor):
            raise NotWindowed("its latents are not one tensor")
        if self.scheduler.count is None:
            if reason := no_step_left(self._pipe, self._steps, self._args):
                raise DiffscaleError(reason)
            raise NotWindowed("it does not loop over its scheduler's timesteps")
        if self.initial.mixes_noise and self.initial.noise_shape is None:
            raise NotWindowed("it draws no noise for its picture")
        return drawn[0]

    def probe(self, latents: Tensor) -> tuple[int, float, dict[str, Any]]:
        """(Rows per evaluation, FLOPs per row) of the denoiser, by one evaluation of one row of `latents` [1, ...].

        And what else than latents the pipeline's call gives its solver.

        Finds out what is the denoiser, and raises NotWindowed for a pipeline whose steps are not the solver's alone.
        """
        window = StepWindow(0, 1, torch.zeros(1, dtype=torch.int64), predict_only=True)
        with counted_rows(networks_of(self._pipe)) as called, count_flops() as flops:
            answer = self.run(latents, [0], window)
        stepped = window.sample
        if not called or stepped is None:
            raise NotWindowed("no network was called in its first step")
        if not isinstance(answer, Tensor) or answer.shape != stepped.shape:
            raise NotWindowed("it gives its latents back in another layout than it steps them in")
        if not torch.equal(answer, stepped.to(answer)):
            raise NotWindowed("it changes its latents after the solver's step")
        if stepped.shape != latents.shape or not torch.equal(stepped.to(latents), latents):
            raise NotWindowed("it changes its latents before the solver's step")
        # Whatever is called last before the solver's step is the denoiser; pipelines with several (one for high and
        # one for low noise) have them of one class.
        kind = type(called[-1][0])
        self._denoisers = [network for network in networks_of(self._pipe) if type(network) is kind]
        forwards = sum(rows for network, rows in called if type(network) is kind)
        return forwards, flops.total / forwards, window.step_args

    def in_steps(self, inference_steps: int) -> "WindowedPipeline":
        """As this one, with its encodings, on the grid of another number of steps."""
        other = WindowedPipeline(self._own, self.prompts, inference_steps, self._args)
        if other.encodings is not None and self.encodings is not None:
            other.encodings.share(self.encodings)
        other._denoisers, other.alone = self._denoisers, self.alone
        none = f"{self.class_name} leaves no step of {inference_steps}: draft in more steps."
        with explained(none, *((ValueError,) if no_step_left(self._own, inference_steps, self._args) else ())):
            other._answer(StepWindow(0, 0), other._arguments([0]))  # by which the scheduler learns its grid
        if other.scheduler.count is None:
            raise DiffscaleError(none)
        return other

    @property
    def has_checker(self) -> bool:
        """Whether the pipeline has a safety checker."""
        return has_checker(self._pipe)

    @property
    def denoisers(self) -> dict[str, torch.nn.Module]:
        """The denoiser by the pipeline's name for it; several where one is for high and one for low noise."""
        return {name: part for name, part in self.components.items() if any(part is net for net in self._denoisers)}

    @property
    def components(self) -> dict[str, Any]:
        """All parts of the pipeline by their names."""
        return dict(self._pipe.components)

    @property
    def class_name(self) -> str:
        """The pipeline's class."""
        return type(self._pipe).__name__

    def set_prompts(self, prompts: Sequence[str], args: Mapping[str, Any]) -> None:
        """From now on rows are of these `prompts`; `args` in the place of those of the same names before.

        Raises DiffscaleError if embeddings are given only now, or no more.
        """
        if bool(embeddings(args)) == (self.encodings is not None):
            raise DiffscaleError("Give embeddings (prompt_embeds) from the start and always, or never.")
        self.prompts, self._args = list(prompts), {**self._args, **args}
        if self.encodings is not None:
            self.encodings.clear()
            self.encode_prompts()

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the pipeline's own encoding makes of `prompts`, by number, a row each; rows are of these afterwards.

        Raises DiffscaleError if embeddings were given, and where prompts of other lengths have other shapes.
        """
        if self.encodings is None:
            raise DiffscaleError("Embeddings are given to this pipeline already: there is nothing to encode.")
        self.set_prompts(prompts, {})
        columns = list(zip(*self.encodings.tensors(), strict=True))
        if any(len({tensor.shape for tensor in column}) != 1 for column in columns):
            raise DiffscaleError("This pipeline encodes prompts to as many tokens as they have, so none can be kept.")
        return {f"{number:02}": torch.stack(column) for number, column in enumerate(columns)}

    def set_embedded_prompts(self, prompts: Sequence[str], embeddings: Mapping[str, Tensor]) -> None:
        """As `set_prompts`, by what `embed` made of the prompts."""
        assert self.encodings is not None
        self.prompts = list(prompts)
        self.encodings.replace(list(zip(*(column for _, column in sorted(embeddings.items())), strict=True)))

    def groups(self, rows: Sequence[int], keys: Sequence[Hashable] | None = None) -> list[list[int]]:
        """Positions in `rows` that can share a batch: their text has equal shapes, and their `keys` are equal."""
        if self.alone:
            return [[i] for i in range(len(rows))]
        alike: dict[Hashable, list[int]] = {}
        for i, row in enumerate(rows):
            layout = None if self.encodings is None else self.encodings.layout(row)
            alike.setdefault((layout, None if keys is None else keys[i]), []).append(i)
        return list(alike.values())

    def with_networks(self, networks: Mapping[str, torch.nn.Module]) -> AbstractContextManager[None]:
        """Within it `networks` are in the place of the pipeline's of the same names; their rows are not counted."""
        return overridden(self._pipe, **networks)

    def graph_kept(self, on: bool = True) -> AbstractContextManager[None]:
        """Within it calls keep a graph, if `on`."""
        return overridden(self, differentiable=on)

    def _arguments(self, rows: Sequence[int]) -> dict[str, Any]:
        """Arguments of a call for the prompts `rows`, whose encodings it gets."""
        if self.encodings is not None:
            self.encodings.replay(rows)
        return arguments_of_rows(self._args, rows, self.prompts)

    def _arguments_of_next(self, row: int) -> dict[str, Any]:
        """Arguments of a call that encodes the prompt `row`."""
        args = arguments_of_rows(self._args, [row], self.prompts)
        if self.encodings is None:
            return args
        self.encodings.record()
        # One text as a string, as not all pipelines encode lists.
        return {name: value[0] if value is not None and is_text(name) else value for name, value in args.items()}

    def _answer(self, window: StepWindow, args: dict[str, Any], output: str = "latent") -> Any:
        """What the pipeline's call with `args` gives for a window: latents, or another `output`."""
        answer, began, stepped = self._called(window, args, output)
        if output != "latent":
            return answer[0]
        # What a pipeline answers as its latents may be in another layout than what it steps.
        if window.start == window.stop and window.levels is None and began is not None:
            return began
        return answer[0] if stepped is None else stepped

    def _called(
        self, window: StepWindow, args: dict[str, Any], output: str, as_class: bool = False
    ) -> tuple[Any, Any, Any]:
        """The call's answer, the latents that it began with, and those of its last step, where they are known."""
        if "generator" in self._taken:
            # The pipeline may draw what is thrown away: not from the user's generator.
            args["generator"] = torch.Generator().manual_seed(0)
        if self._tells_latents:
            args["callback_on_step_end"] = self._step_ended
        args |= {"num_inference_steps": self._steps, "output_type": output, "return_dict": as_class}
        self._stepped_latents = None
        self.scheduler.window = window
        with counted_rows(self._denoisers) as called, torch.set_grad_enabled(self.differentiable):
            try:
                with self.around(self._pipe):
                    answer = self._call(self._pipe, **args)
            except UnboundLocalError as error:
                raise NotWindowed("it cannot be called without a step") from error
            except ValueError as error:
                if output == "latent" and "output_type=latent" in str(error):
                    raise NotWindowed(_KEPT) from error
                raise
            finally:
                began, stepped = self.initial.end_call(), self._stepped_latents
                self._stepped_latents = None
                self.forwards += sum(rows for _, rows in called)
        return answer, began, stepped

    def _step_ended(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        self._stepped_latents = values["latents"]
        return {}
