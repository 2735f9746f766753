"""What a search may ask for, whatever its budget pays: told before anything is priced."""

from collections.abc import Callable, Generator
from typing import Any, get_args

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import name_of
from diffscale.engine.ledger import drafter_of
from diffscale.types import Decide, Draft, PredictGradient, Request, Run, Sampler, Score, Solve, State


def check_request(request: Any, sampler: Sampler, search: Callable[..., Any]) -> None:
    """Raise DiffscaleError for what is no request, is about something else than a state with rows, or cannot be met by
    `sampler`; `search` yielded it."""
    kind = type(request).__name__
    if isinstance(request, Decide):
        choice = request.choice
        if not isinstance(choice, int) or not -(2**63) <= choice < 2**63 or not isinstance(request.why, str):
            raise DiffscaleError(
                "A search settles on a whole number of 64 bits, and says why in a sentence, not on "
                f"{choice!r}: {request.why!r}."
            )
        return
    if not isinstance(request, Request):
        mend = "write `yield from` there" if isinstance(request, Generator) else "mend it"
        mend = "write `yield from env.evaluate(state)`" if isinstance(request, State) else mend
        kinds = ", ".join(each.__name__ for each in get_args(Request))
        raise DiffscaleError(f"A search yields {kinds}, but {name_of(search)} yielded {kind}: {mend}.")
    state = request.state
    if not isinstance(state, State):
        raise DiffscaleError(f"{kind} takes a state, such as env.prior gives, not a {type(state).__name__}.")
    if not len(state):
        raise DiffscaleError(f"A search asked for {kind} of no rows; let it end instead of asking.")
    match request:
        case Run(_, to) if to is not None and not (isinstance(to, int) and state.step <= to <= sampler.steps):
            raise DiffscaleError(f"A run from step {state.step} cannot end at step {to}, of {sampler.steps} in all.")
        case Solve(_, level, steps):
            here = sampler.levels[state.step] if state.level is None else state.level
            if not isinstance(steps, int) or steps < 1:
                raise DiffscaleError(f"Solving takes a whole number of steps, 1 or more, not steps={steps}.")
            if not 0 <= level < here:
                raise DiffscaleError(
                    f"Solving goes down from level {here:.3g}, to 0 at the lowest, not to {level:.3g}."
                )
        case Draft(_, steps, via):
            if state.step or state.level is not None:
                raise DiffscaleError(
                    "Drafts are of noises at step 0, as env.prior gives them, not of rows on their way."
                )
            if not isinstance(steps, int) or steps < 1:
                raise DiffscaleError(f"A draft takes a whole number of steps, 1 or more, not steps={steps}.")
            drafter_of(sampler, steps, via)
        case PredictGradient() if state.step == sampler.steps:
            raise DiffscaleError(
                "A finished state has no prediction whose gradient could be taken: write `yield from env.gradient("
                "state)`."
            )
        case Score() if state.step < sampler.steps and state.x0 is None:
            raise DiffscaleError(
                f"A state at step {state.step} of {sampler.steps} has no picture to score: write `state = yield from "
                "env.predict(state)` first."
            )
