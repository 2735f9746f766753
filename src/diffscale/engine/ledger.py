"""What a search has spent, and what it may spend.

NFE as paper A counts them (Ma et al. 2025, arXiv 2501.09732, section 2): one denoiser evaluation
of one sample is 1, whether or not guidance sends it through the network twice. `network_forwards`
counts the rows that went through the network, so guidance shows there. A draft by other means than fewer steps costs
its measured share of the denoiser's floating point operations, and `scheduler_steps` counts whole steps.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Self

from diffscale._util.errors import Unsuited
from diffscale.types import (
    Draft,
    Drafter,
    Drafts,
    Evaluate,
    Gradient,
    Predict,
    PredictGradient,
    Request,
    Run,
    Sampler,
    Score,
    Solve,
)


class BudgetSpent(Exception):
    """Raised inside a search that asked for more than its budget pays.

    A search may catch it and ask for less; if it does not, it is over and keeps its best so far.
    """


@dataclass
class Ledger:
    """The account of one search. `nfe` never exceeds `budget`.

    `seconds` are wall-clock, shared out by rows where searches ran in one batch. A forward that was
    lost to an out-of-memory error did run, so it counts in `network_forwards`, but not in `nfe`. `flops` are the
    denoiser's, `verifier_flops` those of the verifier's networks. `comparisons` are pairs of pictures that shared the
    best score and were compared.
    """

    budget: int
    nfe: int = 0
    network_forwards: int = 0
    flops: float = 0.0
    decodes: int = 0
    scheduler_steps: int = 0
    verifier_calls: int = 0
    verifier_flops: float = 0.0
    comparisons: int = 0
    seconds: dict[str, float] = field(default_factory=lambda: {"denoise": 0.0, "decode": 0.0, "verify": 0.0})

    @property
    def left(self) -> int:
        """NFE that the budget still pays."""
        return self.budget - self.nfe

    def __add__(self, other: Self) -> Self:
        """The account of both; budgets are added too."""
        sums = {each.name: getattr(self, each.name) + getattr(other, each.name) for each in fields(self)[:-1]}
        return replace(self, **sums, seconds={kind: self.seconds[kind] + other.seconds[kind] for kind in self.seconds})

    def charge(self, nfe: int) -> None:
        """Take `nfe` from the budget, before anything runs; raises BudgetSpent, taking nothing."""
        if nfe > self.left:
            raise BudgetSpent(f"This request costs {nfe} NFE and {self.left} are left.")
        self.nfe += nfe

    def add(self, costs: Mapping[str, float]) -> None:
        """Book what a part of a request took; names as in the fields, seconds as `seconds.denoise` and so on."""
        for name, cost in costs.items():
            kind = name.removeprefix("seconds.")
            if kind != name:
                self.seconds[kind] += cost
            else:
                held = getattr(self, name)
                setattr(self, name, held + type(held)(cost))


def drafter_of(sampler: Sampler, steps: int, via: str) -> Drafter:
    """How `sampler` drafts; raises Unsuited where it does not, DiffscaleError where it does not so."""
    return drafting(sampler).drafter(steps, via)


def drafting(sampler: Sampler) -> Drafts:
    """`sampler`, which can draft; raises Unsuited where it cannot."""
    if not isinstance(sampler, Drafts):
        raise Unsuited(
            "This model cannot be drafted in fewer steps: use another search, see `diffscale list searches`."
        )
    return sampler


def price(request: Request, sampler: Sampler) -> int:
    """NFE of `request`: evaluations a row times rows; scoring is free, and so is a prediction that the state holds.

    A draft costs what its `Drafter` says, rounded up over all rows. A gradient costs 4 NFE an evaluation (paper A's
    rule): forward, forward again, and twice that for the way back; of a prediction 3, as nothing is recomputed.
    """
    state = request.state
    held = state.x0 is not None
    match request:
        case Run(_, to):
            # A run backwards is refused by the sampler; until then it must not refund anything.
            steps = max(0, (sampler.steps if to is None else to) - state.step)
            return len(state) * (steps - (held and steps > 0))
        case Evaluate():
            return price(Run(state), sampler)
        case Draft(_, draft_steps, via):
            # Rounded to a billionth first, so that 3 * 0.1 is no more than 0.3.
            return math.ceil(round(len(state) * drafter_of(sampler, draft_steps, via).nfe, 9))
        case Gradient():
            return _work(request) * price(Run(state), sampler)
        case PredictGradient():
            return _work(request) * len(state)
        case Solve(_, _, steps):
            return len(state) * steps
        case Predict():
            return 0 if held else len(state)
        case Score():
            return 0


def scheduler_steps(request: Request, sampler: Sampler) -> int:
    """Steps of the time grid that each row of `request` goes through."""
    if isinstance(request, Draft):
        return drafter_of(sampler, request.steps, request.via).steps
    return price(request, sampler) // len(request.state) // _work(request)


def _work(request: Request) -> int:
    """NFE that one evaluation of the network counts as."""
    return 4 if isinstance(request, Gradient) else 3 if isinstance(request, PredictGradient) else 1
