"""Diffusion tree sampling, and search: a tree over the steps that remembers what its branches led to."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt

from diffscale.searches.budget import afford
from diffscale.searches.particles import Units
from diffscale.searches.rounds import predictions
from diffscale.types import Answer, Environment, PositiveShare, Search, Share, State, search_traits


@dataclass
class Node:
    """A predicted `state` of one row after `done` evaluations.

    The root has none, as its children begin with noises; nor has a finished sample, whose number is `finished`.
    """

    done: int
    state: State | None = None
    finished: int | None = None
    children: list["Node"] = field(default_factory=list)
    visits: int = 0


@search_traits(anytime=True)
def dts(
    env: Environment,
    at: tuple[PositiveInt, ...] | None = None,
    greedy: bool = True,
    strength: NonNegativeFloat = 2.0,
    explore: NonNegativeFloat = 1.0,
    units: Units = "std",
    widening: PositiveFloat = 2.0,
    power: PositiveShare = 0.5,
    n: PositiveInt | None = None,
    eta: Share | None = 1.0,
) -> Search:
    """Branch again and again where finished samples say that it pays. Price: all of the budget.

    Diffusion tree search, and sampling with greedy=false (Jain et al. 2025, arXiv 2506.20701). Its nodes are samples
    on their way after the numbers of steps `at` (ours: the paper branches at every step; by default a quarter, half
    and three quarters of all). Each round goes down the tree until a node has fewer children than `widening`
    visits^`power`, or is the last (ours: the paper limits its children too, and then counts a visit of a finished one,
    which costs nothing and teaches nothing); it gets another child, denoised to its end; all that lies between joins
    the tree. V of a finished sample is its score, and V of a node is log mean exp(strength V(child)) / strength. The
    way down is drawn by softmax(strength V); or, greedy, it maximises V + explore sqrt(log visits / visits of the
    child). `strength` (the paper's lambda) and `explore` are in `raw` units of the verifier, or in standard deviations
    of all finished scores (`std`, ours). `n`: samples, by default as many as the budget pays. `eta`: share of fresh
    noise in each step. The defaults are ours.

    Raises BudgetTooSmall if the budget does not pay for one sample, DiffscaleError for steps that do not rise.
    """
    afford(env, env.steps, "A sample")
    usual = sorted({max(1, round(each * env.steps)) for each in (0.25, 0.5, 0.75)} & set(range(env.steps)))
    places = [look.steps for look in predictions(env, usual if at is None else at)]
    last = max(places, default=0)
    root, scores = Node(0), torch.empty(0)
    while n != 0:
        values = env.value(scores).tolist() if root.children else []
        usable = [each for each in values if math.isfinite(each)]
        unit = float(torch.tensor(usable).std()) if units == "std" and len(usable) > 1 else 0.0
        unit = unit or 1.0
        path = [root]
        while (node := path[-1]).done < last and len(node.children) >= max(1.0, widening * node.visits**power):
            path.append(chosen(env, node, values, strength / unit, explore * unit if greedy else None))
        if env.nfe_left < env.steps - node.done:
            return
        state = yield from _grown(env, path, places, eta)
        found = yield from env.score(state)
        path[-1].children.append(Node(env.steps, finished=len(values)))
        scores = torch.cat([scores, found]) if values else found
        for node in path:
            node.visits += 1
        n = None if n is None else n - 1


def chosen(env: Environment, node: Node, values: Sequence[float], strength: float, explore: float | None) -> Node:
    """The child to go on with: by chance, or if it is told how much to `explore` the greedy one; `values` [samples]."""
    below = torch.tensor([soft_value(child, values, strength) for child in node.children], dtype=torch.float64)
    if explore is None:
        # The largest of these with Gumbel noise is a draw by their softmax; where all are dropped they are alike.
        logits = strength * below if below.isfinite().any() else torch.zeros_like(below)
        logits = logits - (-env.uniform(len(below)).log()).log()
    else:
        visits = torch.tensor([child.visits for child in node.children])
        logits = below + explore * (math.log(node.visits) / visits).sqrt()
    return node.children[int(logits.argmax())]


def soft_value(node: Node, values: Sequence[float], strength: float) -> float:
    """V of a node, by the `values` of all finished samples; -inf if none below it could be scored."""
    if node.finished is not None:
        return values[node.finished]
    below = [soft_value(child, values, strength) for child in node.children]
    top = max(below)
    if not strength or top == -math.inf:
        return sum(below) / len(below)
    return top + math.log(sum(math.exp(strength * (each - top)) for each in below) / len(below)) / strength


def _grown(env: Environment, path: list[Node], places: Sequence[int], eta: float | None) -> Answer[State]:
    """A finished sample that branches off the last node of `path`, to which the nodes on its way are added."""
    begin = path[-1].state
    state = env.prior(1) if begin is None else env.step(env.branch(begin, 1), eta=eta)
    while state.step < env.steps:
        state = yield from env.predict(state)
        if state.step + 1 in places:
            path[-1].children.append(Node(state.step + 1, state))
            path.append(path[-1].children[-1])
        state = env.step(state, eta=eta)
    return state
