"""Calls of a pipeline with a window of its time grid: text encoded once, networks counted, a pipeline left as it is."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine.flops import count_flops
from diffscale.samplers.arguments import deal, texts
from diffscale.samplers.counting import hooked, networks_of
from diffscale.samplers.faults import stepless
from diffscale.samplers.windowed.latents import Opening, steady
from diffscale.samplers.windowed.loop import NotWindowed, windowed_call
from diffscale.samplers.windowed.scheduler import Window, windowed
from diffscale.samplers.windowed.text import Texts

_KEPT: Final = "it does not give its latents back"


class Calls:
    """A copy of `pipe` whose calls run windows; it shares the networks, and what is set on it stays off the user's.

    `forwards`: rows through the denoiser so far. `differentiating`: whether calls keep a graph. `texts`: the prompts'
    encodings, None if embeddings are in `args`. Raises NotWindowed for pipelines that cannot be windowed.
    """

    def __init__(self, pipe: Any, prompts: Sequence[str], inference_steps: int, args: Mapping[str, Any]) -> None:
        taken = inspect.signature(type(pipe).__call__).parameters
        if "output_type" not in taken or not hasattr(getattr(pipe, "scheduler", None), "set_timesteps"):
            raise NotWindowed("it has no output type or no scheduler of its own")
        self.prompts, self.forwards, self.differentiating = list(prompts), 0, False
        self._steps, self._args, self._taken = inference_steps, dict(args), taken
        self._denoisers: list[torch.nn.Module] = []
        self._pipe = copy.copy(pipe)
        # A pipeline with model offload takes all networks off the device at the end of every call, and every window is
        # one. Without this list the copy leaves them; their own hooks still move them as others need the room.
        self._pipe.__dict__["_all_hooks"] = []
        self._pipe.set_progress_bar_config(disable=True)
        self.scheduler = windowed(pipe.scheduler)
        self._pipe.__dict__["scheduler"] = self.scheduler
        self.texts = None if "prompt_embeds" in args else Texts(self._pipe)
        self.opening = Opening(self._pipe)
        if not self.opening.owned and "latents" not in taken:
            raise NotWindowed("it makes its latents where they cannot be handed over")
        inputs = taken.get("callback_on_step_end_tensor_inputs")
        self._told = "callback_on_step_end" in taken and inputs is not None and inputs.default == ["latents"]
        self._reached: Any = None
        names = {}
        if own := inspect.unwrap(type(pipe).__call__).__globals__.get("randn_tensor"):
            names["randn_tensor"] = lambda *a, **kw: steady(own(*a, **kw), -1)
        self._call = windowed_call(self._pipe, self.scheduler, **names)

    def run(self, x: Tensor, rows: Sequence[int], window: Window, output: str = "latent") -> Tensor:
        """The pipeline's answer for `window` from latents `x` [B, ...], for the prompts `rows`."""
        self.opening.latents = x
        return self._answer(rows, window, output, {} if self.opening.owned else {"latents": x})

    def open(self, unit: Tensor, rows: Sequence[int]) -> Tensor:
        """Latents that the pipeline makes of its picture and unit noise [B, ...]."""
        self.opening.noise = unit
        return self._answer(rows, Window(0, 0), "latent", {})

    def encode(self) -> Tensor:
        """Have every prompt encoded; returns latents that the pipeline drew itself [1, ...]."""
        drawn = [self._answer([row], Window(0, 0), "latent", {}, record=True) for row in range(len(self.prompts))]
        if isinstance(drawn[0], np.ndarray):
            raise NotWindowed(_KEPT)
        if not isinstance(drawn[0], Tensor):
            raise NotWindowed("its latents are not one tensor")
        if self.scheduler.count is None:
            if said := stepless(self._pipe, self._steps, self._args):
                raise DiffscaleError(said)
            raise NotWindowed("it does not loop over its scheduler's timesteps")
        if self.opening.mixes and self.opening.noise_shape is None:
            raise NotWindowed("it draws no noise for its picture")
        return drawn[0]

    def probe(self, x: Tensor) -> tuple[int, float]:
        """(Rows per evaluation, FLOPs per row) of the denoiser, by one evaluation of one row of latents `x` [1, ...].

        Finds out what is the denoiser, and raises NotWindowed for a pipeline whose steps are not the solver's alone.
        """
        window = Window(0, 1, torch.zeros(1, dtype=torch.int64), hold=True)
        with hooked(networks_of(self._pipe)) as called, count_flops() as flops:
            answer = self.run(x, [0], window)
        if not called or window.sample is None:
            raise NotWindowed("no network was called in its first step")
        if not isinstance(answer, Tensor) or answer.shape != window.sample.shape:
            raise NotWindowed("it gives its latents back in another layout than it steps them in")
        if not torch.equal(answer, window.sample.to(answer)):
            raise NotWindowed("it changes its latents after the solver's step")
        if window.sample.shape != x.shape or not torch.equal(window.sample.to(x), x):
            raise NotWindowed("it changes its latents before the solver's step")
        # Whatever is called last before the solver's step is the denoiser; pipelines with several (one for high and
        # one for low noise) have them of one class.
        kind = type(called[-1][0])
        self._denoisers = [network for network in networks_of(self._pipe) if type(network) is kind]
        forwards = sum(rows for network, rows in called if type(network) is kind)
        return forwards, flops.total / forwards

    @property
    def denoisers(self) -> dict[str, torch.nn.Module]:
        """The denoiser by the pipeline's name for it; several where one is for high and one for low noise."""
        parts = self._pipe.components
        return {name: part for name, part in parts.items() if any(part is net for net in self._denoisers)}

    @property
    def names(self) -> list[str]:
        """Of all the pipeline's parts."""
        return list(self._pipe.components)

    @property
    def kind(self) -> str:
        """The pipeline's class."""
        return type(self._pipe).__name__

    def part(self, name: str) -> Any:
        """The pipeline's part of that name, None if it has none."""
        return self._pipe.components.get(name)

    def tell(self, prompts: Sequence[str], args: Mapping[str, Any]) -> None:
        """From now on rows are of these `prompts`; `args` in the place of those of the same names before.

        Raises DiffscaleError if embeddings are given only now, or no more.
        """
        if ("prompt_embeds" in args) == (self.texts is not None):
            raise DiffscaleError("Give embeddings (prompt_embeds) from the start and always, or never.")
        self.prompts, self._args = list(prompts), {**self._args, **args}
        if self.texts is not None:
            self.texts.forget()
            self.encode()

    def embed(self, prompts: Sequence[str]) -> dict[str, Tensor]:
        """What the pipeline's own encoding makes of `prompts`, by number, a row each; rows are of these afterwards.

        Raises DiffscaleError if embeddings were given, and where prompts of other lengths have other shapes.
        """
        if self.texts is None:
            raise DiffscaleError("Embeddings are given to this pipeline already: there is nothing to encode.")
        self.tell(prompts, {})
        columns = list(zip(*self.texts.tensors(), strict=True))
        if any(len({tensor.shape for tensor in column}) != 1 for column in columns):
            raise DiffscaleError("This pipeline encodes prompts to as many tokens as they have, so none can be kept.")
        return {f"{number:02}": torch.stack(column) for number, column in enumerate(columns)}

    def tell_embedded(self, prompts: Sequence[str], embeddings: Mapping[str, Tensor]) -> None:
        """As `tell`, by what `embed` made of the prompts."""
        assert self.texts is not None
        self.prompts = list(prompts)
        self.texts.hold(list(zip(*(column for _, column in sorted(embeddings.items())), strict=True)))

    @contextmanager
    def using(self, networks: Mapping[str, torch.nn.Module]) -> Iterator[None]:
        """Within it `networks` are in the place of the pipeline's of the same names; their rows are not counted."""
        own = {name: vars(self._pipe)[name] for name in networks}
        vars(self._pipe).update(networks)
        try:
            yield
        finally:
            vars(self._pipe).update(own)

    @contextmanager
    def differentiated(self, on: bool = True) -> Iterator[None]:
        """Within it calls keep a graph, if `on`."""
        before, self.differentiating = self.differentiating, on
        try:
            yield
        finally:
            self.differentiating = before

    def _answer(
        self, rows: Sequence[int], window: Window, output: str, more: dict[str, Any], record: bool = False
    ) -> Any:
        args = deal(self._args, rows, len(self.prompts))
        if self.texts is not None:
            said = {**texts(self._args, rows), "prompt": [self.prompts[row] for row in rows]}
            if record:
                # One prompt as a string, as not all pipelines encode lists.
                self.texts.record()
                args |= {name: one for name, (one,) in said.items()}
            else:
                self.texts.replay(rows)
                args |= said
        if "generator" in self._taken:
            # The pipeline may draw what is thrown away: not from the user's generator.
            args["generator"] = torch.Generator().manual_seed(0)
        if self._told:
            args["callback_on_step_end"] = self._step_ended
        self._reached = None
        self.scheduler._window = window
        self.scheduler.own_scale = self.opening.owned
        with hooked(self._denoisers) as called, torch.set_grad_enabled(self.differentiating):
            try:
                answer = self._call(
                    self._pipe,
                    **args,
                    **more,
                    num_inference_steps=self._steps,
                    output_type=output,
                    return_dict=False,
                )
            except UnboundLocalError as error:
                raise NotWindowed("it cannot be called without a step") from error
            except ValueError as error:
                if output == "latent" and "output_type=latent" in str(error):
                    raise NotWindowed(_KEPT) from error
                raise
            finally:
                begun, reached, self._reached = self.opening.close(), self._reached, None
                self.forwards += sum(rows for _, rows in called)
        if output != "latent":
            return answer[0]
        # What a pipeline answers as its latents may be in another layout than what it steps.
        if window.low == window.high and window.levels is None and begun is not None:
            return begun
        return answer[0] if reached is None else reached

    def _step_ended(self, pipe: Any, step: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        self._reached = values["latents"]
        return {}
