"""Searches on a tape: what they would have found, and how many times their budget random search needs for as much."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval
from diffscale.tape.curves import best_of, candidates_worth
from diffscale.tape.sampler import TapeSampler
from diffscale.tape.tape import Tape
from diffscale.tape.verifiers import finals, verifier_of
from diffscale.types import Search


@dataclass(frozen=True)
class Found:
    """What a search found on each of P prompts, means over draws: float64 [P] each.

    `score`: the verifier's, of the best candidate; `judged`: by judge, of the same; `nfe`, `finished`, `decodes`: what
    was spent, how many candidates were finished, and how many pictures were decoded and scored.
    """

    score: NDArray[np.float64]
    judged: dict[str, NDArray[np.float64]]
    nfe: NDArray[np.float64]
    finished: NDArray[np.float64]
    decodes: NDArray[np.float64]


def replay(
    tape: Tape, search: Callable[..., Search], verifier: str, budget: int, *, judges: Sequence[str] = (), draws: int = 1
) -> Found:
    """Run `search` on every prompt, `draws` times with the candidates in other orders; the first is the real one.

    Raises DiffscaleError if the search asks for what the tape does not hold.
    """
    found = [_once(tape, search, verifier, budget, judges, draw) for draw in range(draws)]
    mean: Callable[[str], Any] = lambda name: np.mean([getattr(each, name) for each in found], 0)  # noqa: E731
    judged = {judge: np.mean([each.judged[judge] for each in found], 0) for judge in judges}
    return Found(mean("score"), judged, mean("nfe"), mean("finished"), mean("decodes"))


def _once(
    tape: Tape, search: Callable[..., Search], verifier: str, budget: int, judges: Sequence[str], draw: int
) -> Found:
    sampler = TapeSampler(tape, draw)
    tasks = [Task(search, row, key, budget) for row, key in enumerate(sampler.keys)]
    results = run_searches(tasks, sampler, verifier_of(tape, verifier), 4096)
    best = np.array([int(result.best.latents[0]) for result in results])
    rows = np.arange(len(best))
    ended = {name: finals(tape, name)[rows, best] for name in (verifier, *judges)}
    return Found(
        ended[verifier],
        {judge: ended[judge] for judge in judges},
        np.array([result.ledger.nfe for result in results], float),
        np.array([result.candidates for result in results], float),
        np.array([result.ledger.decodes for result in results], float),
    )


def multiplier(
    tape: Tape, found: Found, verifier: str, judge: str | None = None, resamples: int = 2000
) -> dict[str, float]:
    """How many times the spent NFE random search needs for the same mean score (or that of `judge`): `mean`, `low` and
    `high` of a 95% bootstrap interval over prompts.

    Random search's curve is the U-statistic of the tape's finished candidates, see `curves`; infinite where the whole
    pool does not reach it.
    """
    scores = finals(tape, verifier)
    worth = None if judge is None else finals(tape, judge)
    curves = np.stack([best_of(scores, k, worth) for k in range(1, tape.candidates + 1)], 1)
    values = found.score if judge is None else found.judged[judge]
    spent = found.nfe / tape.steps
    draws = np.random.default_rng(0).integers(len(values), size=(resamples, len(values)))
    ratio = partial(_ratio, curves, values, spent)
    low, high = np.quantile([ratio(rows) for rows in draws], (0.025, 0.975), method="nearest")
    return {"mean": ratio(np.arange(len(values))), "low": float(low), "high": float(high)}


def _ratio(
    curves: NDArray[np.float64], values: NDArray[np.float64], spent: NDArray[np.float64], rows: NDArray[np.int64]
) -> float:
    return candidates_worth(curves[rows].mean(0), float(values[rows].mean())) / float(spent[rows].mean())


def gain(tape: Tape, found: Found, verifier: str, budget: int, judge: str | None = None) -> dict[str, float]:
    """Mean difference of the found score (or the judge's) to random search with the same budget, paired by prompt: with
    `low` and `high` of a 95% bootstrap interval.

    Raises DiffscaleError for a budget that pays for no sample, or for more than the tape has.
    """
    if not 1 <= (count := budget // tape.steps) <= tape.candidates:
        raise DiffscaleError(
            f"Random search makes {count} samples of {tape.steps} steps for {budget} NFE and the tape has "
            f"{tape.candidates} a prompt: give a budget of {tape.steps} to {tape.candidates * tape.steps}."
        )
    worth = None if judge is None else finals(tape, judge)
    base = best_of(finals(tape, verifier), count, worth)
    return interval((found.score if judge is None else found.judged[judge]) - base)
