"""A scheduler that takes its pipeline through a window of the time grid.

A diffusers pipeline sets its scheduler's grid, loops over it (see `loop.py`) and calls `step`. Give it a scheduler
that says which steps [start, stop) the loop shall visit, starts in the middle, and remembers what a multistep solver
remembered there, and the pipeline runs exactly that part of the trajectory; an empty window only encodes text or
decodes latents.
"""

import copy
import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers import levels
from diffscale.samplers.calls import NormalDraws
from diffscale.samplers.formulas import denoise
from diffscale.samplers.windowed.loop import NotWindowed, Visits
from diffscale.samplers.windowed.memory import copy_lists, pack_memory, restore_memory
from diffscale.types import nearest

# What is ours, or follows from where the window starts, is no memory of the solver.
_NO_MEMORY = {"_step_index", "_begin_index", "window", "_pristine", "_fresh", "first", "count", "keeps_noise_scale"}


@dataclass
class StepWindow:
    """What the next call shall run: the steps [start, stop) of the grid; and what comes of it.

    `keys`: int64 [B], where a stochastic solver's noise comes from, unless `noise` is given. `solver`: its memory at
    `start`, see `State.solver`. `predict_only`: the network is evaluated and the step left out. `levels`: noise levels
    off the grid to go through instead, from the first, where the latents are, to the last; by our own deterministic
    solver, whatever the scheduler's is. `times`: what the network is told instead, for one evaluation with
    `predict_only`: a timestep for each row [B], or one for all; the latents are the network's own input, which no
    scheduler scales. `record`: number within the window of the step whose x0-prediction is kept.

    After the call: `model_output`, `sample`: with `predict_only`, the network's output and the latents that the step
    was given. `step_args`: the other arguments of the last step. `recorded`: the x0-prediction at `record`.
    """

    start: int
    stop: int
    keys: Tensor | None = None
    solver: Mapping[str, Tensor] = field(default_factory=dict)
    predict_only: bool = False
    levels: list[float] | None = None
    times: Tensor | None = None
    noise: Tensor | None = None
    record: int | None = None
    model_output: Tensor | None = None
    sample: Tensor | None = None
    step_args: dict[str, Any] = field(default_factory=dict)
    recorded: Tensor | None = None
    steps_taken: int = 0


class WindowedScheduler:
    """Mixed in before a scheduler's own class by `windowed`.

    `window`: what the pipeline's next call runs. `first`, `count`: where the pipeline's loop begins on the scheduler's
    grid, and how many steps it has; a pipeline that starts from a picture leaves out the noisiest ones. `count` is None
    until the loop was seen. `keeps_noise_scale`: whether the pipeline sees the scheduler's own `init_noise_sigma`.
    """

    _base: ClassVar[Any]
    window: StepWindow
    _pristine: dict[str, Any]  # its fields before it had a grid
    _fresh: dict[str, Any]  # its fields on the grid, before the first step
    first: int = 0
    count: int | None = None
    keeps_noise_scale: bool = False

    def visits_of(self, items: Any) -> Callable[[], Visits] | None:
        """The steps that a loop over `items` shall visit, see `loop.windowed_call`; None if they are no timesteps."""
        first = self._place_on_grid(items)
        return None if first is None else lambda: self._visits(items, first)

    def _place_on_grid(self, items: Any) -> int | None:
        """Where `items`, which a pipeline loops over, begin on the grid; None if they are no part of it."""
        grid: Any = getattr(self, "timesteps", None)
        if grid is None or not isinstance(items, Tensor | np.ndarray | list) or not 0 < len(items) <= len(grid):
            return None
        try:
            asked, own = (torch.as_tensor(values).cpu() for values in (items, grid))
        except (TypeError, ValueError, RuntimeError):
            return None
        if asked.ndim != 1:
            return None
        last_first = range(len(own) - len(asked), -1, -1)
        return next((i for i in last_first if torch.equal(own[i : i + len(asked)], asked)), None)

    def _visits(self, items: Any, first: int) -> Visits:
        self.first, self.count = first, len(items)
        window = self.window
        self._begin(window.start)
        if window.times is not None:
            return [(0, window.times)]
        if window.levels is None:
            return [(i, items[i]) for i in range(window.start, min(window.stop, len(items)))]
        # Off the grid a step has the number of the nearest one on it.
        own: Any = self.timesteps  # type: ignore[attr-defined]
        dtype = own.dtype if own.is_floating_point() else torch.float32
        timesteps = [levels.off_grid_timestep(self, level) for level in window.levels[:-1]]
        grid = [levels.grid_marginal(self, i).level for i in range(len(items))]
        return [
            (nearest(grid, level), t)
            for level, t in zip(window.levels, torch.tensor(timesteps, dtype=dtype, device=own.device), strict=False)
        ]

    @property
    def init_noise_sigma(self) -> float:
        """1 where latents are handed over, which are already scaled, at any step, so the pipeline must not."""
        return self.initial_noise_scale if self.keeps_noise_scale else 1.0

    @init_noise_sigma.setter
    def init_noise_sigma(self, scale: Any) -> None:
        self.__dict__["init_noise_sigma"] = scale

    @property
    def initial_noise_scale(self) -> float:
        """What the solver multiplies unit noise with before its first step; flows do not."""
        own = getattr(super(), "init_noise_sigma", None)
        return float(self.__dict__.get("init_noise_sigma", 1.0) if own is None else own)

    def begin_window(self, window: StepWindow) -> None:
        """Forget all steps taken and stand at the start of `window`, on the grid set before."""
        self._reset(self._fresh)
        self.window = window
        self._begin(window.start)
        restore_memory(self.__dict__, window.solver)

    def solver_memory(self, rows: int) -> dict[str, Tensor]:
        """What the solver remembers, see `State.solver`: all that its steps changed on it."""
        return pack_memory(self._fields(), self._fresh, rows, type(self).__name__)

    def _fields(self) -> dict[str, Any]:
        return copy_lists({name: value for name, value in self.__dict__.items() if name not in _NO_MEMORY})

    def _reset(self, fields: Mapping[str, Any]) -> None:
        for name in set(self.__dict__) - set(fields) - _NO_MEMORY:
            del self.__dict__[name]
        self.__dict__.update(copy_lists(fields))

    def _begin(self, step: int) -> None:
        if "_step_index" in self.__dict__:
            self.__dict__["_step_index"] = None
        if hasattr(self, "set_begin_index"):
            self.set_begin_index(self.first + step)

    # The methods that `windowed` puts in the place of the scheduler's own, of their names without "_window".

    def _window_set_timesteps(self, *args: Any, **kwargs: Any) -> None:
        # Not all schedulers forget all of their last run by themselves.
        self._reset(self._pristine)
        self.first, self.count = 0, None
        self._base.set_timesteps(self, *args, **kwargs)
        self._fresh = self._fields()
        self.begin_window(self.window)

    def _window_scale_model_input(self, sample: Any, *args: Any, **kwargs: Any) -> Any:
        window = self.window
        if window.times is not None:
            return sample
        if window.levels is not None:
            at = levels.off_grid_marginal(self, window.levels[window.steps_taken])
            # The network takes variance exploding latents brought to variance 1.
            return sample / math.hypot(*at) if levels.process_of(self) == "ve" else sample
        return self._base.scale_model_input(self, sample, *args, **kwargs)

    def _window_step(self, model_output: Any, timestep: Any, sample: Any, *args: Any, **kw: Any) -> Any:
        window = self.window
        if self.count is None:
            raise NotWindowed("it does not loop over its scheduler's timesteps")
        # The pipeline's generator would make the noise depend on the batch.
        kw.pop("generator", None)
        window.step_args = {name: value for name, value in kw.items() if name != "return_dict"}
        if window.predict_only:
            window.model_output, window.sample = model_output, sample
            return _answer(sample, kw)
        number = window.steps_taken
        window.steps_taken += 1
        if window.levels is not None:
            start, end = (levels.off_grid_marginal(self, level) for level in window.levels[number : number + 2])
            x0 = levels.x0_prediction(self, start, sample.float(), model_output.float())
            if window.record == number:
                window.recorded = x0.to(sample)
            return _answer(denoise(sample.float(), x0, start, end).to(sample), kw)
        if window.record == number:
            at = levels.grid_marginal(self, window.start + number)
            window.recorded = levels.x0_prediction(self, at, sample, model_output)
        with _keyed_noise(window, window.start + number) as draws:
            stepped = self._base.step(self, model_output, timestep, sample, *args, **kw)
        if window.noise is not None and not draws.shapes:
            name = self._base.__name__
            raise DiffscaleError(f"{name} is deterministic and takes no noise; use a stochastic scheduler.")
        return stepped


def own_class(thing: Any) -> type:
    """As `type` of one argument, but of a windowed scheduler the class that it was made of."""
    own: type = thing._base if isinstance(thing, WindowedScheduler) else type(thing)
    return own


def windowed(scheduler: Any) -> Any:
    """A copy of `scheduler` that is also a WindowedScheduler, its class derived from its own."""
    base: Any = type(scheduler)

    def in_place_of(name: str) -> Any:
        """The windowed method, with the signature of the scheduler's own, which pipelines inspect."""
        ours = getattr(WindowedScheduler, f"_window_{name}")

        @functools.wraps(getattr(base, name))
        def method(self: Any, *args: Any, **kwargs: Any) -> Any:
            return ours(self, *args, **kwargs)

        return method

    replaced = ("set_timesteps", "step", "scale_model_input")
    own: dict[str, Any] = {name: in_place_of(name) for name in replaced if hasattr(base, name)}
    # By the name of its own class, which errors of diffusers tell.
    own |= {"_base": base, "__module__": base.__module__, "__qualname__": base.__qualname__}
    view = copy.deepcopy(scheduler)
    view.__dict__ |= {"window": StepWindow(0, 0), "_pristine": copy_lists(vars(scheduler)), "_fresh": {}}
    view.__class__ = type(base.__name__, (WindowedScheduler, base), own)
    return view


def _keyed_noise(window: StepWindow, step: int) -> NormalDraws:
    """Within it the normal draws of a step come from the rows' keys, or are those given."""

    def keyed(drawn: Tensor, number: int) -> Tensor:
        if window.keys is None or len(drawn) != len(window.keys):
            raise DiffscaleError(
                f"The scheduler draws noise of shape {tuple(drawn.shape)}, which is not one a row; "
                "use another scheduler."
            )
        if window.noise is not None:
            return window.noise.to(drawn)
        keys = noise.fold_rows(window.keys, "step", step, number + 1)
        return noise.normal(keys, drawn.shape[1:]).to(drawn)

    return NormalDraws(keyed, batches_only=False)


def _answer(sample: Any, kw: Mapping[str, Any]) -> Any:
    return SchedulerOutput(prev_sample=sample) if kw.get("return_dict", True) else (sample, sample)
