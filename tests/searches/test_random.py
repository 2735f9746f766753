"""Random search and the registry."""

import pytest

from diffscale import searches
from diffscale._util.errors import UnknownName
from diffscale.cli import list as listed
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches.random import random


def test_spends_the_budget_or_n(verifier):
    sampler = ToySampler(steps=4)
    for n, budget, spent in [(None, 4 * 7 + 3, 4 * 7), (3, 100, 12), (50, 9, 8)]:
        task = Task(lambda env, n=n: random(env, n), 0, 1, budget)
        (result,) = run_searches([task], sampler, verifier)
        assert result.ledger.nfe == spent


def test_more_candidates_are_never_worse(verifier):
    scores = []
    for n in (1, 2, 4, 8, 16):
        (result,) = run_searches([Task(random, 0, 5, 4 * n)], ToySampler(steps=4), verifier)
        scores.append(result.best.score)
        assert result.baseline.score == scores[0]
    assert scores == sorted(scores) and scores[-1] > scores[0]


def test_registry_describes_and_suggests():
    assert searches.SEARCHES["random"] is random is searches.choose_search("random").make()
    description, formula = next(row[1:3] for row in listed.searches() if row[0] == "random")
    assert description.startswith("Best of n independent noises")
    assert formula == "n * steps"
    with pytest.raises(UnknownName, match="did you mean 'random'"):
        searches.choose_search("randm")
