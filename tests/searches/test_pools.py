"""Verifiers that want more than a picture and its prompt, in every algorithm: pools, recorded predictions, choices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pipelines import PROMPTS
from test_all import SLOW, FragileToy, Killed, same
from toys import GRADIENTS, PRICED, task

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.searches.random import random
from diffscale.testing import NearPoint as Near
from diffscale.testing import WordedToy as ToySampler
from diffscale.testing import points
from diffscale.types import ClassLabel
from diffscale.verifiers.ensemble import Ensemble, Weighted


class Named(Near):
    def __init__(self, name, target):
        super().__init__(target)
        self.name = name


def pair(kind=Ensemble):
    return kind("both", [Named("east", (4.2, 0.3)), Named("north", (0.1, 4.1))], [1.0, 1.0])


class Steady(Near):
    """Compares a finished picture with the prediction of it at level 0.4."""

    name = "steady"
    record_level = 0.4

    def __init__(self):
        super().__init__()
        self.seen = []

    def __call__(self, images, prompts, recorded):
        self.seen.append((images, recorded))
        return -(points(images) - points(recorded)).square().sum(1)


class Apart:
    """How far a point is from all that were chosen."""

    name = "apart"

    def __init__(self):
        self.chosen, self.prompts = [], []

    def begin(self):
        self.chosen, self.prompts = [], []

    def choose(self, image, prompt):
        self.chosen.append(points(image[None])[0])
        self.prompts.append(prompt)

    def __call__(self, images, prompts):
        if not self.chosen:
            return points(images)[:, 0]
        return torch.stack([(points(images) - one).norm(dim=1) for one in self.chosen]).amin(0)


NO_POOLS = GRADIENTS
QUICK = [name for name in PRICED if name not in SLOW | NO_POOLS]


@pytest.mark.parametrize("kind", [Ensemble, Weighted])
@pytest.mark.parametrize("setting", [name for name in PRICED if name not in NO_POOLS])
def test_ensembles_drive_every_algorithm_whatever_the_batch(setting, kind):
    budget = 60 if setting in SLOW else 300
    alone, three = (
        run_searches([task(setting, budget)], ToySampler(steps=6), pair(kind), size, gallery=3, keep_best=3)
        for size in (None, 3)
    )
    (result,) = alone
    assert same(result, three[0])
    assert list(result.traces) == ["east", "north"]
    values = pair(kind).aggregate(result.pool)
    assert result.best.score == pytest.approx(float(values.max()), abs=1e-11)
    torch.testing.assert_close(result.best.components, result.pool[values.round(decimals=12).argmax()])
    assert result.baseline.score <= result.best.score


@pytest.mark.parametrize("setting", sorted(GRADIENTS))
def test_a_gradient_of_ranks_is_refused(setting):
    with pytest.raises(DiffscaleError, match="has no gradient"):
        run_searches([task(setting, 200)], ToySampler(steps=6), pair())


def test_a_component_that_fails_drops_the_candidate_from_the_pool():
    class Half(Near):
        name = "half"

        def __call__(self, images, prompts):
            scores = super().__call__(images, prompts)
            return scores.where(points(images)[:, 0] > 0, float("nan"))

    both = Ensemble("both", [Near(), Half()], [1.0, 1.0])
    with pytest.warns(UserWarning, match="Dropped"):
        (result,) = run_searches([task(random, 120)], ToySampler(steps=6), both)
    assert 0 < result.dropped < 20
    values = both.aggregate(result.pool[result.pool.isfinite().all(1)])
    assert result.best.score == pytest.approx(float(values.max()), abs=1e-11)


@pytest.mark.parametrize("setting", ["random", "zero_order", "bayes", "first_order"])
@pytest.mark.parametrize("process", ["flow", "vp"])
def test_predictions_are_recorded_in_flight_and_cost_nothing(setting, process):
    budget = 60 if setting == "bayes" else 300
    verifier = Steady()
    recorded = ToySampler(steps=10, process=process)
    (result,) = run_searches([task(setting, budget)], recorded, verifier)
    plain = ToySampler(steps=10, process=process)
    (other,) = run_searches([task(setting, budget)], plain, Near())
    assert result.ledger.nfe == recorded.forwards or setting == "first_order"
    if setting == "random":
        assert result.ledger.nfe == other.ledger.nfe and recorded.forwards == plain.forwards
        # Against the prediction made from the same noise at that level, which the levels 1, 0.9, ... have at step 6.
        state = recorded.run(recorded.prior(torch.tensor([result.best.key]), torch.tensor([0])), 6)
        x0 = recorded.decode(recorded.predict(state).x0)
        gap = (points(x0) - points(result.best.image[None])).square().sum(1)
        torch.testing.assert_close(-gap.item(), result.best.score, atol=0.01, rtol=0.05)
    assert result.ledger.decodes >= 2 * result.candidates


@pytest.mark.parametrize("setting", ["paths", "demon", "free2guide", "fk", "svdd", "beam", "das"])
def test_unfinished_pictures_cannot_be_compared_with_predictions_of_them(setting):
    with pytest.raises(DiffscaleError, match="search over noises"):
        run_searches([task(setting, 300)], ToySampler(steps=10), Steady())


def test_slots_are_filled_in_order_and_each_sees_those_before():
    tasks = [task("random", 60, row) for row in range(4)]
    prompts = ["a", ClassLabel("b", 7), "c", "d"]
    verifier = Apart()
    results = run_searches(tasks, ToySampler(prompts, steps=6), verifier)
    assert verifier.prompts == prompts and verifier.prompts[1].class_id == 7
    chosen = [points(result.best.image[None])[0] for result in results]
    for slot, result in enumerate(results[1:], 1):
        near = min(float((chosen[slot] - one).norm()) for one in chosen[:slot])
        assert result.best.score == pytest.approx(near, abs=0.1)  # the journal keeps 8 bits a channel
    again = Apart()
    assert all(map(same, results, run_searches(tasks, ToySampler(prompts, steps=6), again, 2)))


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(["ensemble", "choosing", "recording"]), st.sampled_from(QUICK), st.integers(0, 20))
def test_killed_anywhere_it_goes_on_and_ends_alike(tmp_path_factory, kind, setting, predicted):
    if kind == "recording":
        setting = "zero_order"
    kinds = {"ensemble": pair, "choosing": Apart, "recording": Steady}
    tasks = [task(setting, 300, row) for row in range(2)]
    whole = run_searches(tasks, ToySampler(PROMPTS, steps=5), kinds[kind](), 4, gallery=2, keep_best=3)
    path = tmp_path_factory.mktemp("journal") / "journal.sqlite"
    for sampler in (FragileToy(predicted, PROMPTS, steps=5), ToySampler(PROMPTS, steps=5)):
        journal = Journal(path, {"setting": setting})
        try:
            resumed = run_searches(tasks, sampler, kinds[kind](), 4, gallery=2, keep_best=3, journal=journal)
        except Killed:
            continue
        finally:
            journal.close()
    assert all(map(same, whole, resumed))
