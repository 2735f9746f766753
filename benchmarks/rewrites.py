"""Do other wordings of a prompt help, at equal NFE?

    python benchmarks/rewrites.py [--model shapes-flux] [--prompts 40] [--candidates 16] [--wordings 4] [--orders 50]
        [--unfamiliar]

Prompts are captions of the training distribution, of no suite; with `--unfamiliar` they are of two objects, told in
words that the grammar reads and no network was trained on ("a red star stands beneath a blue cross"). For each of them
`--candidates` pictures are made in each of `--wordings` wordings, the user's own and the world's others, and scored by
CLIPScore and by the judge (51,200 NFE by default: 4 minutes on a CPU core by shapes-flux). On these, `--candidates`
pictures in all are found in each way: random search in the user's own wording, equal shares of all wordings, the bandit
of the search `rewrites`, and the wording whose mean is best, which nobody can know. Printed are means over prompts, and
over `--orders` orders of each wording's pictures, of the best score and of what the judge says of it, as differences to
random search with paired 95% bootstrap intervals; and how much wordings differ: the standard deviation of their means,
without what chance makes of it, in standard deviations of the scores within a wording.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from random import Random

import numpy as np
import torch
from diffscale_shapes.captions import write_caption
from diffscale_shapes.prompts import training_example
from numpy.typing import NDArray

from diffscale import verifiers
from diffscale.api import make_sampler
from diffscale.api.wordings import wordings_of
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval, with_interval
from diffscale.models.options import LoadOptions
from diffscale.searches.rewrites import promising
from diffscale.types import Environment, Search

Numbers = NDArray[np.float64]
_UNFAMILIAR = {
    "left of": "stands on the left of",
    "right of": "stands on the right of",
    "above": "stands above",
    "below": "stands beneath",
}
_ROUND = 4  # candidates of a round of `rewrites`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes-flux")
    parser.add_argument("--prompts", type=int, default=40)
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--wordings", type=int, default=4)
    parser.add_argument("--orders", type=int, default=50)
    parser.add_argument("--unfamiliar", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/rewrites"))
    options = parser.parse_args()
    told = "-unfamiliar" if options.unfamiliar else ""
    file = options.output / f"{options.model}-{options.prompts}x{options.wordings}x{options.candidates}{told}.npz"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        prompts = captions(options.prompts, options.unfamiliar)
        clip, judge = pool(options.model, prompts, options.wordings, options.candidates)
        np.savez(file, clip=clip, judge=judge)
    scores = np.load(file)
    print(f"{options.model}{told}, {options.prompts} prompts, {options.candidates} of {options.wordings} wordings each")
    for name in ("clip", "judge"):
        report(name, scores[name], scores["judge"], options.orders)


def captions(count: int, unfamiliar: bool) -> list[str]:
    """Captions as the networks were trained on, or in other words, all different, none of which is of a suite."""
    rng, found = Random("rewrites"), dict[str, None]()
    while len(found) < count:
        description, _ = training_example(rng)
        text = write_caption(description, rng)
        if unfamiliar:
            if description.category != "spatial":
                continue
            first, second = (f"a {spec.colour} {spec.shape}" for spec in description.specs)
            text = f"{first} {_UNFAMILIAR[description.relation]} {second}".replace("a orange", "an orange")
        if len(wordings_of(None, "shapes-flux").of(text)) == 7:
            found[text] = None
    return list(found)


def pool(model: str, prompts: list[str], wordings: int, candidates: int) -> tuple[Numbers, Numbers]:
    """CLIPScores and judge's scores [P, W, N] of `candidates` pictures of each wording, the user's own first."""

    def search(env: Environment) -> Search:
        numbers = [number for number in range(wordings) for _ in range(candidates)]
        yield from env.evaluate(env.reword(env.prior(len(numbers)), numbers))

    others = wordings_of(None, model).find(prompts, {}, lambda _: None)
    loading = LoadOptions(dtype="bfloat16")
    sampler = make_sampler(model, [*prompts, *others], steps=None, pipe_args={}, loading=loading)
    clip, judge = (verifiers.load(name, image_model=model) for name in ("clip", "shapes-judge"))
    budget = sampler.steps * wordings * candidates
    tasks = [Task(search, row, noise.fold(noise.root(0), text, 0), budget) for row, text in enumerate(prompts)]
    results = run_searches(tasks, sampler, clip, 64, choose=judge)
    shape = len(prompts), wordings, candidates
    scores = torch.stack([result.pool[:, 0] for result in results]).view(shape)
    return scores.numpy(), torch.stack([result.ranking[:, 0] for result in results]).view(shape).numpy()


def report(name: str, scores: Numbers, judge: Numbers, orders: int) -> None:
    """Print what is found by `scores` [P, W, N], and what the judge says of that."""
    count, wordings, candidates = scores.shape
    within = scores.var(2, ddof=1).mean(1)
    between = scores.mean(2).var(1, ddof=1) - within / candidates
    apart = np.sqrt(max(0.0, between.mean()) / within.mean())
    others = interval((scores[:, 1:].mean((1, 2)) - scores[:, 0].mean(1)) / np.sqrt(within.mean()))
    others_of = with_interval(others, "+.4f")
    print(f"by {name}: wordings differ by {apart:.2f} deviations, other wordings are {others_of} of the user's own")
    ways = {
        "random": lambda values: [0] * candidates,
        "equal shares": lambda values: [i % wordings for i in range(candidates)],
        "rewrites": partial(bandit, candidates=candidates),
        "best wording": lambda values: [int(values.mean(1).argmax())] * candidates,
    }
    rng = np.random.default_rng(0)
    found = {way: np.zeros((2, count)) for way in ways}
    for _ in range(orders):
        order = rng.permuted(np.tile(np.arange(candidates), (count, wordings, 1)), axis=2)
        mine, judged = (np.take_along_axis(each, order, 2) for each in (scores, judge))
        for way, arms in ways.items():
            for row in range(count):
                asked = arms(mine[row])
                places = [(arm, asked[:i].count(arm)) for i, arm in enumerate(asked)]
                best = max(places, key=lambda place: mine[row][place])
                found[way][:, row] += np.array([mine[row][best], judged[row][best]]) / orders
    for way, (score, said) in found.items():
        told = f"  {way}: {score.mean():.4f}, judge {said.mean():.4f}"
        gains = (each - base for each, base in zip((score, said), found["random"], strict=True))
        apart_of = [with_interval(interval(gain), "+.4f") for gain in gains]
        print(told + ("" if way == "random" else f"; less random {apart_of[0]}, judge {apart_of[1]}"))


def bandit(values: Numbers, candidates: int) -> list[int]:
    """The arms that `rewrites` asks, where its arms' next pictures have the scores `values` [W, N]."""
    asked: list[int] = []
    seen: list[float] = []
    arms = list(range(len(values)))
    while len(asked) < candidates:
        for arm in arms[: candidates - len(asked)]:
            seen.append(values[arm, asked.count(arm)])
            asked.append(arm)
        arms = promising(torch.tensor(asked), torch.tensor(seen, dtype=torch.float64), len(values), _ROUND)
    return asked


if __name__ == "__main__":
    main()
