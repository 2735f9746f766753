"""Any diffusers pipeline whose time grid can be windowed as a Sampler, without forking it.

Everything is a call of the pipeline with a window of the time grid (see `calls.py`): encoding text
is the empty window before the first step, a run [i, j), a prediction one step that is held back,
and decoding the empty window after the last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers import levels
from diffscale.samplers.arguments import check
from diffscale.samplers.formulas import Marginal, denoise, noised
from diffscale.samplers.frames import pictures
from diffscale.samplers.gradients import checkpointed
from diffscale.samplers.grid import check_renoising, place, stops
from diffscale.samplers.windowed.pipeline import Calls
from diffscale.samplers.windowed.scheduler import Window
from diffscale.types import State, concat, nearest


class DiffusersSampler:
    """A Sampler over `pipe`, any diffusers pipeline of pictures or videos that can be windowed.

    `pipe`: left as it is. `prompts`: at least one; rows of different prompts share batches.
    `inference_steps`: the pipeline's num_inference_steps; `steps`, the denoiser evaluations of a
    trajectory, is larger for some schedulers (Heun: 2 n - 1, PNDM: n + 1) and smaller where a picture is started from
    (`strength`). `pipe_args`: other arguments of the pipeline's call; a tensor with as many entries as there are
    prompts is dealt out by rows, so embeddings made before can be given as `prompt_embeds=...`.

    A pipeline that starts from a picture has that picture's noise at step 0, as it draws it itself, and latents
    from there on. A video is scored, and shown, by the frames of `frames.pictures`.

    Building one encodes every prompt once and evaluates the denoiser once, in no ledger, to learn
    the latents' shape, `forwards_per_nfe` (2 with classifier-free guidance; the ledger counts rows
    as they run, so it is for information) and `flops_per_forward`.
    Raises NotWindowed for pipelines and schedulers that cannot be windowed (see `whole.WholeSampler`), DiffscaleError
    for arguments that the pipeline does not take.
    """

    def __init__(
        self,
        pipe: Any,
        prompts: Sequence[str],
        inference_steps: int,
        pipe_args: Mapping[str, Any] | None = None,
    ) -> None:
        check(pipe, prompts, pipe_args or {})
        self.prompts = list(prompts)
        self._calls = Calls(pipe, prompts, inference_steps, pipe_args or {})
        self._scheduler = self._calls.scheduler
        start = self._calls.encode()
        self._like = start[:0]
        self._shape = self._calls.opening.noise_shape or start.shape[1:]
        self.steps: int = self._scheduler.count
        self.levels = [levels.on_grid(self._scheduler, i).level for i in range(self.steps + 1)]
        one = torch.zeros(1, dtype=torch.int64)
        self.forwards_per_nfe, self.flops_per_forward = self._calls.probe(self._opened(self.prior(one, one)).x)

    @property
    def forwards(self) -> int:
        return self._calls.forwards

    @property
    def calls(self) -> Calls:
        """How the pipeline is called, for what is no sampling."""
        return self._calls

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        return self.started(noise.normal(keys, self._shape).to(self._like), keys, rows)

    def started(self, unit: Tensor, keys: Tensor, rows: Tensor) -> State:
        """`prior` of unit noise [B, ...] that is given."""
        return State(unit if self._calls.opening.mixes else unit * self._scheduler.prior_scale, 0, keys, rows)

    def predict(self, state: State) -> State:
        return self._by_layout(self._predict, self._opened(state))

    def predicted(self, state: State, out: Tensor) -> State:
        state = self._opened(state)
        return replace(state, x0=levels.clean(self._scheduler, self._at(state), state.x, out), model_output=out)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        if state.model_output is None or state.x0 is None or not self._on_grid(state):
            raise DiffscaleError(f"A step from step {state.step} needs a state on the grid, and Predict first.")
        to = state.step + 1
        if eta is not None:
            x, x0 = state.x.float(), state.x0.float()
            at, there = (levels.on_grid(self._scheduler, i) for i in (state.step, to))
            x = denoise(x, x0, at, there, eta, noise if noise is None else noise.to(x))
            return replace(state, x=x.to(state.x), step=to, x0=None, model_output=None, level=None, solver={})
        window = Window(state.step, to, state.key, state.solver, noise=noise)
        self._scheduler.open(window)
        t = self._scheduler.timesteps[self._scheduler.first + state.step]
        with torch.no_grad():
            x = self._scheduler.step(state.model_output, t, state.x, return_dict=False, **self._extra)[0]
        return self._arrived(state, x, to)

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        state = self._opened(state)
        here = state.level if state.level is not None else self.levels[state.step]
        check_renoising(here, level, self.levels[0])
        step, off = self._place(level)
        to = self._marginal(step, off)
        x = noised(state.x.float(), self._at(state), to, noise.to(state.x.device).float()).to(state.x)
        return replace(state, x=x, step=step, level=off, x0=None, model_output=None, solver={})

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        state = self._opened(state)
        here = state.level if state.level is not None else self.levels[state.step]
        down = stops(here, level, steps)

        at = None if record is None or not level <= record <= here else nearest(down[:-1], record)

        def through(rows: State) -> State:
            window = Window(0, 0, rows.key, levels=down, record=at)
            x = self._calls.run(rows.x, rows.prompt_index.tolist(), window)
            return replace(rows, x=x, recorded=rows.recorded if at is None else window.recorded)

        done = self._by_layout(through, state)
        step, off = self._place(level)
        return replace(
            state, x=done.x, step=step, level=off, x0=None, model_output=None, solver={}, recorded=done.recorded
        )

    def _place(self, level: float) -> tuple[int, float | None]:
        """Step and off-grid level of a state at `level`: on the grid if it is a grid point."""
        step, on_grid = place(self.levels, level)
        noise_there = step == 0 and self._calls.opening.mixes
        return step, None if on_grid and not noise_there else level

    def _opened(self, state: State) -> State:
        """Latents in the place of noise that the pipeline mixes with its picture; marked as such by their level."""
        if not self._calls.opening.mixes or state.step or state.level is not None:
            return state

        def opened(rows: State) -> State:
            return replace(rows, x=self._calls.open(rows.x, rows.prompt_index.tolist()), level=self.levels[0])

        return self._by_layout(opened, state)

    def _on_grid(self, state: State) -> bool:
        return state.level is None or (self._calls.opening.mixes and state.level == self.levels[0])

    def _at(self, state: State) -> Marginal:
        return self._marginal(state.step, state.level)

    def _marginal(self, step: int, level: float | None) -> Marginal:
        return levels.on_grid(self._scheduler, step) if level is None else self._scheduler.at(level)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        to = self.steps if to is None else to
        if not state.step <= to <= self.steps or not self._on_grid(state):
            raise DiffscaleError(f"A run from step {state.step} cannot end at step {to}.")
        noted = None if record is None else nearest(self.levels[:-1], record)
        if state.model_output is not None and state.step < to:
            state = self.step(replace(state, recorded=state.x0) if state.step == noted else state)
        if state.step == to:
            return state
        end = to
        return self._by_layout(lambda rows: self._run(rows, end, noted), self._opened(state))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of clean latents: float32 [B, 3, H, W] in [0, 1], or frames [B, F, 3, H, W], see `frames`."""
        # Only the number of prompts matters to an empty window.
        return pictures(self._calls.run(latents, [0] * len(latents), Window(self.steps, self.steps), "pt"))

    def gradient(
        self, state: State, score: Callable[[Tensor, Tensor | None], Tensor], record: float | None = None
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        with self._calls.differentiated():
            return checkpointed(self, state, score, record)

    def _predict(self, state: State) -> State:
        off = None if self._on_grid(state) else [state.level or 0.0, 0.0]
        window = Window(state.step, state.step + 1, state.key, state.solver, hold=True, levels=off)
        self._calls.run(state.x, state.prompt_index.tolist(), window)
        assert window.out is not None
        self._extra = window.extra
        return self.predicted(state, window.out)

    def _run(self, state: State, to: int, noted: int | None) -> State:
        at = noted - state.step if noted is not None and state.step <= noted < to else None
        window = Window(state.step, to, state.key, state.solver, record=at)
        x = self._calls.run(state.x, state.prompt_index.tolist(), window)
        return self._arrived(state if at is None else replace(state, recorded=window.recorded), x, to)

    def _arrived(self, state: State, x: Tensor, step: int) -> State:
        memory = self._scheduler.memory(len(x)) if step < self.steps else {}
        return replace(state, x=x, step=step, level=None, x0=None, model_output=None, solver=memory)

    def _by_layout(self, work: Callable[[State], State], state: State) -> State:
        """Do `work` on rows whose text has equal shapes, and put the rows back in order."""
        texts = self._calls.texts
        if texts is None:
            return work(state)
        alike: dict[Any, list[int]] = {}
        for i, row in enumerate(state.prompt_index.tolist()):
            alike.setdefault(texts.layout(row), []).append(i)
        if len(alike) == 1:
            return work(state)
        order = torch.tensor([i for rows in alike.values() for i in rows])
        return concat([work(state[rows]) for rows in alike.values()])[order.argsort()]
