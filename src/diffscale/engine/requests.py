"""What a search may ask for, whatever its budget pays: told before anything is priced."""

from diffscale._util.errors import DiffscaleError
from diffscale.types import Request, Run, Sampler, Score, Solve, State


def check_request(request: Request, sampler: Sampler) -> None:
    """Raise DiffscaleError for a request about something else than a state with rows, or that `sampler` cannot meet."""
    kind, state = type(request).__name__, request.state
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
        case Score() if state.step < sampler.steps and state.x0 is None:
            raise DiffscaleError(
                f"A state at step {state.step} of {sampler.steps} has no picture to score: write `state = yield from "
                "env.predict(state)` first."
            )
