"""What a trained model is worth: the judge's mean for one sample, and for the best of many."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.models.class_conditional import ClassModel
from diffscale.models.load import plain_call
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.shapes.classes import CLASSES
from diffscale.shapes.oracle import Oracle
from diffscale.shapes.suite import suite
from diffscale.types import Environment, Run, Sampler, Score, Search


def best_of(env: Environment, n: int) -> Search:
    """Best of n under a verifier that ends at 1: stops at the first perfect picture."""
    while n > 0:
        now = min(n, env.chunk)
        scores = yield Score((yield Run(env.prior(now))))
        if scores.max() >= 1:
            return
        n -= now


def measure_texts(pipe: Any, n: int = 64) -> dict[str, Any]:
    """`measure` of a pipeline in its plain call, one sample for each of the 300 prompts of the suite, and best of n."""
    call, prompts = plain_call(pipe), suite("shapes")
    texts = [prompt.text for prompt in prompts]
    sampler = DiffusersSampler(pipe, texts, call.steps, call.args)
    return measure(sampler, [prompt.description.category for prompt in prompts], n=n)


def measure_classes(model: ClassModel, n: int, repeats: int = 8) -> dict[str, Any]:
    """`measure` of a class-conditional model in its plain call, `repeats` for each of the 48 classes."""
    call = plain_call(model)
    return measure(model.sampler(CLASSES, call.steps, call.args), ["class"] * len(CLASSES), n, repeats)


def measure(sampler: Sampler, categories: Sequence[str], n: int, repeats: int = 1, seed: int = 0) -> dict[str, Any]:
    """Judge means of a sampler over its prompts, of those `categories`: one sample, and the best of `n` by the oracle.

    `repeats`: of either for each prompt. Intervals are 95%, of the mean over prompts; `nfe` is what was spent.
    """
    tasks = [
        Task(partial(best_of, n=n), row, noise.fold(noise.root(seed), prompt, repeat), n * sampler.steps)
        for row, prompt in enumerate(sampler.prompts)
        for repeat in range(repeats)
    ]
    results = run_searches(tasks, sampler, Oracle())
    shape = len(sampler.prompts), repeats
    one = np.reshape([result.baseline.score for result in results], shape).mean(1)
    best = np.reshape([result.best.score for result in results], shape).mean(1)
    category = np.array(categories)
    return {
        "prompts": len(sampler.prompts),
        "repeats": repeats,
        "seed": seed,
        "one_sample": _mean(one),
        f"best_of_{n}_by_oracle": _mean(best),
        "by_category": {
            c: {"one_sample": float(one[category == c].mean()), f"best_of_{n}": float(best[category == c].mean())}
            for c in dict.fromkeys(categories)
        },
        "nfe": sum(result.ledger.nfe for result in results),
    }


def _mean(values: Any) -> dict[str, float]:
    half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
    return {"mean": float(values.mean()), "low": float(values.mean() - half), "high": float(values.mean() + half)}
