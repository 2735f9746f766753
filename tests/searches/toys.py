"""What all tests of searches share: settings of every algorithm, and verifiers of the toy's points."""

from functools import partial

import torch

from diffscale.engine import noise
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches import SEARCHES
from diffscale.testing import assert_same, points
from diffscale.types import concat


def breed(env, parents=2, children=4, cosine=0.8, generations=None):
    """A search as others write one: the best parents of a population have mutated children."""
    population = env.prior(min(children, env.nfe_left // env.steps))
    scores = yield from env.evaluate(population)
    while generations != 0 and (now := min(children, env.nfe_left // env.steps)):
        best = env.value(scores).topk(min(parents, len(population))).indices
        young = env.mutate(population[best[torch.arange(now) % len(best)]], cosine)
        population, old = concat([population[best], young]), scores[best]
        scores = torch.cat([old, (yield from env.evaluate(young))])
        generations = None if generations is None else generations - 1


def near_of_lists(images, prompts):
    """A verifier as others write one: what `Near` gives, as a list of numbers."""
    return [-((x - 4.2) ** 2 + (y - 0.3) ** 2) for x, y in points(images).tolist()]


class Tilt:
    """A reward between 0 and 1 that prefers the right."""

    name = "right"

    def __call__(self, images, prompts):
        return images[:, 0, 0, 0].double()


def plain(n, process="flow", eta=1.0, steps=10):
    """States of n plain samples: (sampler, prior states)."""
    sampler = ToySampler(steps=steps, process=process, eta=eta)
    return sampler, sampler.prior(torch.arange(n), torch.zeros(n, dtype=torch.int64))


PLUG_INS = {"breed": breed}
# Settings with a price that is known, and that price, on a grid of `s` steps from level 1 to 0.
PRICED = {
    "random": ({"n": 5}, lambda s: 5 * s),
    "zero_order": ({"n": 3, "iterations": 4}, lambda s: 4 * 3 * s),
    "zero_order greedy": ({"n": 2, "iterations": 4, "policy": "greedy"}, lambda s: (4 * 2 + 1) * s),
    "zero_order restart": ({"n": 2, "iterations": 6, "policy": "restart"}, lambda s: (6 * 2 + 1) * s),
    "paths": ({"n": 2, "m": 3, "length": 4}, lambda s: 2 * (s - s // 10) + 2 * 3 * (4 * 5 - 1)),
    "first_order": ({"iterations": 3}, lambda s: 4 * 3 * s),
    "reno": ({"iterations": 2, "rate": 0.02}, lambda s: 4 * 2 * s),
    "dps": ({"n": 3}, lambda s: 3 * (3 * (s - 1) + 1)),
    "dps tilt": ({"n": 2, "guidance": "tilt", "strength": 0.5, "eta": 0.5}, lambda s: 2 * (3 * (s - 1) + 1)),
    "demon": ({"k": 4}, lambda s: 1 + 5 * (s - 1)),
    "demon softmax": ({"k": 3, "weights": "softmax", "temperature": 0.5}, lambda s: 1 + 4 * (s - 1)),
    "free2guide": ({"k": 4, "guided": 3}, lambda s: s + 3 * 3),
    "free2guide drawn": ({"k": 3, "guided": 2, "temperature": 0.3}, lambda s: s + 2 * 2),
    "auto": ({}, None),
    "bayes": ({"dimensions": 2, "initial": 4, "n": 3}, None),
    "fk": ({"k": 6}, lambda s: 6 * s),
    "fk difference": ({"k": 5, "potential": "difference", "resampler": "ssp", "units": "raw"}, lambda s: 5 * s),
    "fk sum": ({"k": 5, "potential": "sum", "ess": 1.0, "interval": 1}, lambda s: 5 * s),
    "draft": ({"n": 6, "finals": 2, "steps": (3,)}, lambda s: 6 * 3 + 2 * s),
    "draft rounds": (
        {"n": 8, "finals": 2, "steps": (2, 3), "at": (4,)},
        lambda s: 8 * 2 + 5 * 3 + 3 * 4 + 2 * (s - 4),
    ),
    "halving": ({"n": 6, "finals": 2, "at": (2, 4)}, lambda s: 6 * 2 + 3 * (4 - 2) + 2 * (s - 4)),
    "svdd": ({"b": 2, "m": 3}, lambda s: 2 + 2 * 3 * (s - 1)),
    "beam": ({"k": 3, "m": 2}, lambda s: 3 + 3 * 2 * (s - 1)),
    "beam interval": ({"k": 2, "m": 3, "interval": 2}, lambda s: 2 * s + 2 * 2 * ((s - 1) // 2)),
    "bfs": ({"k": 6}, lambda s: 6 * s),
    "das": ({"k": 5}, lambda s: 5 * s),
    "vasr": ({"k": 5}, lambda s: 5 * s),
    "vasr max": ({"k": 4, "select": "max", "interval": 2}, lambda s: 4 * s),
    "funnel": ({"k": 6, "interval": 2}, lambda s: 6 * s),
    "funnel constant": ({"k": 5, "temperature": "constant", "narrow": 0.1, "interval": 3}, lambda s: 5 * s),
    "dfs": (
        {"n": 2, "threshold": 100.0, "at": (4,), "back": 2, "backtracks": 3},
        lambda s: 2 * (s + 3 * 3),
    ),
    "dfs relative": ({"n": 4}, None),
    "rbf": ({"n": 4, "quota": 3}, lambda s: 4 + 3 * (s - 1)),
    "rbf vp": ({"n": 2, "quota": 2, "levels": "vp"}, lambda s: 2 + 2 * (s - 1) + s),
    "dts": ({"n": 5, "at": (3,)}, None),
    "dts sampling": ({"n": 6, "at": (2, 4), "greedy": False}, None),
    "dts flat": ({"n": 4, "at": ()}, lambda s: 4 * s),
    "breed": ({"generations": 3}, lambda s: 4 * (1 + 3) * s),
    "evolution": ({"at": (0, 2, 2, 4), "n": 3, "first": 4}, lambda s: 4 * s + 3 * (s + 2 * (s - 2) + (s - 4))),
    "spectral": ({"n": 5}, None),
    "pcn": ({"chains": 3}, None),
    "pcn raw": ({"chains": 2, "units": "raw", "strength": 0.5, "cosine": 0.5}, None),
    "cma": ({"n": 5}, None),
    "rewrites": ({"n": 3}, None),
    "rewrites two": ({"wordings": 2, "n": 1}, None),
}


# Settings that need a verifier with a gradient, and rows through the network, where that is not the price.
GRADIENTS = {setting for setting in PRICED if setting.split()[0] in ("first_order", "reno", "dps")}
ROWS = {
    "first_order": lambda s: 2 * 3 * s,  # there, and again on the way back
    "reno": lambda s: 2 * 2 * s,
    "dps": lambda s: 3 * s,
    "dps tilt": lambda s: 2 * s,
}


def make(setting):
    """The search of a setting of `PRICED`, ready for a Task."""
    name = setting.split()[0]
    return partial(PLUG_INS.get(name) or SEARCHES[name], **PRICED[setting][0])


def task(setting, budget=10_000, row=0, seed=0):
    search = make(setting) if isinstance(setting, str) else setting
    return Task(search, row, noise.fold(noise.root(seed), row), budget, f"{row}")


def forwards(sampler):
    """Rows through the network, those of drafts included."""
    return sampler.forwards + sum(drafter.forwards for drafter in vars(sampler).get("_drafters", {}).values())


def same(a, b):
    """Whether two Results are equal bit by bit, costs included."""
    try:
        assert_same(a, b)
    except AssertionError:
        return False
    return True
