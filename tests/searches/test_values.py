"""A value model judges unfinished pictures, and the verifier itself those that are finished: in every search."""

import pytest
import torch
from toys import task

from diffscale.engine.driver import run_searches
from diffscale.engine.scoring import at_stage
from diffscale.engine.work import Job
from diffscale.engine.worker import Worker
from diffscale.searches import SEARCHES, choose_search
from diffscale.testing import NearPoint, assert_same, points
from diffscale.testing import WordedToy as ToySampler
from diffscale.types import Draft, JudgesUnfinished, Score, Stage
from diffscale.verifiers.ensemble import Ensemble
from diffscale.verifiers.valued import Valued, ValueModel

PROMPTS = ["a red circle", "two small blue squares above a star"]


class Near(NearPoint):
    """A NearPoint that can be taught: it sees the point, and the score."""

    def view(self, images, prompts):
        return torch.cat([points(images), self(images, prompts)[:, None]], 1)


def model(stages, rows, bias=None, verifier="near_point"):
    bias = [0.0] * len(rows) if bias is None else bias
    return ValueModel(verifier, stages, torch.tensor(rows), torch.tensor(bias), {})


ITSELF = model([Stage(0.0), Stage(0.0, "")], [[0.0, 0.0, 1.0]] * 2)


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
@pytest.mark.parametrize("name", SEARCHES)
def test_of_a_value_that_is_the_score_every_search_finds_what_it_finds_without(name, process):
    plain, valued = (
        run_searches([task(choose_search(name).make(), 160)], ToySampler(PROMPTS, 8, process), verifier, 16)[0]
        for verifier in (Near(), Valued(Near(), ITSELF))
    )
    assert_same(plain, valued)
    assert (plain.ledger.nfe, plain.decisions) == (valued.ledger.nfe, valued.decisions)


class Seen(Near):
    """It keeps which stages were judged, and how many finished pictures."""

    def __init__(self):
        super().__init__()
        self.stages, self.finished = [], 0

    def __call__(self, images, prompts):
        self.finished += len(images)
        return super().__call__(images, prompts)

    def unfinished(self, stage):
        self.stages.append(stage)
        return Near()


@pytest.mark.parametrize(
    ("search", "done"),
    [
        ("halving at=2,5", {(1, None), (4, None)}),
        ("draft steps=2,4", {(2, ""), (4, "")}),
        ("draft steps=3 at=6", {(3, ""), (5, None)}),
        ("fk k=4", {(i, None) for i in range(10)}),
        ("svdd", {(i, None) for i in range(10)}),
    ],
)
def test_the_stage_is_the_noise_level_of_what_was_predicted_or_the_share_of_a_draft(search, done):
    verifier, sampler = Seen(), ToySampler(PROMPTS, 10)
    (result,) = run_searches([task(choose_search(search).make(), 200)], sampler, verifier)
    found = {(round(10 * stage.done), stage.via) for stage in verifier.stages}
    assert found <= done and {via for _, via in found} == {via for _, via in done}
    assert all(stage.done == pytest.approx(round(10 * stage.done) / 10) for stage in verifier.stages)
    assert verifier.finished == result.candidates


def test_off_the_grid_the_stage_is_of_the_level_there():
    verifier, sampler = Seen(), ToySampler(PROMPTS, 10)
    state = sampler.prior(torch.tensor([1]), torch.tensor([0]))
    there = sampler.predict(sampler.solve(state, 0.63, 2))
    Worker.beside(sampler, verifier).compute(Job(Score(there)))
    assert verifier.stages[0].done == pytest.approx(0.37)


def test_values_are_what_is_ranked_by_and_scores_are_what_is_told():
    # By the value the best is what lies left, by the score what is near the point on the right.
    leftmost = model([Stage(0.0, ""), Stage(1.0, "")], [[-1.0, 0.0, 0.0]] * 2)
    search = choose_search("draft steps=9 n=20 finals=3").make()
    sampler = ToySampler(PROMPTS, 10)
    by_value, by_score = (
        run_searches([task(search, 210)], sampler, verifier)[0] for verifier in (Valued(Near(), leftmost), Near())
    )
    assert by_value.best.latents[0] < by_score.best.latents[0]
    for result in (by_value, by_score):
        image = sampler.decode(result.best.latents[None])
        assert result.best.score == pytest.approx(float(Near()(image, PROMPTS[:1])[0]))
    assert Valued(Near(), leftmost).name == Near.name


def test_between_what_was_learned_values_are_interpolated_and_the_score_is_the_end():
    two = model(
        [Stage(0.6), Stage(0.2), Stage(0.25, ""), Stage(1.0, "cache")],
        [[6.0, 0.0, 0.6], [2.0, 0.0, 0.2], [9.0, 0.0, 0.0], [5.0, 0.0, 0.0]],
        [0.6, 0.2, 0.9, 0.5],
    )
    for stage, weight, score, bias in (
        (Stage(0.2), 2, 0.2, 0.2), (Stage(0.6), 6, 0.6, 0.6), (Stage(0.0), 2, 0.2, 0.2), (Stage(0.3), 3, 0.3, 0.3),
        (Stage(0.8), 3, 0.8, 0.3), (Stage(1.0), 0, 1, 0), (Stage(0.25, ""), 9, 0, 0.9), (Stage(0.1, ""), 9, 0, 0.9),
        (Stage(0.625, ""), 4.5, 0.5, 0.45), (Stage(0.4, "cache"), 5, 0, 0.5), (Stage(1.0, "cache"), 5, 0, 0.5),
        (Stage(0.3, "model"), 0, 1, 0),
    ):  # fmt: skip
        weights, found = two.at(stage)
        assert [*weights.tolist(), float(found)] == pytest.approx([weight, 0, score, bias], abs=1e-6), stage


def test_members_of_an_ensemble_judge_by_their_own_values():
    verifier = Ensemble("both", [Valued(Near(), model([Stage(0.5)], [[1.0, 0.0, 0.0]])), NearPoint()], [1.0, 1.0])
    images = torch.rand(4, 3, 1, 1, dtype=torch.float64)
    assert isinstance(verifier, JudgesUnfinished)
    found = at_stage(verifier, Stage(0.5))(images, [""] * 4)
    assert torch.allclose(found, torch.stack([points(images)[:, 0], NearPoint()(images, [""] * 4)], 1))
    assert torch.allclose(verifier(images, [""] * 4)[:, 0], NearPoint()(images, [""] * 4))


def test_what_a_value_costs_is_counted():
    sampler = ToySampler(PROMPTS, 10)
    state = sampler.prior(torch.arange(5), torch.zeros(5).long())
    output = Worker.beside(sampler, Valued(Near(), ITSELF)).compute(Job(Draft(state, 3)))
    assert output.verifier_flops == 5 * 2 * 3 and output.costs(slice(0, 1), 5)["verifier_flops"] == 6
