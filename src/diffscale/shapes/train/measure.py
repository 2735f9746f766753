"""What a trained pipeline is worth: the judge's mean for one sample a prompt, and for the best of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from diffscale import noise
from diffscale.driver import Task, drive
from diffscale.models import plain_call
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.shapes.oracle import Oracle
from diffscale.shapes.scenes import CATEGORIES
from diffscale.shapes.suite import Prompt
from diffscale.types import Environment, Run, Score, Search


def best_of(env: Environment, n: int) -> Search:
    """Best of n under a verifier that ends at 1: stops at the first perfect picture."""
    while n > 0:
        now = min(n, env.chunk)
        scores = yield Score((yield Run(env.prior(now))))
        if scores.max() >= 1:
            return
        n -= now


def measure(pipe: Any, prompts: Sequence[Prompt], n: int = 64, seed: int = 0) -> dict[str, Any]:
    """Judge means of `pipe` in its plain call over `prompts`: one sample each, and the best of `n` by the oracle.

    Intervals are 95%, of the mean over prompts; `nfe` is what was spent.
    """
    call = plain_call(pipe)
    sampler = DiffusersSampler(pipe, [prompt.text for prompt in prompts], call.steps, call.args)
    tasks = [
        Task(partial(best_of, n=n), row, noise.fold(noise.root(seed), prompt.text, 0), n * sampler.steps)
        for row, prompt in enumerate(prompts)
    ]
    results = drive(tasks, sampler, Oracle())
    one = np.array([result.baseline.score for result in results])
    best = np.array([result.best.score for result in results])
    category = np.array([prompt.description.category for prompt in prompts])
    return {
        "prompts": len(prompts),
        "seed": seed,
        "one_sample": _mean(one),
        f"best_of_{n}_by_oracle": _mean(best),
        "by_category": {
            c: {"one_sample": float(one[category == c].mean()), f"best_of_{n}": float(best[category == c].mean())}
            for c in CATEGORIES
            if (category == c).any()
        },
        "nfe": sum(result.ledger.nfe for result in results),
    }


def _mean(values: Any) -> dict[str, float]:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}
