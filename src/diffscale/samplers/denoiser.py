"""Any denoising network as a Sampler: give a callable, what it was trained on and what it predicts."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any, Final, Literal, get_args

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name, explained
from diffscale._util.numbers import whole
from diffscale.engine.flops import count_flops
from diffscale.samplers import solvers
from diffscale.samplers.formulas import Marginal, has_x0_and_eps
from diffscale.samplers.levels import Schedule
from diffscale.samplers.noise_schedules import LinearFlow, NoiseSchedule
from diffscale.samplers.solved import SolvedSampler

Prediction = Literal["noise", "data", "v", "velocity"]
"""What a network predicts: eps; x0; alpha eps - sigma x0, of latents brought to variance 1 (Salimans and Ho 2022, arXiv
2202.00512); or dx/dt of a linear flow in its own time."""

_OUTPUTS: Final = {"noise": "epsilon", "data": "sample", "v": "v_prediction", "velocity": "flow_prediction"}


class DenoiserSampler(SolvedSampler):
    """A Sampler over `network`, for every search; `run_searches` and `diffscale.search` take it.

    `network(x, t)`, or `network(x, t, condition)` where there are `conditions`, gives what `prediction` says, shaped
    like `x` [B, *shape], at times `t` [B] of its own `schedule`; a row of its output depends on that row alone.
    `prompts`: what the searches are for and verifiers read; ClassLabels for classes. `conditions` [P, ...]: what the
    network is told for each of the P prompts, such as ids of classes or embeddings; where that is more than one tensor,
    give torch.arange(P) and look the rest up in the network.

    `steps`: intervals of the schedule. `solver`: one of `solvers.SOLVERS`, with `eta` for `ddim`; `heun` and `sde_heun`
    take two evaluations in most intervals, and so `sampler.steps` counts these. `guidance_scale` w: where not 1, an
    evaluation is two rows, and the output is out_null + w (out_condition - out_null) on the first `guided_channels`
    (None: on all), with `null_condition` in place of a condition. `guidance_interval`: the lowest and the highest time
    of the network, both included, at which it is guided; elsewhere its output for the condition is taken as it is.

    `decode`: makes pictures [B, C, H, W] or videos [B, F, C, H, W] in [0, 1] of clean latents, with 1 or 3 channels
    (None: the latents are pictures in [-1, 1]); it is differentiable if searches by gradient are to run. Latents are
    of `dtype` and stay on `device` (None: that of the network's parameters, else the CPU).

    Building one evaluates the network once, in no ledger, for `forwards_per_nfe` and `flops_per_forward`. Raises
    DiffscaleError for settings that cannot be met, for a network that cannot be called so, and for outputs of another
    shape.
    """

    def __init__(
        self,
        network: Callable[..., Tensor],
        schedule: NoiseSchedule,
        prediction: Prediction,
        shape: Sequence[int],
        steps: int,
        prompts: Sequence[str],
        *,
        conditions: Tensor | None = None,
        null_condition: Tensor | float | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: tuple[float, float] | None = None,
        guided_channels: int | None = None,
        solver: str = "euler",
        eta: float | None = None,
        decode: Callable[[Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(schedule, type) or not all(hasattr(schedule, name) for name in ("process", "levels", "time")):
            raise DiffscaleError(
                f"A schedule is LinearFlow(), VariancePreserving(alphas_cumprod), EDM() or one like these, not "
                f"{schedule!r}."
            )
        _check_prediction(prediction, schedule)
        steps = whole("steps", steps, 1)
        if isinstance(prompts, str):
            raise DiffscaleError(f"prompts is a list, as in prompts=[{prompts!r}].")
        if not prompts or (conditions is not None and len(conditions) != len(prompts)):
            given = "none" if conditions is None else len(conditions)
            raise DiffscaleError(
                f"Give at least one prompt, and a condition for each: there are {len(prompts)} prompts and {given} "
                "conditions."
            )
        if guidance_scale != 1 and (conditions is None or null_condition is None):
            raise DiffscaleError(
                "Guidance needs conditions and a null condition: give conditions and null_condition, or leave "
                "guidance_scale at 1."
            )
        guided = shape[0] if guided_channels is None else guided_channels
        if not 1 <= guided <= shape[0]:
            raise DiffscaleError(f"guided_channels must be from 1 to {shape[0]}, not {guided}.")
        with explained(f"The device {str(device)!r} cannot be used ({{why}}).", RuntimeError, AssertionError):
            like = torch.empty(0, *shape, dtype=dtype, device=_device(network) if device is None else device)
        grid = Schedule(schedule.process, _OUTPUTS[prediction], schedule.levels(steps))
        _check_start(grid)
        super().__init__(list(prompts), grid, solvers.solver(solver, eta), like)
        self._network, self._noise_schedule, self._decode = network, schedule, decode or _from_signed
        # x0_and_eps takes the velocity of a flow whose data lie at time 0.
        backwards = prediction == "velocity" and isinstance(schedule, LinearFlow) and schedule.data_time == 1
        self._sign = -1 if backwards else 1
        self._conditions = None if conditions is None else conditions.to(like.device)
        self._null, self._scale, self._guided_channels = null_condition, guidance_scale, guided
        self._interval_of_guidance = (-torch.inf, torch.inf) if guidance_interval is None else guidance_interval
        self.forwards_per_nfe, self.flops_per_forward = self._probe()

    def decode(self, latents: Tensor) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            images = self._decode(latents)
        if images.ndim not in (4, 5) or images.shape[-3] not in (1, 3):
            raise DiffscaleError(
                "Pictures must be [B, 1 or 3, H, W], or videos [B, F, 1 or 3, H, W], but clean latents "
                f"{list(latents.shape)} became {list(images.shape)}: give `decode` a function that makes such."
            )
        if self._decode is not _from_signed and (images - 0.5).abs().gt(0.6).float().mean() > 0.25:
            warnings.warn(
                "More than a quarter of what `decode` made lies outside of [0, 1] and is cut off: let it give numbers "
                "in [0, 1], such as x / 2 + 0.5 of those in [-1, 1].",
                stacklevel=2,
            )
        return images.float().clamp(0, 1).expand(*images.shape[:-3], 3, -1, -1)

    def _levels_of(self, intervals: int) -> tuple[float, ...]:
        return self._noise_schedule.levels(intervals)

    def _evaluate(self, x: Tensor, at: Marginal, rows: Tensor) -> Tensor:
        time = self._noise_schedule.time(at)
        low, high = self._interval_of_guidance
        # Times are computed from levels, so that those at an end of the interval may miss it by a rounding error.
        is_guided = self._scale != 1 and low - 1e-6 <= time <= high + 1e-6
        self.forwards += len(x) * (2 if is_guided else 1)
        # The network's parameters may ask for gradients; only latents that do so get any.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            if self._conditions is None:
                return self._output(x, time)
            given = self._conditions[rows.to(x.device)]
            if not is_guided:
                return self._output(x, time, given)
            null = torch.as_tensor(self._null, dtype=given.dtype, device=given.device).expand_as(given)
            output, without = self._output(torch.cat([x, x]), time, torch.cat([given, null])).chunk(2)
            n = self._guided_channels
            guided = without[:, :n] + self._scale * (output[:, :n] - without[:, :n])
            return torch.cat([guided, output[:, n:]], 1)

    def _output(self, x: Tensor, time: float, *condition: Tensor) -> Tensor:
        times = torch.full((len(x),), time, dtype=x.dtype, device=x.device)
        output = self._network(x, times, *condition)
        if not isinstance(output, Tensor):
            raise DiffscaleError(
                f"The network must give a tensor, but gave a {type(output).__name__}: wrap it in a function that does."
            )
        if output.shape != x.shape:
            raise DiffscaleError(
                f"The network must give as many numbers as it is given, {list(x.shape)}, but gave "
                f"{list(output.shape)}: wrap it in a function that drops or reshapes the others."
            )
        return self._sign * output.to(x)

    def _probe(self) -> tuple[int, float]:
        one = torch.zeros(1, dtype=torch.int64)
        takes = "x, t" if self._conditions is None else "x, t, condition"
        failed = f"The network does not run as network({takes}) ({{why}}): wrap it in a function that takes these."
        with explained(failed, TypeError), count_flops() as flops, torch.no_grad():
            self.predict(self.prior(one, one))
        forwards, self.forwards = self.forwards, 0
        return forwards, flops.total / forwards


def _check_prediction(prediction: str, schedule: NoiseSchedule) -> None:
    check_name("prediction", prediction, get_args(Prediction))
    if prediction == "velocity" and schedule.process != "flow":
        raise DiffscaleError(
            "A velocity is predicted along a linear flow: give the schedule LinearFlow, or the prediction noise, data "
            "or v."
        )


def _check_start(grid: Schedule) -> None:
    if not has_x0_and_eps(grid.prediction, grid.marginal(grid.levels[0])):
        raise DiffscaleError(
            "A network that predicts noise cannot tell the picture from pure noise: start at a level that it was "
            "trained on, such as LinearFlow(noisiest=0.99), or give a table of alphas that ends above 0."
        )


def _device(network: Any) -> torch.device:
    """Where the parameters of a module lie; of anything else the CPU."""
    first = next(network.parameters(), None) if isinstance(network, torch.nn.Module) else None
    return torch.device("cpu") if first is None else first.device


def _from_signed(pixels: Tensor) -> Tensor:
    return pixels / 2 + 0.5
