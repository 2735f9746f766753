"""The default search: it finds out what looks tell on the user's model and verifier, and divides the budget so."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from diffscale.searches.agreements import TYPICAL
from diffscale.searches.looks import Agreement, Look, fisher
from diffscale.searches.policies import can_draft, policies
from diffscale.searches.profiles import Profile, read_profile
from diffscale.searches.random import random
from diffscale.searches.rounds import halve, looked, price
from diffscale.types import FEWER_STEPS, Answer, Environment, Search, State

_PILOT: Final = 0.1  # of the budget, at most
_DRAFT, _PREDICTION = 0.2, 0.55  # shares of the steps that the pilot looks at
_LEAST_DRAFTS, _LEAST_FINALS = 4, 4
_TRUST: Final = 8  # candidates that what is typical counts as, where a pilot's are added
_MARGIN: Final = 0.02  # in standard deviations: what another policy must promise more than random search


def auto(env: Environment, profile: str = "") -> Search:
    """Choose among random search, drafts and halving by a counted pilot. Price: at most the budget.

    The pilot, of at most a tenth of the budget, drafts some noises and, where that pays for four or more, finishes
    them, so that drafts and x0-predictions can be compared with the end on this model, prompt and verifier. What it
    measures is weighed with what is typical (`agreements.TYPICAL`), every division of the rest is simulated by these
    correlations (`policies`), and the best is run. `profile`: a file of `diffscale tune auto`, which then needs no
    pilot; by the seconds in it no division is chosen that takes longer than random search would. Where a tenth of the
    budget buys fewer than 4 drafts and there is no profile, or nothing can be drafted, it is random search. Of ways to
    draft it takes fewer steps alone. What was chosen, and why, is told in `Result.decisions`.

    Raises DiffscaleError for a file that is no profile.
    """
    measured = read_profile(Path(profile)) if profile else None
    draft = Look(max(2, round(_DRAFT * env.steps)))
    draftable = can_draft(env, draft.steps)
    drafts = min(int(_PILOT * env.nfe_left / env.draft_nfe(draft.steps)), env.most_rows) if draftable else 0
    if measured is None and drafts < _LEAST_DRAFTS:
        few = f"a tenth of {env.nfe_left} NFE buys no pilot of {_LEAST_DRAFTS} drafts"
        why = few if draftable else f"this model of {env.steps} steps cannot be drafted in {draft.steps}"
        yield from env.decide(0, f"Random search: {why}.")
        yield from random(env)
        return
    known: tuple[State, Tensor] | None = None
    if measured is not None:
        agreement, why = measured.agreement, "by the profile"
    else:
        known, agreement, why = yield from _pilot(env, draft, drafts)
    drafted = None if known is None else (draft, len(known[0]))
    tried = policies(env, agreement, drafted, _in_time(env, measured))
    best = max(range(len(tried)), key=lambda i: tried[i].gain)
    best = best if tried[best].gain > tried[0].gain + _MARGIN else 0
    gains = f"{tried[best].gain:.2f} standard deviations above the mean, and {tried[0].gain:.2f} by random search"
    others = [f"draft via={via}" for via in env.drafts if via != FEWER_STEPS]
    told = f" Drafts by fewer steps alone were tried: search by {' or '.join(others)} for others." if others else ""
    best = yield from env.decide(best, f"Chosen: {tried[best]}, {why}. Expected score: {gains}.{told}")
    chosen = tried[best]
    if not chosen.looks:
        yield from random(env)
        return
    yield from halve(env, chosen.looks, chosen.sizes, agreement, known if chosen.looks[0] == draft else None)


def _pilot(env: Environment, draft: Look, drafts: int) -> Answer[tuple[tuple[State, Tensor] | None, Agreement, str]]:
    """Candidates that were only drafted, with their scores; the agreement; and what it is by."""
    finals = int(_PILOT * env.nfe_left / (env.steps + env.draft_nfe(draft.steps)))
    measures = finals >= _LEAST_FINALS
    state, drafted = yield from looked(env, env.prior(min(finals, env.most_rows) if measures else drafts), draft)
    if not measures:
        values = env.value(drafted)
        values = values[values.isfinite()]
        if not len(values) or float(values.std(correction=0)) == 0:
            return None, TYPICAL.without_drafts(), "as drafts of this model all score alike"
        return (
            (state, drafted),
            TYPICAL,
            f"by typical correlations, as a pilot at this budget pays for fewer than {_LEAST_FINALS} samples",
        )
    looks, scores = [draft], [drafted]
    if (along := round(_PREDICTION * env.steps)) in env.predicts:
        looks.append(Look(along, on_the_way=True))
        state, predicted = yield from looked(env, state, looks[1])
        scores.append(predicted)
    final = env.value((yield from env.evaluate(state)))
    agreement, said = TYPICAL, []
    for look, given in zip(looks, scores, strict=True):
        agreement, r = _updated(agreement, look, look.steps / env.steps, env.value(given), final)
        said.append(f"{r:.2f} of {look}")
    why = f"by correlations with the end, measured on {len(final)} samples and weighed with typical ones"
    return None, agreement, f"{why}: {' and '.join(said)}"


def _updated(agreement: Agreement, look: Look, share: float, values: Tensor, final: Tensor) -> tuple[Agreement, float]:
    """`agreement` with all looks of that kind moved by what the pilot measured of one; and that one's correlation."""
    typical = agreement.with_the_end(look, share)
    usable = values.isfinite() & final.isfinite()
    count, measured = int(usable.sum()), 0.0
    if count > 3:
        pair = torch.stack([values[usable], final[usable]])
        measured = float(pair.corrcoef()[0, 1]) if bool((pair.std(1) > 0).all()) else 0.0
    weight = max(0, count - 3) / (max(0, count - 3) + _TRUST)
    # In tenths, so that prompts of one run share their simulations.
    shift = round(weight * (fisher(measured) - fisher(typical)), 1)
    moved = agreement.moved(look.on_the_way, shift)
    return moved, moved.with_the_end(look, share)


def _in_time(env: Environment, profile: Profile | None) -> Callable[[Sequence[Look], Sequence[int]], bool]:
    """Whether a division takes no longer than random search does of the same budget, by the profile's seconds."""
    if profile is None or not profile.seconds:
        return lambda looks, sizes: True
    a_step, a_picture = profile.seconds["step"], profile.seconds["decode"] + profile.seconds["verify"]
    most = env.nfe_left // env.steps * (env.steps * a_step + a_picture)

    def in_time(looks: Sequence[Look], sizes: Sequence[int]) -> bool:
        return price(env, looks, sizes) * a_step + sum(sizes) * a_picture <= most

    return in_time
