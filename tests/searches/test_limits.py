"""What no search and no verifier takes: numbers without sense, and more memory than is sensible."""

import inspect
import resource
from functools import partial
from types import NoneType
from typing import get_args

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.searches import SEARCHES, choose_search
from diffscale.searches.fk import fk
from diffscale.testing import NearPoint as Near
from diffscale.testing import WordedToy as ToySampler
from diffscale.types import State
from diffscale.verifiers import VERIFIERS
from diffscale.verifiers import check as check_verifier

MAY_BE_0 = {
    "zero_order cosine", "zero_order iterations", "free2guide guided", "free2guide temperature", "fk strength",
    "fk ess", "fk eta", "svdd eta", "beam eta", "bfs strength", "bfs eta", "das strength", "das ess", "das eta",
    "vasr strength", "vasr eta", "funnel strength", "funnel ess", "funnel eta", "composition threshold",
    "evolution at", "pcn cosine", "pcn strength", "reno weight", "reno momentum",
    "dfs share", "dfs threshold", "dts strength", "dts explore", "dts eta", "detector threshold",
    "llm_grader price_in", "llm_grader price_out",
}  # fmt: skip


def _is_number(annotation):
    """Whether a number is meant, which may be None or have a range; annotations may be texts."""
    text = annotation if isinstance(annotation, str) else " ".join(map(str, _alternatives(annotation)))
    return any(word in text for word in ("int", "float", "Share", "Positive", "Level"))


def _alternatives(annotation):
    inner = [each for each in get_args(annotation) if each is not NoneType]
    return [annotation] if annotation in (int, float) else [each for one in inner for each in [one, *get_args(one)]]


MAY_BE_NEGATIVE = {"dfs threshold"}  # as scores may
LOOKING = {"auto", "draft", "halving"}  # in several pools
ONE_BY_ONE = {name for name in SEARCHES if choose_search(name).declares("anytime")} | {"bayes", "dfs"}


@pytest.mark.parametrize("name", sorted(set(SEARCHES) - ONE_BY_ONE - LOOKING))
def test_a_huge_budget_asks_for_no_memory_that_it_would_pay_for(name):
    """Each of these takes as many rows as the budget pays for, where it is not told how many."""
    began = torch.zeros(1)  # torch is loaded before memory is measured
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DiffscaleError, match=r"rows at once, and 65,536 of this size are the most: set .* n, k or m"):
        run_searches([Task(choose_search(name).make(), 0, 1, 10**9)], ToySampler(steps=5), Near())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000 and not began  # KiB


@pytest.mark.parametrize("name", sorted(LOOKING))
def test_of_a_huge_budget_no_more_rows_are_looked_at_at_once_than_can_be_made(name):
    asked = []

    def search(env):
        asked.append(next(choose_search(name).make()(env)))
        yield from env.evaluate(env.prior(1))

    run_searches([Task(search, 0, 1, 10**9)], ToySampler(steps=20), Near())
    assert 50_000 < len(asked[0].state) <= 65_536


def test_rows_are_limited_by_their_size_too():
    state = State(torch.zeros(1, 2**20), 0, torch.zeros(1).long(), torch.zeros(1).long())
    with pytest.raises(DiffscaleError, match="made 1,000 rows at once, and 512 of this size"):
        state.repeat(1000)


RANGES = [
    (kind, name, parameter.name)
    for kind, registry, inputs in (("search", SEARCHES, 1), ("verifier", VERIFIERS, 0))
    for name in registry
    for parameter in list(inspect.signature(registry[name]).parameters.values())[inputs:]
    if parameter.kind is parameter.POSITIONAL_OR_KEYWORD and _is_number(parameter.annotation)
]


@pytest.mark.parametrize(("kind", "name", "parameter"), RANGES)
def test_no_parameter_takes_a_number_without_sense(kind, name, parameter):
    """NaN, infinities and negative numbers make sense for none of them, and 0 only for those that say so."""
    check = choose_search if kind == "search" else check_verifier
    negative = () if f"{name} {parameter}" in MAY_BE_NEGATIVE else ("-1",)
    for value in ("nan", "inf", "-inf", *negative, "1e400", "2" + "0" * 5000):
        with pytest.raises(DiffscaleError) as told:
            check(f"{name} {parameter}={value}")
        assert f"cannot take {parameter}=" in str(told.value) or f"takes {parameter} as" in str(told.value)
    if f"{name} {parameter}" not in MAY_BE_0:
        with pytest.raises(DiffscaleError, match="it should be greater than 0"):
            check(f"{name} {parameter}=0")
    else:
        check(f"{name} {parameter}=0")


def test_the_kinds_are_all_there():
    """The reader of annotations above finds what is a number, in all forms that annotations have."""
    found = {f"{name} {parameter}" for _, name, parameter in RANGES}
    assert found > MAY_BE_0 and len(found) >= 35
    assert {"random n", "demon temperature", "paths start", "clip_ssl level", "llm_grader timeout"} < found
    assert not {"fk units", "clip model", "zero_order policy"} & found


CONTRADICTIONS = {
    "cma n=1": "from 2 candidates or more, not in 2 from n=1",
    "cma dimensions=1": "learns in 2 dimensions or more",
    "evolution at=10": "at lists steps below 10 that do not fall",
    "evolution at=4,2": "at lists steps below 10 that do not fall",
    "draft n=3 finals=10": "Of n=3 candidates no more can be finished, but finals=10",
    "draft n=30 finals=10 share=0.5": "finals=10 and share=0.5 both say",
    "draft finals=10 share=0.5": "finals=10 and share=0.5 both say",
    "draft finals=1 both_ends=true": "With both_ends a best and a worst one are finished",
    "halving n=3 finals=4": "Of n=3 candidates no more can be finished, but finals=4",
    "halving finals=1 share=0.125": "finals=1 and share=0.125 both say",
    "halving at=5,3": "rise and stay below 10",
    "draft at=5,3": "rise and stay below 10",
    "bayes n=4 initial=3": "asks for n=4 at a time, the initial=3 too",
    "fk interval=10": "Nothing is scored on the way with interval=10, as a sample has 10 steps",
    "free2guide guided=0 k=3": "With guided=0 there is no step at which one of k=3",
    "paths forward=0.9 backward=0.8": "forward < backward",
    "paths start=0.5 forward=0.6 backward=0.7": "From start=0.5 no path can be noised forward=0.6 levels up",
    "zero_order policy=best iterations=0": "With policy=best the first pivot is not sampled",
}


@pytest.mark.parametrize("asked", CONTRADICTIONS)
def test_options_that_contradict_one_another_are_told_before_anything_is_asked_for(asked):
    search = choose_search(asked).make()
    with pytest.raises(DiffscaleError, match=CONTRADICTIONS[asked]):
        run_searches([Task(search, 0, 1, 10_000)], sampler := ToySampler(steps=10), Near())
    assert sampler.forwards == 0


@pytest.mark.parametrize(
    "asked",
    ["draft n=3 finals=3", "halving n=3 finals=3", "draft n=3 share=0.01", "bayes n=4 initial=4", "fk k=2 interval=9",
     "free2guide guided=0", "paths start=0.2 forward=0.8 backward=0.9", "zero_order policy=greedy iterations=0"],
)  # fmt: skip
def test_options_that_just_go_together_are_taken(asked):
    (found,) = run_searches([Task(choose_search(asked).make(), 0, 1, 200)], ToySampler(steps=10), Near())
    assert found.candidates > 0


def test_keywords_of_a_partial_function_are_held_to_their_ranges():
    for wrong in (partial(fk, strength=float("nan")), partial(fk, k=0), partial(fk, units="metres")):
        with pytest.raises(DiffscaleError, match="search fk"):
            choose_search(wrong)
    assert choose_search(partial(fk, k=2, eta=None)).make()
