"""How one budget is dealt out over the prompts of a run, round by round."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, get_type_hints

import numpy as np
from pydantic import ConfigDict, PositiveInt, TypeAdapter, ValidationError

from diffscale._util.errors import DiffscaleError
from diffscale.engine.improvement import Numbers, outlook
from diffscale.types import PoolVerifier, SetVerifier, Share, Verifier

_FINITE: Final = ConfigDict(allow_inf_nan=False)


@dataclass(frozen=True)
class Account:
    """What an allocation knows of one prompt: the `nfe` spent, and the `scores` [n] of all n candidates finished, -inf
    where one was dropped. `over`: its search has ended or failed, and can spend no more."""

    nfe: int
    scores: Numbers
    over: bool = False


@dataclass(frozen=True)
class Threshold:
    """A prompt that has reached a score, or hardly gets better any more, gives what is left to others.

    Every prompt is given what `minimum` samples cost first. Then, in rounds, half of what is left (all of it, once that
    is less than a sample for each prompt) is dealt out: the prompt whose best score is expected to gain most for each
    NFE, see `improvement`, comes first, and is given as much as it has spent so far, then the next one. A prompt takes
    no part in a round where its best score has reached `score`, where the chance that it gains anything is below
    `chance`, and where none of its candidates could be scored. So less than the whole budget may be spent. A gain
    beyond `score` counts nothing.

    All is decided by the scores of complete rounds. The candidates of searches that go on from the best of what they
    found are no independent draws, so there the chances are no more than a guide.

    Raises DiffscaleError for values out of range.
    """

    score: float | None = None
    chance: Share = 0.05
    minimum: PositiveInt = 4

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(type(self), include_extras=True).items():
            value = getattr(self, name)
            try:
                TypeAdapter(kind, config=_FINITE).validate_python(value)
            except ValidationError as error:
                why = error.errors()[0]["msg"].replace("Input should", "it should")
                raise DiffscaleError(f"A Threshold cannot have {name}={value!r}: {why}.") from error

    def first(self, prompts: int, total: int, steps: int) -> int:
        """NFE that each of `prompts` is given first, of a `total` in NFE, where one sample costs `steps`.

        Raises DiffscaleError if the total does not pay for that.
        """
        if prompts * self.minimum * steps > total:
            raise DiffscaleError(
                f"A minimum of {self.minimum} samples of {steps} NFE for each of {prompts} prompts costs "
                f"{prompts * self.minimum * steps:,} NFE, and the budgets of all are {total:,}: give a larger budget, "
                "or the allocation a smaller minimum."
            )
        return self.minimum * steps

    def grants(self, accounts: Sequence[Account], left: int, steps: int) -> dict[int, int]:
        """What prompts are given in the next round, in NFE by their number; empty where there is none.

        `left`: NFE that are not spent. `steps`: what one sample costs.
        """
        usable = [each.scores[np.isfinite(each.scores)] for each in accounts]
        known = [row for row, scores in enumerate(usable) if len(scores)]
        if left < steps or not known:
            return {}
        # As many as it has, at what they cost.
        share = np.array([min(1.0, left / accounts[i].nfe) for i in known])
        more = np.maximum(1.0, np.round(share * [len(accounts[i].scores) for i in known]))
        most = np.inf if self.score is None else self.score
        chance, gain = outlook([usable[i] for i in known], more, most)
        gain /= share * [accounts[i].nfe for i in known]
        reached = np.array([usable[i].max() for i in known]) >= most
        open_ = ~reached & (chance >= self.chance) & ~np.array([accounts[i].over for i in known])
        round_of_it = left // 2 if left > 2 * steps * len(accounts) else left
        found: dict[int, int] = {}
        for at in sorted(np.flatnonzero(open_).tolist(), key=lambda at: (-gain[at], at)):
            if round_of_it - sum(found.values()) < steps:
                break
            found[known[at]] = min(accounts[known[at]].nfe, left - sum(found.values()))
        return found


def check_shareable(
    search: str, anytime: bool, verifier: Verifier | None = None, choose: Verifier | None = None
) -> None:
    """Raise DiffscaleError where prompts cannot share a budget: `search` says what it is called in that sentence.

    `anytime`: whether the search declares it, see `types.search_traits`. `choose`: what ranks candidates in the place
    of `verifier`.
    """
    if not anytime:
        raise DiffscaleError(
            f"{search} cannot be given more on its way, so prompts cannot share a budget: leave the allocation out, or "
            "take a search that goes on from a smaller budget, such as random or zero_order."
        )
    ranking = verifier if isinstance(verifier, SetVerifier) or choose is None else choose
    if isinstance(ranking, PoolVerifier | SetVerifier):
        ranks = "candidates among each other" if isinstance(ranking, PoolVerifier) else "by what was chosen before"
        raise DiffscaleError(
            f"Verifier {ranking.name!r} scores {ranks}, which does not compare between prompts that share a budget: "
            "leave the allocation out, or take a verifier of one score."
        )


ALLOCATIONS: Final = {"threshold": Threshold}
"""What users type the name of."""
