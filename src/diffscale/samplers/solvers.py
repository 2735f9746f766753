"""Solvers for samplers of our own, by name: how one step, or two, go from a prediction to a cleaner level."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError, unknown
from diffscale.samplers.formulas import Marginal, along, denoise, extrapolated, regular, slope, spread


@dataclass(frozen=True)
class Leg:
    """From one grid point `at` to the next one `to`, on a schedule of `form`.

    `before`: the grid point before it, None at the start. `end`: where the interval ends of which this leg is the first
    half, None if it is whole or the second half.
    """

    form: str
    before: Marginal | None
    at: Marginal
    to: Marginal
    end: Marginal | None


class Euler:
    """First order, and DDIM with eta = 0: straight on to the x0-prediction's noise at the next level."""

    name = "euler"
    stochastic = False

    def halves(self, form: str, at: Marginal, to: Marginal) -> bool:
        """Whether the interval takes two denoiser evaluations, and so is two legs."""
        return False

    def looks(self, leg: Leg, x: Tensor, memory: Mapping[str, Tensor]) -> tuple[Tensor, Marginal]:
        """Where the denoiser is evaluated before this leg."""
        return x, leg.at

    def step(
        self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, memory: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Latents at the end of the leg, and what to remember there.

        `x` [B, ...] at its start; `x0`, `eps`: what the denoiser said where it looked; `memory`: as the leg before left
        it, empty after other moves than this solver's; `noise`: standard normal, for stochastic solvers.
        """
        return denoise(x, x0, leg.at, leg.to), {}


class Ddim(Euler):
    """DDIM (Song et al. 2021) with a share `eta` of fresh noise; eta = 1 is ancestral sampling, on a flow too."""

    name = "ddim"

    def __init__(self, eta: float = 0.0) -> None:
        if not 0 <= eta <= 1:
            raise DiffscaleError(f"DDIM takes eta from 0 to 1, not {eta}.")
        self.eta, self.stochastic = eta, eta > 0

    def step(
        self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, memory: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return denoise(x, x0, leg.at, leg.to, self.eta, noise), {}


class Multistep(Euler):
    """DPM-Solver++ 2M: second order from the x0-prediction before, at one evaluation a step."""

    name = "dpmpp_2m"

    def step(
        self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, memory: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        better = x0
        if memory and leg.before is not None:
            better = extrapolated(x0, memory["x0"], leg.before, leg.at, leg.to)
        return denoise(x, better, leg.at, leg.to), {"x0": x0}


class SdeEuler(Euler):
    """Euler and Maruyama on the reverse SDE, see `formulas.spread`; the last step goes to the x0-prediction."""

    name = "sde_euler"
    stochastic = True

    def step(
        self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, memory: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        # From pure noise of a VP schedule the time is endless, and there is nothing yet to be stochastic about.
        if not leg.to.sigma or not regular(leg.form, leg.at, leg.to):
            return denoise(x, x0, leg.at, leg.to), {}
        assert noise is not None
        drift = slope(leg.form, x0, eps) + eps
        return along(leg.form, x, drift, leg.at, leg.to) + spread(leg.form, leg.at, leg.to) * noise, {}


class Heun(Euler):
    """Heun's second order: Euler to the end of the interval, and again from its start with the mean of both slopes.

    The two evaluations of an interval are two legs. In between, the latents are those at the middle level, where other
    moves (noising, steps with eta) can start; the solver itself goes on from the end that it remembers. Where an end of
    the interval is endless (`formulas.regular`), the interval is one Euler step.
    """

    name = "heun"

    def halves(self, form: str, at: Marginal, to: Marginal) -> bool:
        return regular(form, at, to)

    def looks(self, leg: Leg, x: Tensor, memory: Mapping[str, Tensor]) -> tuple[Tensor, Marginal]:
        if not memory:
            return x, leg.at
        assert leg.before is not None
        there = along(leg.form, memory["start"], memory["slope"], leg.before, leg.to)
        return there + memory["fresh"] if self.stochastic else there, leg.to

    def step(
        self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, memory: Mapping[str, Tensor], noise: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        drift = slope(leg.form, x0, eps) + (eps if self.stochastic else 0)
        if memory:
            assert leg.before is not None
            mean = (memory["slope"] + drift) / 2
            x = along(leg.form, memory["start"], mean, leg.before, leg.to)
            return x + memory["fresh"] if self.stochastic else x, {}
        if leg.end is None:
            return self._alone(leg, x, x0, eps, noise), {}
        held = {"start": x, "slope": drift}
        if self.stochastic:
            assert noise is not None
            held["fresh"] = spread(leg.form, leg.at, leg.end) * noise
        return self._alone(leg, x, x0, eps, noise), held

    def _alone(self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Tensor:
        """A leg by itself, to first order."""
        return denoise(x, x0, leg.at, leg.to)


class SdeHeun(Heun):
    """Heun on the reverse SDE: both slopes with the same noise (SiT's own draws it before the first; ours after)."""

    name = "sde_heun"
    stochastic = True

    def halves(self, form: str, at: Marginal, to: Marginal) -> bool:
        return to.sigma > 0 and regular(form, at, to)

    def _alone(self, leg: Leg, x: Tensor, x0: Tensor, eps: Tensor, noise: Tensor | None) -> Tensor:
        return SdeEuler().step(leg, x, x0, eps, {}, noise)[0]


SOLVERS: Final[dict[str, type[Euler]]] = {
    solver.name: solver for solver in (Euler, Heun, Ddim, Multistep, SdeEuler, SdeHeun)
}


def solver(name: str, eta: float | None = None) -> Euler:
    """The solver called `name`; `eta` is for `ddim`. Raises UnknownName, DiffscaleError for a wrong eta."""
    if name not in SOLVERS:
        raise unknown("solver", name, SOLVERS)
    if eta is None:
        return SOLVERS[name]()
    if name != "ddim":
        raise DiffscaleError(f"The solver {name} takes no eta: leave it out, or choose solver=ddim.")
    return Ddim(eta)
