"""Searches by looks, with every kind of verifier and chooser: what they spend and refuse, and where they go on."""

import pytest
import torch
from toys import forwards, task

from diffscale._util.errors import DiffscaleError
from diffscale.engine.allocation import Threshold
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.searches import SEARCHES, choose_search
from diffscale.testing import NearPoint as Near
from diffscale.testing import WordedToy as ToySampler
from diffscale.testing import points
from diffscale.types import declares
from diffscale.verifiers.ensemble import Ensemble, Weighted
from diffscale.verifiers.function import FunctionVerifier


class FarFromChosen:
    """A SetVerifier: pictures are to be far from those that were chosen."""

    name = "far_from_chosen"

    def begin(self):
        self.chosen = [torch.zeros(2, dtype=torch.float64)]

    def choose(self, image, prompt):
        self.chosen.append(points(image[None])[0])

    def __call__(self, images, prompts):
        return torch.cdist(points(images), torch.stack(self.chosen)).min(1).values


class Steady:
    """A NeedsIntermediateX0: pictures are to be near their own predictions."""

    name, record_level = "steady", 0.4

    def __call__(self, images, prompts, predictions):
        return -(points(images) - points(predictions)).norm(dim=1)


def ensemble(kind=Ensemble):
    right = FunctionVerifier("right", lambda images, prompts: points(images)[:, 0])
    return kind(kind.__name__, [Near(), right], [1.0, 2.0])


VERIFIERS = {
    "near": Near, "ensemble": ensemble, "weighted": lambda: ensemble(Weighted), "set": FarFromChosen, "steady": Steady,
}  # fmt: skip
BY_DRAFTS, BY_PREDICTIONS = ["auto", "draft", "draft steps=2,4"], ["draft steps=2 at=6", "halving", "halving at=2,5"]


class Killing:
    """A verifier whose process ends when it is called the `last` time."""

    def __init__(self, verifier, last):
        self.__class__ = type("Killing", (type(verifier),), {"__call__": self._score})
        self.__dict__ = {**vars(verifier), "own": verifier, "left": last}

    def _score(self, *args):
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
        return type(self.own).__call__(self, *args)


def found(search, verifier, choose=None, journal=None, sampler=None, budget=300):
    tasks = [task(choose_search(search).make(), budget, row) for row in range(2)]
    sampler = ToySampler(["a point", "another"], steps=10) if sampler is None else sampler
    return run_searches(tasks, sampler, verifier, 16, journal=journal, choose=choose, keep_best=2)


@pytest.mark.parametrize("choose", [None, "ensemble", "steady"])
@pytest.mark.parametrize("verifier", VERIFIERS)
@pytest.mark.parametrize("search", BY_DRAFTS + BY_PREDICTIONS)
def test_any_verifier_and_chooser_is_searched_with_and_gone_on_with_where_it_was_killed(
    search, verifier, choose, tmp_path
):
    made, chooser = VERIFIERS[verifier], VERIFIERS.get(choose, lambda: None)
    if verifier == "steady" and search in BY_PREDICTIONS:
        sampler = ToySampler(["a point", "another"], steps=10)
        with pytest.raises(DiffscaleError, match="cannot be scored here"):
            found(search, made(), chooser(), sampler=sampler)
        assert forwards(sampler) == 0  # it is told before anything is paid for
        return
    whole = found(search, made(), chooser())
    for result in whole:
        assert 270 < result.ledger.nfe <= 300 and result.candidates >= 2 and len(result.best_candidates) == 2
        assert bool(result.decisions) == (search == "auto")
        values = [each.value for each in result.best_candidates]
        assert values == sorted(values, reverse=True)
    with pytest.raises(KeyboardInterrupt):
        found(search, Killing(made(), 4), chooser(), Journal(tmp_path / "journal", {}))
    again = found(search, made(), chooser(), Journal(tmp_path / "journal", {}))
    for before, after in zip(whole, again, strict=True):
        assert after.best.key == before.best.key and torch.allclose(after.pool, before.pool)
        assert after.ledger.nfe == before.ledger.nfe and after.decisions == before.decisions
        assert after.ledger.network_forwards == before.ledger.network_forwards


ANYTIME = sorted(name for name in SEARCHES if declares(SEARCHES[name], "anytime"))


@pytest.mark.parametrize("search", [*ANYTIME, "zero_order policy=greedy", "zero_order policy=restart n=3"])
def test_every_anytime_search_shares_a_budget_and_goes_on_where_it_was_killed(search, tmp_path):
    sampler = ToySampler(["a point", "another", "a third"], steps=5)

    def shared(verifier, journal=None):
        tasks = [task(choose_search(search).make(), 150, row) for row in range(3)]
        rule = Threshold(chance=0.0)
        return run_searches(tasks, sampler, verifier, 8, journal=journal, allocation=rule, return_errors=True)

    whole = shared(Near())
    assert 420 < sum(result.ledger.nfe for result in whole) <= 450
    with pytest.raises(KeyboardInterrupt):
        shared(Killing(Near(), 9), Journal(tmp_path / "journal", {}))
    again = shared(Near(), Journal(tmp_path / "journal", {}))
    for row, (before, after) in enumerate(zip(whole, again, strict=True)):
        alone = run_searches([task(choose_search(search).make(), before.ledger.budget, row)], sampler, Near(), 8)
        assert after.best.key == before.best.key and torch.allclose(after.pool, before.pool)
        assert after.ledger.nfe == before.ledger.nfe and alone[0].ledger.nfe == before.ledger.nfe


@pytest.mark.parametrize("search", sorted(set(SEARCHES) - set(ANYTIME)))
def test_others_share_none(search):
    with pytest.raises(DiffscaleError, match="cannot be given more on its way"):
        run_searches([task(choose_search(search).make(), 300)], ToySampler(steps=5), Near(), allocation=Threshold())
