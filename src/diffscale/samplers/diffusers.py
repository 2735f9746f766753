"""Any diffusers pipeline whose time grid can be windowed as a Sampler, without forking it.

Everything is a call of the pipeline with a window of the time grid (see `windowed`): encoding text
is the empty window before the first step, a run [i, j), a prediction one step that is held back,
and decoding the empty window after the last.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers import levels
from diffscale.samplers.arguments import check_arguments
from diffscale.samplers.calls import pictures, together_or_alone
from diffscale.samplers.drafts import Around, DraftingSampler
from diffscale.samplers.formulas import Marginal, denoise, renoise
from diffscale.samplers.grid import GridSampler
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.samplers.windowed.scheduler import StepWindow
from diffscale.types import State, concat


class DiffusersSampler(DraftingSampler, GridSampler):
    """A Sampler over `pipe`, any diffusers pipeline of pictures or videos that can be windowed.

    `pipe`: left as it is. `prompts`: at least one; rows of different prompts share batches.
    `inference_steps`: the pipeline's num_inference_steps; `steps`, the denoiser evaluations of a
    trajectory, is larger for some schedulers (Heun: 2 n - 1, PNDM: n + 1) and smaller where a picture is started from
    (`strength`). `pipe_args`: other arguments of the pipeline's call; a tensor with as many entries as there are
    prompts is dealt out by rows, so embeddings made before can be given as `prompt_embeds=...`, or as the pipeline
    calls them. Rows are run one by one, which is told once, if the pipeline cannot run a batch.

    A pipeline that starts from a picture has that picture's noise at step 0, as it draws it itself, and latents
    from there on. A video is scored, and shown, by the frames of `calls.pictures`.

    Building one encodes every prompt once and evaluates the denoiser once, in no ledger, to learn
    the latents' shape, `forwards_per_nfe` (2 with classifier-free guidance; the ledger counts rows
    as they run, so it is for information) and `flops_per_forward`.
    Raises NotWindowed for pipelines and schedulers that cannot be windowed (see `whole.WholeSampler`), DiffscaleError
    for arguments that the pipeline does not take.
    """

    def __init__(
        self, pipe: Any, prompts: Sequence[str], inference_steps: int, pipe_args: Mapping[str, Any] | None = None
    ) -> None:
        check_arguments(pipe, prompts, pipe_args or {})
        self.prompts = list(prompts)
        self.pipeline = WindowedPipeline(pipe, prompts, inference_steps, pipe_args or {})
        self._tensors_in: tuple[()] | tuple[float, float] | None = None
        start = self.pipeline.encode_prompts()
        self._like = start[:0]
        self.mixes_noise = self.pipeline.initial.mixes_noise
        self._shape = self.pipeline.initial.noise_shape or start.shape[1:]
        self._take_grid(inference_steps)
        one = torch.zeros(1, dtype=torch.int64)
        first = self._with_noise_mixed(self.prior(one, one)).x
        # What else the pipeline hands its solver, which a state that others predicted is stepped with, too.
        self.forwards_per_nfe, self.flops_per_forward, self._step_args = self.pipeline.probe(first)

    def _take_grid(self, inference_steps: int) -> None:
        self.intervals, self._scheduler = inference_steps, self.pipeline.scheduler
        self.steps: int = self._scheduler.count
        self._grid = [levels.grid_marginal(self._scheduler, i) for i in range(self.steps + 1)]
        self.levels = [at.level for at in self._grid]

    def in_steps(self, intervals: int) -> "DiffusersSampler":
        other = copy.copy(self)
        other.pipeline = self.pipeline.in_steps(intervals)
        other._take_grid(intervals)
        return other

    @property
    def denoisers(self) -> Sequence[torch.nn.Module]:
        return list(self.pipeline.denoisers.values())

    def call_within(self, around: Around) -> None:
        self.pipeline.around = around

    def decoded_by(self, network: Any) -> AbstractContextManager[None]:
        if "vae" not in self.pipeline.components:
            return super().decoded_by(network)
        return self.pipeline.with_networks({"vae": network})

    @property
    def noise_scale(self) -> float:
        return 1.0 if self.mixes_noise else self._scheduler.initial_noise_scale

    @property
    def forwards(self) -> int:
        return self.pipeline.forwards

    def prior(self, keys: Tensor, rows: Tensor) -> State:
        return self.start(noise.normal(keys, self._shape), keys, rows)

    def start(self, unit: Tensor, keys: Tensor, rows: Tensor) -> State:
        """The state at step 0 of unit noise [B, ...]; `keys`, `rows` as of `prior`."""
        unit = unit.to(self._like)
        return State(unit * self.noise_scale, 0, keys, rows)

    def predict(self, state: State) -> State:
        return self._by_layout(self._predict, self._with_noise_mixed(state))

    def predicted(self, state: State, model_output: Tensor) -> State:
        state = self._with_noise_mixed(state)
        x0 = levels.x0_prediction(self._scheduler, self._marginal(state), state.x, model_output)
        return replace(state, x0=x0, model_output=model_output)

    def step(self, state: State, noise: Tensor | None = None, eta: float | None = None) -> State:
        x0, model_output = self._predicted(state)
        to = state.step + 1
        if eta is not None:
            fresh = noise if noise is None else noise.to(state.x.device).float()
            x = denoise(state.x.float(), x0.float(), self._grid[state.step], self._grid[to], eta, fresh)
            return self._moved(state, x.to(state.x), to)
        self._scheduler.begin_window(StepWindow(state.step, to, state.key, state.solver, noise=noise))
        t = self._scheduler.timesteps[self._scheduler.first + state.step]
        with torch.no_grad():
            x = self._scheduler.step(model_output, t, state.x, return_dict=False, **self._step_args)[0]
        return self._arrived(state, x, to)

    def renoise(self, state: State, level: float, noise: Tensor) -> State:
        state = self._with_noise_mixed(state)
        self._check_renoising(state, level)
        moved = self._placed(state, state.x, level)
        fresh = noise.to(state.x.device).float()
        x = renoise(state.x.float(), self._marginal(state), self._marginal(moved), fresh)
        return replace(moved, x=x.to(state.x))

    def solve(self, state: State, level: float, steps: int, record: float | None = None) -> State:
        state = self._with_noise_mixed(state)
        down, recorded_step = self._levels_down(state, level, steps, record)

        def through(rows: State) -> State:
            return self._through(rows, StepWindow(0, 0, rows.key, levels=down, record=recorded_step))

        done = self._by_layout(through, state)
        return self._placed(done, done.x, level)

    def _with_noise_mixed(self, state: State) -> State:
        """Latents in the place of noise that the pipeline mixes with its picture; marked as such by their level."""
        if not self.mixes_noise or state.step or state.level is not None:
            return state

        def mixed(rows: State) -> State:
            return replace(rows, x=self.pipeline.mix_noise(rows.x, rows.prompt_index.tolist()), level=self.levels[0])

        return self._by_layout(mixed, state)

    def _marginal(self, state: State) -> Marginal:
        if state.level is None:
            return self._grid[state.step]
        return levels.off_grid_marginal(self._scheduler, state.level)

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        end, recorded_step = self._run_end(state, to, record)
        if state.model_output is not None and state.step < end:
            state = self.step(replace(state, recorded=state.x0) if state.step == recorded_step else state)
        if state.step == end:
            return state
        return self._by_layout(lambda rows: self._run(rows, end, recorded_step), self._with_noise_mixed(state))

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures of clean latents: float32 [B, 3, H, W] in [0, 1], or frames, see `calls.pictures`.

        They are what the pipeline gives as arrays, but taken as tensors, which stay on their device and keep a graph.
        Tensors are of [-1, 1] in some pipelines: what they are between is found out once, by decoding one row in both
        ways. Where they are neither, arrays are taken, and within `gradient` DiffscaleError is raised. Goes around a
        safety checker, see `decode_checked`.
        """
        if self._tensors_in is None:
            self._tensors_in = self._find_range(latents)
        if not self._tensors_in:
            if self.pipeline.differentiable:
                raise DiffscaleError(
                    f"{self.pipeline.class_name} gives other pictures as tensors than as arrays, so there is no "
                    "gradient of their scores: search by another algorithm, see `diffscale list searches`."
                )
            return pictures(self._answer(latents, "np")).to(latents.device)
        low, high = self._tensors_in
        return pictures(((self._answer(latents, "pt").float() - low) / (high - low)).clamp(0, 1))

    @property
    def checks_pictures(self) -> bool:
        return self.pipeline.has_checker

    def decode_checked(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        end = StepWindow(self.steps, self.steps)
        answer, flags = self.pipeline.run_checked(latents, [0] * len(latents), end, "np")
        return pictures(answer).to(latents.device), torch.tensor(flags)

    def _answer(self, latents: Tensor, output: str) -> Any:
        # Only the number of prompts matters to an empty window.
        return self.pipeline.run(latents, [0] * len(latents), StepWindow(self.steps, self.steps), output)

    def _find_range(self, like: Tensor) -> tuple[()] | tuple[float, float]:
        """What the pipeline's pictures are between as tensors, where they are of [0, 1] as arrays; () for neither.

        It is found out by a row of unit noise, typed and placed as `like` is.
        """
        one = noise.normal(torch.zeros(1, dtype=torch.int64), like.shape[1:]).to(like)
        with self.pipeline.graph_kept(False):
            wanted, tensors = torch.as_tensor(self._answer(one, "np")).float(), self._answer(one, "pt")
        if not isinstance(tensors, Tensor):
            return ()
        given = tensors.movedim(-3, -1).float().cpu()
        for low, high in ((0.0, 1.0), (-1.0, 1.0)):
            seen = ((given - low) / (high - low)).clamp(0, 1)
            if seen.shape == wanted.shape and torch.allclose(seen, wanted, atol=0.01, equal_nan=True):
                return low, high
        return ()

    def pipeline_output(self, state: State, output_type: str, return_dict: bool) -> Any:
        """What the pipeline's own call gives for a finished `state`: its output class, or a tuple."""
        finished = StepWindow(self.steps, self.steps)
        latents = state.x.to(self._like)
        return self.pipeline.output(latents, state.prompt_index.tolist(), finished, output_type, return_dict)

    def gradient(
        self,
        state: State,
        score: Callable[[Tensor, Tensor | None], Tensor],
        record: float | None = None,
        of_prediction: bool = False,
    ) -> tuple[State, Tensor, Tensor, Tensor]:
        with self.pipeline.graph_kept():
            return super().gradient(state, score, record, of_prediction)

    def _predict(self, state: State) -> State:
        off = None if self._is_on_grid(state) else [self._level(state), 0.0]
        window = StepWindow(state.step, state.step + 1, state.key, state.solver, predict_only=True, levels=off)
        self.pipeline.run(state.x, state.prompt_index.tolist(), window)
        assert window.model_output is not None
        return self.predicted(state, window.model_output)

    def _run(self, state: State, to: int, recorded_step: int | None) -> State:
        record = None if recorded_step is None or not state.step <= recorded_step < to else recorded_step - state.step
        window = StepWindow(state.step, to, state.key, state.solver, record=record)
        done = self._through(state, window)
        return self._arrived(done, done.x, to)

    def _through(self, state: State, window: StepWindow) -> State:
        """The state with the latents that the pipeline makes of its own over a window, and what was recorded there."""
        x = self.pipeline.run(state.x, state.prompt_index.tolist(), window)
        return replace(state, x=x, recorded=state.recorded if window.record is None else window.recorded)

    def _arrived(self, state: State, x: Tensor, step: int) -> State:
        return self._moved(state, x, step, self._scheduler.solver_memory(len(x)) if step < self.steps else {})

    def _by_layout(self, work: Callable[[State], State], state: State) -> State:
        """Do `work` on rows whose text has equal shapes, and put the rows back in order."""
        name = self.pipeline.class_name
        return together_or_alone(self.pipeline, name, len(state), lambda: self._in_groups(work, state))

    def _in_groups(self, work: Callable[[State], State], state: State) -> State:
        groups = self.pipeline.groups(state.prompt_index.tolist())
        if len(groups) == 1:
            return work(state)
        order = torch.tensor([i for group in groups for i in group])
        return concat([work(state[group]) for group in groups])[order.argsort()]
