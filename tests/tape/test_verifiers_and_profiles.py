"""Ensembles on a tape, profiles of one, and what of a recording makes it the same one."""

import json
from functools import partial

import families
import numpy as np
import pytest
import torch
from pipelines import PROMPTS as TINY_PROMPTS
from scipy.stats import spearmanr

from diffscale._util.errors import DiffscaleError
from diffscale.bench.tape_config import TapeConfig
from diffscale.bench.tapes import _plan
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.samplers.whole import sampler_of
from diffscale.searches.draft import draft
from diffscale.searches.halving import halving
from diffscale.searches.looks import Look
from diffscale.searches.profiles import read_profile
from diffscale.searches.random import random
from diffscale.tape.comparison import compare, scored
from diffscale.tape.profile import measured, write_profile
from diffscale.tape.record import Plan, record
from diffscale.tape.replay import gain, replay
from diffscale.tape.sampler import TapeSampler
from diffscale.tape.tape import Tape, load_tape
from diffscale.testing import NearPoint
from diffscale.verifiers.ensemble import Ensemble, Weighted

PROMPTS = ("a point", "another point", "a third point")
# Named as verifiers are, since a member of an ensemble is.
NEAR, FAR = NearPoint(), NearPoint((-4.0, 0.0))
PLAN = Plan(24, seed=3, predictions=(2, 4), drafts=((2, ""), (3, "")))


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    path = tmp_path_factory.mktemp("tape") / "toy.tape"
    return record(ToySampler(PROMPTS, 8), {"pick_score": NEAR, "clip": FAR}, PLAN, path)


@pytest.mark.parametrize(
    ("text", "kind", "weights"),
    [("ensemble of=pick_score,clip", Ensemble, (1, 1)), ("weighted of=clip,pick_score weights=1,3", Weighted, (3, 1))],
)
@pytest.mark.parametrize("search", [random, draft, partial(halving, at=(2, 4))])
def test_a_search_by_an_ensemble_finds_on_a_tape_what_it_finds_on_the_model(tape, search, text, kind, weights):
    replayed = replay(tape, search, text, 48, judges=["clip", "pick_score"])
    sampler = ToySampler(PROMPTS, 8)
    tasks = [Task(search, row, key, 48) for row, key in enumerate(TapeSampler(tape).keys)]
    for row, result in enumerate(run_searches(tasks, sampler, kind("both", [NEAR, FAR], weights))):
        picture = sampler.decode(result.best.latents[None])
        for name, member in (("pick_score", NEAR), ("clip", FAR)):
            assert replayed.judged[name][row] == pytest.approx(float(member(picture, [PROMPTS[row]])), abs=1e-5)
    finals = torch.stack([tape.finals("pick_score"), tape.finals("clip")], -1)
    worth = [kind("both", [NEAR, FAR], weights).aggregate(pool) for pool in finals]
    best = [int((finals[row, :, 1] - replayed.judged["clip"][row]).abs().argmin()) for row in range(3)]
    assert replayed.score == pytest.approx([float(worth[row][best[row]]) for row in range(3)])


def test_members_that_a_tape_does_not_hold_are_told(tape):
    with pytest.raises(DiffscaleError, match="Unknown verifier of the tape 'aesthetic'"):
        replay(tape, random, "ensemble of=clip,aesthetic", 48)
    with pytest.raises(DiffscaleError, match="An ensemble takes two members"):
        replay(tape, random, "weighted of=clip", 48)
    with pytest.raises(DiffscaleError, match="Unknown argument of verifier ensemble 'by'"):
        replay(tape, random, "ensemble by=clip", 48)


def test_a_profile_has_the_mean_rank_correlations_and_is_read_as_it_was_written(tape, tmp_path):
    scores = tape.scores["clip"].double().numpy()
    wanted = np.mean([spearmanr(each).statistic for each in scores], 0)
    profile = measured(tape, "clip")
    assert np.allclose(profile.agreement.matrix, wanted, atol=1e-4)
    assert profile.agreement.looks == (Look(2, on_the_way=True), Look(4, on_the_way=True), Look(2), Look(3))
    assert profile.agreement.shares == (0.25, 0.5, 0.25, 0.375) and profile.steps == 8
    assert profile.seconds == {
        "step": tape.seconds["step"],
        "decode": tape.seconds["decode"],
        "verify": tape.seconds["clip"],
    }
    write_profile(profile, tmp_path / "p.json", {"model": "toy"})
    assert read_profile(tmp_path / "p.json") == profile
    assert json.loads((tmp_path / "p.json").read_text())["about"] == {"model": "toy"}
    both = measured(tape, "ensemble of=clip,pick_score")
    assert both.seconds["verify"] == pytest.approx(tape.seconds["clip"] + tape.seconds["pick_score"])


def test_where_all_candidates_score_alike_there_is_no_agreement():
    scores = torch.rand(2, 9, 3, generator=torch.manual_seed(0))
    scores[0, :, 0] = scores[:, :, 1] = 1.0
    toy = Tape(["a", "b"], [1.0, 0.5, 0.0], 0, [1], [], {"clip": scores[..., :2]}, {"clip": 1.0})
    assert measured(toy, "clip").agreement.matrix == ((1.0, 0.0), (0.0, 1.0))
    toy = Tape(["a", "b"], [1.0, 0.5, 0.0], 0, [1], [], {"clip": scores[..., [0, 2]]}, {"clip": 1.0})
    told = measured(toy, "clip").agreement.matrix[0][1]  # the second prompt's alone
    assert told == pytest.approx(spearmanr(scores[1, :, 0], scores[1, :, 2]).statistic, abs=1e-4)
    with pytest.raises(DiffscaleError, match="with predictions or drafts"):
        measured(Tape(["a"], [1.0, 0.0], 0, [], [], {"clip": torch.rand(1, 9, 1)}), "clip")


@pytest.mark.parametrize(
    "changed",
    [{"candidates": 3}, {"seed": 1}, {"predictions": (4,)}, {"drafts": ((3, ""),)}, {"names": ("near", "far")}, {}],
)
@pytest.mark.parametrize("stopped", [True, False])
def test_another_recording_is_refused_and_the_same_one_is_read(tmp_path, changed, stopped):
    plan = {"candidates": 4, "seed": 0, "predictions": (2,), "drafts": ((2, ""),)}
    path, made = tmp_path / "toy.tape", tmp_path / ("toy.tape.0" if stopped else "toy.tape")
    first = record(ToySampler(PROMPTS[:1], 8), {"near": NEAR}, Plan(**plan), made)
    names = changed.pop("names", ("near",))
    sampler = ToySampler(PROMPTS[:1], 8)
    again = partial(record, sampler, dict.fromkeys(names, NEAR), Plan(**plan | changed), path)
    if changed or len(names) > 1:
        with pytest.raises(DiffscaleError, match=r"of another recording \(\w+ was .*choose another --output"):
            again()
    else:
        assert torch.equal(again().scores["near"], first.scores["near"])
    assert sampler.forwards == 0


class Way:
    """A further way of drafting, which is fewer steps again."""

    def steps(self, sampler):
        return 5

    def drafter(self, sampler, steps):
        return sampler.drafter(steps)


def test_by_default_there_are_looks_of_all_kinds_that_a_sampler_has(tmp_path):
    settings = TapeConfig(candidates=2)
    assert _plan(settings, ToySampler(PROMPTS, 8)) == Plan(2, 0, [1, 3, 5, 7], [(3, ""), (4, "")])
    several = ToySampler(PROMPTS, 8)
    several.ways = {"model": Way()}
    assert _plan(settings, several).drafts == [(3, ""), (4, ""), (5, "model")]
    tape = record(several, {"near": NEAR}, Plan(2, drafts=((5, "model"), (5, ""))), tmp_path / "toy.tape")
    assert torch.equal(tape.draft("near", 5, "model"), tape.draft("near", 5))
    tiny, scheduler, _ = families.WHOLE["sd_blended"]
    made = tiny(scheduler(), True)
    made.pipe.set_progress_bar_config(disable=True)
    sampler = sampler_of(made.pipe, TINY_PROMPTS, 6, made.args)  # which cannot be stopped on its way
    assert _plan(settings, sampler) == Plan(2, 0, [], [(3, "")])
    recorded = record(sampler, {"near": NearPoint()}, _plan(settings, sampler), tmp_path / "whole.tape")
    assert recorded.scores["near"].shape == (3, 2, 2)


def test_what_cannot_be_recorded_is_told_before_anything_is_computed(tmp_path):
    sampler = ToySampler(PROMPTS, 8)
    for plan, said in (
        (Plan(2, predictions=(8,)), "after 1 to 7 steps, not after 8"),
        (Plan(2, drafts=((3, "small"),)), "Unknown way of drafting 'small'"),
    ):
        with pytest.raises(DiffscaleError, match=said):
            record(sampler, {"near": NEAR}, plan, tmp_path / "toy.tape")
    assert sampler.forwards == 0 and not [*tmp_path.iterdir()]


@pytest.mark.filterwarnings("ignore:Out of memory")
def test_where_memory_runs_out_fewer_rows_go_at_once(tmp_path, tape):
    class Small(NearPoint):
        def __call__(self, images, prompts):
            if len(images) > 5:
                raise RuntimeError("out of memory")
            return super().__call__(images, prompts)

    small = record(ToySampler(PROMPTS, 8), {"pick_score": Small()}, PLAN, tmp_path / "toy.tape")
    torch.testing.assert_close(small.scores["pick_score"], tape.scores["pick_score"])


def test_the_first_verifier_of_a_recording_is_the_first_of_the_file(tape, tmp_path):
    tape.save(tmp_path / "t.tape")
    assert [*load_tape(tmp_path / "t.tape").scores] == ["pick_score", "clip"]


def test_searches_that_cannot_be_replayed_leave_the_others_as_they_are(tape):
    rows = compare(tape, ["random", "draft steps=5", "draft steps=2"], "clip", [48, 10**6], judge="pick_score")
    assert ["error" in row for row in rows] == [False, True, False, True, True, True]
    assert "not of 5: record them" in rows[1]["error"] and "24 candidates a prompt" in rows[3]["error"]
    found = replay(tape, partial(draft, steps=(2,)), "clip", 48, judges=["pick_score"])
    assert rows[2]["gain"] == gain(tape, found, "clip", 48) and rows[2]["nfe"] == found.nfe.mean()
    assert rows[2]["judge_gain"] == gain(tape, found, "clip", 48, "pick_score")
    json.dumps(rows, allow_nan=False)
    with pytest.raises(DiffscaleError, match="a budget of 8 to 192"):
        gain(tape, found, "clip", 7)


@pytest.mark.parametrize("verifier", ["clip", "pick_score", "weighted of=clip,pick_score"])
def test_the_best_of_the_whole_tape_is_worth_the_whole_tape(tape, verifier):
    for part in (tape, *map(tape.rows, ([0], [1], [2]))):  # however the means are rounded
        (row,) = compare(part, ["random"], verifier, [24 * 8], judge="clip")
        assert row["worth"] == pytest.approx({"mean": 1, "low": 1, "high": 1}) and row["finished"] == 24
        assert row["gain"]["mean"] == pytest.approx(0) and row["judge_gain"]["mean"] == pytest.approx(0)


def test_prompts_with_a_sample_that_has_no_score_are_left_out(tape):
    scores = {name: each.clone() for name, each in tape.scores.items()}
    scores["clip"][1, 5, -1] = -torch.inf
    broken = Tape(**{**vars(tape), "scores": scores})
    assert scored(broken, ["pick_score"]) is broken and scored(tape, ["clip"]) is tape
    for verifiers in (["clip"], ["pick_score", "clip"], ["ensemble of=clip,pick_score"]):
        assert list(scored(broken, verifiers).prompts) == [PROMPTS[0], PROMPTS[2]]
    scores["clip"][:] = -torch.inf
    with pytest.raises(DiffscaleError, match="has no score of clip: choose another verifier"):
        scored(broken, ["clip"])
