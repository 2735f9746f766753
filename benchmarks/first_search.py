"""Does search find better pictures than more denoising steps do, and what does the engine cost on top?

    python benchmarks/first_search.py [--suite shapes-mini] [--seeds 1] [--candidates 64]

Judge means with 95% bootstrap intervals over prompts, for the best of 1, 4, 16, 64 candidates by CLIPScore and by the
oracle, next to one sample with 1, 4, 16, 64 times the denoising steps (paper A, figure 1). Then seconds: NFE a second,
wall time of the search over the bare network calls at the same batch, and the share of each kind of call.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from diffscale_shapes.judge import judge_images
from diffscale_shapes.prompts import Prompt, suite
from numpy.typing import NDArray
from torch import Tensor

from diffscale.api import make_sampler
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.searches.random import random
from diffscale.types import Sampler
from diffscale.verifiers import load

MODEL = "shapes-flux"


class Record:
    """Keeps both scores of every candidate: [search][i] = (verifier, judge)."""

    def __init__(self, prompts: list[Prompt]) -> None:
        self.prompts, self.seen = prompts, [[] for _ in prompts]

    def __call__(self, search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        heldout_scores = judge_images(images, [self.prompts[search].description] * len(images))
        self.seen[search] += list(zip(scores.tolist(), heldout_scores.tolist(), strict=True))


def sampler_for(prompts: list[Prompt], steps: int | None = None) -> Sampler:
    return make_sampler(MODEL, [p.text for p in prompts], steps=steps, pipe_args={}, loading=LoadOptions(device="cpu"))


def candidates(prompts: list[Prompt], n: int, seed: int, steps: int | None = None) -> NDArray[np.float64]:
    """Scores [prompts, n, 2] of n candidates a prompt: by CLIPScore and by the judge."""
    sampler, record = sampler_for(prompts, steps), Record(prompts)
    root = noise.root(seed)
    tasks = [
        Task(partial(random, n=n), row, noise.fold(root, prompt.text, 0), n * sampler.steps)
        for row, prompt in enumerate(prompts)
    ]
    run_searches(tasks, sampler, load("clip", image_model=MODEL), observers=[record])
    return np.array(record.seen)


def best_of(scores: NDArray[np.float64], n: int, by: int) -> NDArray[np.float64]:
    """Judge score of the best of n by column `by`, per prompt, averaged over the disjoint groups of n."""
    groups = scores.reshape(len(scores), -1, n, 2)
    chosen = groups[..., by].argmax(-1)[..., None]
    return np.take_along_axis(groups[..., 1], chosen, -1)[..., 0].mean(-1)


def interval(values: NDArray[np.float64], draws: int = 4000) -> tuple[float, float]:
    """95% bootstrap interval of the mean."""
    picks = np.random.default_rng(0).integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picks].mean(1), (0.025, 0.975))
    return float(low), float(high)


def shown(values: NDArray[np.float64]) -> str:
    low, high = interval(values)
    return f"{values.mean():.3f} [{low:.3f}, {high:.3f}]"


def quality(prompts: list[Prompt], most: int, seeds: int) -> None:
    scores = np.stack([candidates(prompts, most, seed) for seed in range(seeds)])
    base = sampler_for(prompts[:1]).steps
    print(f"judge mean over {len(prompts)} prompts, {seeds} seed(s), 95% interval over prompts")
    print(f"{'NFE':>6} {'best by clip':>22} {'best by oracle':>22} {'NFE on steps':>22}")
    n = 1
    while n <= most:
        clip, oracle = (np.mean([best_of(s, n, by) for s in scores], 0) for by in (0, 1))
        steps = np.mean([candidates(prompts, 1, seed, base * n)[:, 0, 1] for seed in range(seeds)], 0)
        print(f"{base * n:>6} {shown(clip):>22} {shown(oracle):>22} {shown(steps):>22}", flush=True)
        if n == most:
            for name, gain in (("clip", clip - steps), ("oracle", oracle - steps)):
                ratio = (gain + steps).mean() / steps.mean()
                print(f"search by {name} over the same NFE on steps: {shown(gain)}, ratio {ratio:.2f}")
        n *= 4


@torch.no_grad()
def cost(prompt: Prompt, n: int, repeats: int = 5) -> None:
    """Wall time of a search, over that of the bare calls that it consists of, interleaved."""
    pipe = load_pipeline(MODEL, LoadOptions(device="cpu"))
    call = plain_call(pipe)
    sampler, verifier = DiffusersSampler(pipe, [prompt.text], call.steps, call.args), load("clip", image_model=MODEL)
    networks = {"forward": pipe.transformer, "decode": pipe.vae.decoder, "verify": verifier}
    inputs: dict[str, tuple[Any, Any]] = {}

    def recorded(name: str) -> Callable[..., None]:
        return lambda module, args, kwargs: inputs.__setitem__(name, (args, kwargs))

    hooks = [networks[k].register_forward_pre_hook(recorded(k), with_kwargs=True) for k in ("forward", "decode")]
    task = Task(partial(random, n=n), 0, noise.root(0), n * sampler.steps)

    def search() -> None:
        run_searches([task], sampler, verifier, batch_size=n)

    search()
    for hook in hooks:
        hook.remove()
    pictures = torch.rand(n, 3, 64, 64)
    inputs["verify"] = ((pictures, [prompt.text] * n), {})
    # With guidance a step calls the network several times; the recorded call has the rows of one.
    rows = len(inputs["forward"][1]["hidden_states"])
    calls = {"forward": round(sampler.steps * sampler.forwards_per_nfe * n / rows), "decode": 1, "verify": 1}
    walls, bare = [], {name: [] for name in calls}
    for _ in range(repeats):
        began = time.perf_counter()
        search()
        walls.append(time.perf_counter() - began)
        for name, times in calls.items():
            args, kwargs = inputs[name]
            began = time.perf_counter()
            for _ in range(times):
                networks[name](*args, **kwargs)
            bare[name].append(time.perf_counter() - began)
    total = np.sum([bare[name] for name in calls], 0)
    ratios = np.array(walls) / total
    low, high = interval(ratios)
    print(f"\n{n} candidates in one batch, {repeats} repeats: {n * sampler.steps / np.median(walls):.0f} NFE/s")
    print(f"wall over bare calls {ratios.mean():.3f} [{low:.3f}, {high:.3f}] (bar: 1.15)")
    for name in calls:
        print(f"  {name:8s} {np.sum(bare[name]) / total.sum():6.1%} of the bare time")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--suite", default="shapes-mini", choices=("shapes", "shapes-mini"))
    parser.add_argument("--limit", type=int, help="prompts, evenly over the suite")
    parser.add_argument("--candidates", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    prompts = list(suite(options.suite))
    if options.limit:
        prompts = prompts[:: len(prompts) // options.limit][: options.limit]
    cost(prompts[0], options.candidates)
    quality(prompts, options.candidates, options.seeds)


if __name__ == "__main__":
    main()
