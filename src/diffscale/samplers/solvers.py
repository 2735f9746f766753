"""Solvers for samplers of our own, by name: how one step, or two, go from a prediction to a cleaner level."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.samplers.formulas import Marginal, denoise, finite_slopes, flow_slope, linear_step, multistep_x0, sde_std

Stepped = tuple[Tensor, dict[str, Tensor]]
"""Latents [B, ...] at the end of an interval, and what the solver remembers there."""


@dataclass(frozen=True)
class Interval:
    """What a solver's step goes over: from one grid point `start` to the next one `end`, on a schedule of `process`.

    `previous`: the grid point before it, None at the first. `whole_end`: where an interval of the schedule ends of
    which this is the first half; None if it is whole or the second half. `x`: latents [B, ...] at its start. `memory`:
    as the step before left it, empty after other moves than this solver's.
    """

    process: str
    previous: Marginal | None
    start: Marginal
    end: Marginal
    whole_end: Marginal | None
    x: Tensor
    memory: Mapping[str, Tensor]


class Euler:
    """First order, and DDIM with eta = 0: straight on to the x0-prediction's noise at the next level."""

    name = "euler"
    stochastic = False

    def splits(self, process: str, start: Marginal, end: Marginal) -> bool:
        """Whether this interval of a schedule takes two denoiser evaluations, and so is split in two halves."""
        return False

    def denoiser_input(self, interval: Interval) -> tuple[Tensor, Marginal]:
        """Latents and level at which the denoiser is evaluated before this step."""
        return interval.x, interval.start

    def step(self, interval: Interval, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Stepped:
        """Go to the end of the interval.

        `x0`, `eps`: what the denoiser said of `denoiser_input`; `noise`: standard normal, for stochastic solvers.
        """
        return denoise(interval.x, x0, interval.start, interval.end), {}


class Ddim(Euler):
    """DDIM (Song et al. 2021) with a share `eta` of fresh noise; eta = 1 is ancestral sampling, on a flow too."""

    name = "ddim"

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise DiffscaleError(f"DDIM takes eta from 0 to 1, not {eta}.")
        self.eta, self.stochastic = eta, eta > 0

    def step(self, interval: Interval, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Stepped:
        return denoise(interval.x, x0, interval.start, interval.end, self.eta, noise), {}


class Multistep(Euler):
    """DPM-Solver++ 2M: second order from the x0-prediction before, at one evaluation a step."""

    name = "dpmpp_2m"

    def step(self, interval: Interval, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Stepped:
        start, end, better = interval.start, interval.end, x0
        if interval.memory and interval.previous is not None:
            better = multistep_x0(x0, interval.memory["x0"], interval.previous, start, end)
        return denoise(interval.x, better, start, end), {"x0": x0}


class SdeEuler(Euler):
    """Euler and Maruyama on the reverse SDE, see `formulas.sde_std`; the last step goes to the x0-prediction."""

    name = "sde_euler"
    stochastic = True

    def step(self, interval: Interval, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Stepped:
        process, start, end = interval.process, interval.start, interval.end
        # From pure noise of a VP process the time is endless, and there is nothing yet to be stochastic about.
        if not end.sigma or not finite_slopes(process, start, end):
            return denoise(interval.x, x0, start, end), {}
        assert noise is not None
        drift = flow_slope(process, x0, eps) + eps
        return linear_step(process, interval.x, drift, start, end) + sde_std(process, start, end) * noise, {}


class Heun(Euler):
    """Heun's second order: Euler to the end of the interval, and again from its start with the mean of both slopes.

    The two evaluations of an interval are the steps over its two halves. In between, the latents are those at the
    middle level, where other moves (noising, steps with eta) can start; the solver itself goes on from the end that it
    remembers. Where an end of the interval is endless (`formulas.finite_slopes`), the interval is one Euler step.
    """

    name = "heun"
    first_order: Euler = Euler()

    def splits(self, process: str, start: Marginal, end: Marginal) -> bool:
        return finite_slopes(process, start, end)

    def denoiser_input(self, interval: Interval) -> tuple[Tensor, Marginal]:
        if not interval.memory:
            return interval.x, interval.start
        return self._from_whole_start(interval, interval.memory["slope"]), interval.end

    def step(self, interval: Interval, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Stepped:
        slope = flow_slope(interval.process, x0, eps) + (eps if self.stochastic else 0)
        if interval.memory:
            return self._from_whole_start(interval, (interval.memory["slope"] + slope) / 2), {}
        x = self.first_order.step(interval, x0, eps, noise)[0]
        if interval.whole_end is None:
            return x, {}
        memory = {"start": interval.x, "slope": slope}
        if self.stochastic:
            assert noise is not None
            memory["fresh"] = sde_std(interval.process, interval.start, interval.whole_end) * noise
        return x, memory

    def _from_whole_start(self, second_half: Interval, slope: Tensor) -> Tensor:
        """Latents at the end, reached along `slope` from the start of the whole interval."""
        assert second_half.previous is not None
        memory = second_half.memory
        x = linear_step(second_half.process, memory["start"], slope, second_half.previous, second_half.end)
        return x + memory["fresh"] if self.stochastic else x


class SdeHeun(Heun):
    """Heun on the reverse SDE: both slopes with the same noise (SiT's own draws it before the first; ours after)."""

    name = "sde_heun"
    stochastic = True
    first_order = SdeEuler()

    def splits(self, process: str, start: Marginal, end: Marginal) -> bool:
        return end.sigma > 0 and finite_slopes(process, start, end)


SOLVERS: Final[dict[str, type[Euler]]] = {
    solver.name: solver for solver in (Euler, Heun, Ddim, Multistep, SdeEuler, SdeHeun)
}


def solver(name: str, eta: float | None = None) -> Euler:
    """The solver called `name`; `eta` is for `ddim`. Raises UnknownName, DiffscaleError for a wrong eta."""
    check_name("solver", name, SOLVERS)
    if eta is None:
        return SOLVERS[name]()
    if name != "ddim":
        raise DiffscaleError(f"The solver {name} takes no eta: leave it out, or choose solver=ddim.")
    return Ddim(eta)
