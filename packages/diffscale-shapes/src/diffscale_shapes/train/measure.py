"""What a trained model is worth: the judge's mean for one sample, and for the best of many."""

from functools import partial
from typing import Any

import numpy as np

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval
from diffscale.models.class_conditional import ClassModel
from diffscale.models.load import plain_call
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.types import Environment, Run, Sampler, Score, Search
from diffscale_shapes.oracle import Oracle
from diffscale_shapes.prompts import suite
from diffscale_shapes.scenes import CLASSES


def best_of(env: Environment, n: int) -> Search:
    """Best of n under a verifier that ends at 1: stops at the first perfect picture."""
    while n > 0:
        now = min(n, env.chunk)
        scores = yield Score((yield Run(env.prior(now))))
        if scores.max() >= 1:
            return
        n -= now


def measure_model(model: Any, n: int) -> dict[str, Any]:
    """Judge means of a model in its plain call: one sample, and the best of `n` by the oracle.

    Of a pipeline for each of the 300 prompts of the suite, of a ClassModel eight times for each of the 48 classes.
    Intervals are 95%, of the mean over prompts; `nfe` is what was spent.
    """
    call = plain_call(model)
    sampler: Sampler
    if isinstance(model, ClassModel):
        sampler, repeats = model.sampler(CLASSES, call.steps, call.args), 8
        categories = ["class"] * len(CLASSES)
    else:
        sampler, repeats = DiffusersSampler(model, [p.text for p in suite("shapes")], call.steps, call.args), 1
        categories = [prompt.description.category for prompt in suite("shapes")]
    tasks = [
        Task(partial(best_of, n=n), row, noise.fold(noise.root(0), prompt, repeat), n * sampler.steps)
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
        "seed": 0,
        "one_sample": interval(one),
        f"best_of_{n}_by_oracle": interval(best),
        "by_category": {
            c: {"one_sample": float(one[category == c].mean()), f"best_of_{n}": float(best[category == c].mean())}
            for c in dict.fromkeys(categories)
        },
        "nfe": sum(result.ledger.nfe for result in results),
    }
