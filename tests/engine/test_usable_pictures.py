"""Verifiers see finite pictures alone, and cannot change what is kept of them."""

import math

import pytest
import torch

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.results import Result
from diffscale.engine.scoring import DroppedCandidate, safe_score
from diffscale.engine.task import Task
from diffscale.searches import SEARCHES, choose_search
from diffscale.testing import NearPoint
from diffscale.testing import WordedToy as ToySampler
from diffscale.train.rewards import Reward
from diffscale.types import State
from diffscale.verifiers import load
from diffscale.verifiers.ensemble import Ensemble


class Strict(NearPoint):
    """It looks at 8 bits, where NaN is black, and fails the test if it is shown any."""

    def __call__(self, images, prompts, *early):
        assert images.isfinite().all() and all(each.isfinite().all() for each in early)
        return super().__call__(images, prompts)


class Recording(Strict):
    record_level = 0.5


class HalfBroken(ToySampler):
    """Its decoder overflows for every picture whose point lies on the right."""

    def decode(self, latents):
        images = super().decode(latents)
        return torch.where(latents[:, 0].view(-1, 1, 1, 1) > 0, torch.nan, images)


@pytest.mark.parametrize("name", sorted(set(SEARCHES) - {"bayes"}))
def test_pictures_that_are_not_finite_are_dropped_before_the_verifier_is_called(name):
    with pytest.warns(DroppedCandidate, match=r"Dropped a candidate of 'a point': decoding gave no finite picture\."):
        tasks = [Task(choose_search(name).make(), 0, noise.fold(1, key), 400) for key in range(4)]
        results = run_searches(tasks, HalfBroken(steps=6), Strict((-4.2, 0.3)), return_errors=True)
    found = [result for result in results if isinstance(result, Result)]
    assert found and any(result.dropped for result in found)
    for result in found:
        assert result.best.image.isfinite().all() and math.isfinite(result.best.score) and result.best.latents[0] <= 0


def test_recorded_predictions_that_are_not_finite_drop_their_candidate():
    images, early = torch.full((3, 3, 4, 4), 0.5), torch.full((3, 3, 4, 4), 0.5)
    early[1, 0, 0, 0] = torch.inf
    with pytest.warns(DroppedCandidate, match="no finite picture"):
        scores = safe_score(Recording(), images, ["a", "b", "c"], early)
    assert scores.isfinite().tolist() == [True, False, True]


@pytest.mark.parametrize("shape", [(3, 3, 4, 4), (3, 2, 3, 4, 4)])
def test_the_scores_of_the_others_are_theirs(shape):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    both = Ensemble("both", [Strict(), Strict((0.0, 0.0))], [1.0, 2.0])
    for verifier in (Strict(), both):
        wanted = safe_score(verifier, images, ["a", "b", "c"])
        broken = images.clone()
        broken[1].view(-1)[-1] = torch.nan
        with pytest.warns(DroppedCandidate, match="'b'"):
            found = safe_score(verifier, broken, ["a", "b", "c"])
        assert torch.equal(found[[0, 2]], wanted[[0, 2]]) and found[1].isinf().all()


def spoils(images, prompts, *early):
    """A slip: it centres the pictures in place. The prompts it forgets."""
    scores = images.mean((1, 2, 3))
    for each in (images, *early):
        each.sub_(each.mean((1, 2, 3), keepdim=True))
    prompts.clear()
    return scores


class Spoils:
    name, record_level = "spoils", 0.5

    def __call__(self, images, prompts, early):
        return spoils(images, prompts, early)


BOTH = Ensemble("both", [load(spoils), NearPoint()], [1.0, 1.0])


@pytest.mark.parametrize("verifier", [load(spoils), Spoils(), BOTH])
def test_no_verifier_can_change_the_pictures(verifier):
    sampler = ToySampler(steps=6)
    (result,) = run_searches([Task(choose_search("random n=4").make(), 0, 3, 100)], sampler, verifier)
    latents = State(result.best.latents[None], 6, torch.tensor([1]), torch.tensor([0]))
    wanted = (sampler.decode(latents.x)[0] * 255).round() / 255
    torch.testing.assert_close(result.best.image, wanted, atol=1e-6, rtol=0)
    images, before = (torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)) for _ in range(2))
    if not isinstance(verifier, Spoils):
        Reward(verifier)(images, ["a", "b"])
        assert torch.equal(images, before)


def test_a_member_that_changes_its_pictures_changes_those_of_no_other_member():
    images = torch.rand(2, 3, 4, 4)
    wanted = NearPoint()(images, ["a", "b"])
    found = BOTH(images, ["a", "b"])
    torch.testing.assert_close(found[:, 1], wanted)


@pytest.mark.parametrize("given", [torch.ones(2, dtype=torch.complex64), [1j, 2.0]])
def test_complex_scores_are_refused(given):
    from diffscale import DiffscaleError

    with pytest.raises(DiffscaleError, match="must return scores"):
        safe_score(load(lambda images, prompts: given), torch.rand(2, 3, 4, 4), ["a", "b"])
