"""Searches side by side on one tape: what `diffscale tape replay` tells."""

from collections.abc import Sequence
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError
from diffscale._util.progress import Counter, silent
from diffscale.metrics.bootstrap import interval
from diffscale.searches import choose_search
from diffscale.tape.replay import gain, multiplier, replay
from diffscale.tape.tape import Tape
from diffscale.tape.verifiers import recorded_names


def scored(tape: Tape, verifiers: Sequence[str]) -> Tape:
    """The tape of the prompts whose finished samples all have finite scores of these `verifiers`.

    Raises DiffscaleError if no prompt is left, or the tape does not hold one of them.
    """
    names = {name for verifier in verifiers for name in recorded_names(tape, verifier)}
    usable = torch.stack([tape.finals(name).isfinite().all(1) for name in sorted(names)]).all(0)
    if not usable.any():
        raise DiffscaleError(
            f"Of each prompt of the tape a finished sample has no score of {' or of '.join(sorted(names))}: choose "
            "another verifier, or record again."
        )
    return tape if usable.all() else tape.rows(usable.nonzero().flatten().tolist())


def compare(
    tape: Tape,
    searches: Sequence[str],
    verifier: str,
    budgets: Sequence[int],
    *,
    judge: str | None = None,
    draws: int = 1,
    progress: Counter = silent,
) -> list[dict[str, Any]]:
    """A row for each budget and search, means over the prompts of the tape, which are all `scored`.

    It has `search`, `budget`, and `error` if the search could not be replayed, else `nfe`, `finished`, `score` and
    `gain` as `interval` gives them, `worth`: how many times the spent NFE random search needs, as `multiplier` gives
    it, and, if there is a `judge`, its `judge` and `judge_gain`.
    """
    rows = []
    for budget in budgets:
        for search in searches:
            row: dict[str, Any] = {"search": search, "budget": budget}
            try:
                row |= _figures(tape, search, verifier, budget, judge, draws)
            except DiffscaleError as error:
                row["error"] = str(error)
            rows.append(row)
            progress(len(rows), len(budgets) * len(searches))
    return rows


def _figures(tape: Tape, search: str, verifier: str, budget: int, judge: str | None, draws: int) -> dict[str, Any]:
    judges = [] if judge is None else [judge]
    found = replay(tape, choose_search(search).make(device="cpu"), verifier, budget, judges=judges, draws=draws)
    figures = {
        "nfe": float(found.nfe.mean()),
        "finished": float(found.finished.mean()),
        "score": interval(found.score),
        "gain": gain(tape, found, verifier, budget),
        "worth": multiplier(tape, found, verifier),
    }
    if judge is not None:
        figures |= {
            "judge": interval(found.judged[judge]),
            "judge_gain": gain(tape, found, verifier, budget, judge),
        }
    return figures
