"""What the driver is asked to run."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from diffscale.types import Environment, Evaluate, Search


@dataclass(frozen=True)
class Task:
    """One search to run: `search` makes the generator, `prompt_index` says which of the sampler's prompts it is for.

    `budget` is in NFE. All randomness descends from `key` (`noise.fold(noise.root(seed), prompt, repeat)`), so a task
    gives the same result alone or among others. `name` is what a journal knows it by; without one it is its number.
    """

    search: Callable[[Environment], Search]
    prompt_index: int
    key: int
    budget: int
    name: str = ""


def baseline_task(task: Task) -> Task:
    """One sample of the first noise of `task`'s key: all searches with that key are compared with it."""
    return replace(task, search=_one_sample, name=f"{task.name} | plain")


def _one_sample(env: Environment) -> Search:
    yield Evaluate(env.prior(1))
