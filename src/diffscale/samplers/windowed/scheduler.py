"""A scheduler that takes its pipeline through a window of the time grid.

A diffusers pipeline sets its scheduler's grid, loops over it (see `loop.py`) and calls `step`. Give it a scheduler
that says which steps [low, high) the loop shall visit, starts in the middle, and remembers what a multistep solver
remembered there, and the pipeline runs exactly that part of the trajectory; an empty window only encodes text or
decodes latents.
"""

import copy
import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor
from torch.overrides import TorchFunctionMode

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.samplers import levels
from diffscale.samplers.formulas import Marginal, denoise
from diffscale.samplers.windowed.loop import NotWindowed
from diffscale.samplers.windowed.memory import copy_lists, packed, restore
from diffscale.types import nearest

# What is ours, or follows from where the window starts, is no memory of the solver.
_NO_MEMORY = {"_step_index", "_begin_index", "_window", "_pristine", "_fresh", "first", "count", "own_scale"}


@dataclass
class Window:
    """What the next call shall run: the steps [low, high) of the grid.

    `keys`: int64 [B], where a stochastic solver's noise comes from, unless `noise` is given.
    `solver`: its memory at `low`, see `State.solver`. `hold`: put the step's network output into
    `out` instead of taking the step.
    `levels`: noise levels off the grid to go through instead, from the first, where the latents are, to the last; by
    our own deterministic solver, whatever the scheduler's is. `sample`: the latents that the held-back step was given.
    `times`: what the network is told instead, for one evaluation that is held back: a timestep for each row [B], or one
    for all; the latents are the network's own input, which no scheduler scales.
    """

    low: int
    high: int
    keys: Tensor | None = None
    solver: Mapping[str, Tensor] = field(default_factory=dict)
    hold: bool = False
    levels: list[float] | None = None
    times: Tensor | None = None
    noise: Tensor | None = None
    out: Tensor | None = None
    sample: Tensor | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    taken: int = 0
    record: int | None = None
    recorded: Tensor | None = None


class WindowedScheduler:
    """Mixed in before a scheduler's own class by `windowed`.

    `first`, `count`: where the pipeline's loop begins on the scheduler's grid, and how many steps it has; a pipeline
    that starts from a picture leaves out the noisiest ones. `count` is None until the loop was seen. `own_scale`:
    whether the pipeline sees the scheduler's own `init_noise_sigma`.
    """

    _window: Window
    _pristine: dict[str, Any]
    _fresh: dict[str, Any]
    first: int
    count: int | None
    own_scale: bool

    def place(self, items: Any) -> int | None:
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
        ends = range(len(own) - len(asked), -1, -1)
        return next((at for at in ends if torch.equal(own[at : at + len(asked)], asked)), None)

    def visits(self, items: Any, first: int) -> list[tuple[int, Any]]:
        """Number and timestep of the steps that a loop over `items` shall visit, which begin at `first` on the grid."""
        self.first, self.count = first, len(items)
        window = self._window
        self._begin(window.low)
        if window.times is not None:
            return [(0, window.times)]
        if window.levels is None:
            return [(i, items[i]) for i in range(window.low, min(window.high, len(items)))]
        told = levels.timesteps(self, window.levels[:-1])
        own = [levels.grid_marginal(self, i).level for i in range(len(items))]
        return [(nearest(own, level), t) for level, t in zip(window.levels, told, strict=False)]

    @property
    def init_noise_sigma(self) -> float:
        """1 where latents are handed over, which are already scaled, at any step, so the pipeline must not."""
        return self.prior_scale if self.own_scale else 1.0

    @init_noise_sigma.setter
    def init_noise_sigma(self, scale: Any) -> None:
        self.__dict__["init_noise_sigma"] = scale

    @property
    def prior_scale(self) -> float:
        """What the solver multiplies unit noise with before its first step; flows do not."""
        own = getattr(super(), "init_noise_sigma", None)
        return float(self.__dict__.get("init_noise_sigma", 1.0) if own is None else own)

    def open(self, window: Window) -> None:
        """Forget all steps taken and stand at the start of `window`, on the grid set before."""
        self._reset(self._fresh)
        self._window = window
        self._begin(window.low)
        restore(self.__dict__, window.solver)

    def _fields(self) -> dict[str, Any]:
        return copy_lists({name: value for name, value in self.__dict__.items() if name not in _NO_MEMORY})

    def _reset(self, fields: Mapping[str, Any]) -> None:
        for name in set(self.__dict__) - set(fields) - _NO_MEMORY:
            del self.__dict__[name]
        self.__dict__.update(copy_lists(fields))

    def _begin(self, low: int) -> None:
        if "_step_index" in self.__dict__:
            self.__dict__["_step_index"] = None
        if hasattr(self, "set_begin_index"):
            self.set_begin_index(self.first + low)

    def memory(self, rows: int) -> dict[str, Tensor]:
        """What the solver remembers, see `State.solver`: all that its steps changed on it."""
        return packed(self._fields(), self._fresh, rows, type(self).__name__)

    def at(self, level: float) -> Marginal:
        """Alpha and sigma at any level."""
        return levels.off_grid_marginal(self, level)[0] if level else Marginal(1.0, 0.0)


def windowed(scheduler: Any) -> Any:
    """A copy of `scheduler` that is also a WindowedScheduler, its class derived from its own.

    Its methods keep their signatures, which pipelines inspect.
    """
    base: Any = type(scheduler)

    @functools.wraps(base.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        # Not all schedulers forget all of their last run by themselves.
        self._reset(self._pristine)
        self.first, self.count = 0, None
        base.set_timesteps(self, *args, **kwargs)
        self._fresh = self._fields()
        self.open(self._window)

    @functools.wraps(base.step)
    def step(self: Any, model_output: Any, timestep: Any, sample: Any, *args: Any, **kw: Any) -> Any:
        window: Window = self._window
        if self.count is None:
            raise NotWindowed("it does not loop over its scheduler's timesteps")
        # The pipeline's generator would make the noise depend on the batch.
        kw.pop("generator", None)
        window.extra = {name: value for name, value in kw.items() if name != "return_dict"}
        if window.hold:
            window.out, window.sample = model_output, sample
            return _answer(sample, kw)
        if window.levels is not None:
            at, to = (self.at(level) for level in window.levels[window.taken : window.taken + 2])
            x0 = levels.x0_prediction(self, at, sample.float(), model_output.float())
            if window.record == window.taken:
                window.recorded = x0.to(sample)
            window.taken += 1
            return _answer(denoise(sample.float(), x0, at, to).to(sample), kw)
        if window.record == window.taken:
            window.recorded = levels.x0_prediction(
                self, levels.grid_marginal(self, window.low + window.taken), sample, model_output
            )
        source = KeyedNoise(window.keys, window.low + window.taken, window.noise)
        with source:
            stepped = base.step(self, model_output, timestep, sample, *args, **kw)
        if window.noise is not None and not source.draws:
            raise DiffscaleError(f"{base.__name__} is deterministic and takes no noise; use a stochastic scheduler.")
        window.taken += 1
        return stepped

    own: dict[str, Any] = {"set_timesteps": set_timesteps, "step": step}
    if hasattr(base, "scale_model_input"):

        @functools.wraps(base.scale_model_input)
        def scale_model_input(self: Any, sample: Any, *args: Any, **kwargs: Any) -> Any:
            if self._window.times is not None:
                return sample
            if self._window.levels is not None:
                return levels.model_input(self, sample, self.at(self._window.levels[self._window.taken]))
            return base.scale_model_input(self, sample, *args, **kwargs)

        own["scale_model_input"] = scale_model_input
    view = copy.deepcopy(scheduler)
    view.__dict__ |= {"_window": Window(0, 0), "_fresh": {}, "first": 0, "count": None, "own_scale": False}
    view.__dict__["_pristine"] = copy_lists(vars(scheduler))
    # By the name of its own class, which errors of diffusers tell.
    own |= {"__module__": base.__module__, "__qualname__": base.__qualname__}
    view.__class__ = type(base.__name__, (WindowedScheduler, base), own)
    return view


class KeyedNoise(TorchFunctionMode):
    """Within it torch's normal draws for a batch come from the rows' keys, or are `given`.

    Schedulers draw in their own ways, some through a generator, some not; this catches them all.
    """

    def __init__(self, keys: Tensor | None, step: int, given: Tensor | None) -> None:
        super().__init__()
        self.keys, self.step, self.given, self.draws = keys, step, given, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        drawn = func(*args, **(kwargs or {}))
        if func not in (torch.randn, torch.randn_like):
            return drawn
        if self.keys is None or len(drawn) != len(self.keys):
            raise DiffscaleError(
                f"The scheduler draws noise of shape {tuple(drawn.shape)}, which is not one a row; "
                "use another scheduler."
            )
        self.draws += 1
        if self.given is not None:
            return self.given.to(drawn)
        keys = noise.fold_rows(self.keys, "step", self.step, self.draws)
        return noise.normal(keys, drawn.shape[1:]).to(drawn)


def _answer(sample: Any, kw: Mapping[str, Any]) -> Any:
    return SchedulerOutput(prev_sample=sample) if kw.get("return_dict", True) else (sample, sample)
