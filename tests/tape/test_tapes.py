"""A search on a tape finds what it finds on the model, and best-of-k curves are means over all subsets."""

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches.draft import draft
from diffscale.searches.halving import halving
from diffscale.searches.random import random
from diffscale.searches.zero_order import zero_order
from diffscale.tape.curves import best_of, candidates_worth
from diffscale.tape.record import Plan, record
from diffscale.tape.replay import gain, multiplier, replay
from diffscale.tape.sampler import TapeSampler
from diffscale.tape.tape import load_tape
from diffscale.testing import NearPoint

PROMPTS = ("a point", "another point", "a third point")
NEAR, FAR = NearPoint(), NearPoint((-4.0, 0.0))
PLAN = Plan(30, seed=3, predictions=(2, 4, 6), drafts=((2, ""), (3, "")))


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    path = tmp_path_factory.mktemp("tape") / "toy.tape"
    recorded = record(ToySampler(PROMPTS, 8), {"near": NEAR, "far": FAR}, PLAN, path, batch_size=5)
    loaded = load_tape(path)
    assert all(torch.equal(loaded.scores[name], recorded.scores[name].float()) for name in ("near", "far"))
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    return loaded


@pytest.mark.parametrize("search", [random, draft, partial(draft, steps=(2, 3), at=(4,)), partial(halving, at=(2, 6))])
@pytest.mark.parametrize("budget", [30, 60])
def test_a_search_on_a_tape_finds_what_it_finds_on_the_model(tape, search, budget):
    replayed = replay(tape, search, "near", budget, judges=["far"])
    sampler = ToySampler(PROMPTS, 8)
    tasks = [Task(search, row, key, budget) for row, key in enumerate(TapeSampler(tape).keys)]
    for row, result in enumerate(run_searches(tasks, sampler, NEAR)):
        assert replayed.score[row] == pytest.approx(result.best.score, abs=1e-5)
        assert replayed.nfe[row] == result.ledger.nfe and replayed.finished[row] == result.candidates
        judged = float(FAR(sampler.decode(result.best.latents[None]), [PROMPTS[row]]))
        assert replayed.judged["far"][row] == pytest.approx(judged, abs=1e-5)


def test_in_other_draws_the_candidates_come_in_another_order(tape):
    one, many = (replay(tape, partial(random, n=1), "near", 8, draws=draws) for draws in (1, 30))
    assert np.array_equal(one.score, tape.finals("near")[:, 0].numpy())
    # The mean over draws of a first candidate is about that of all.
    assert np.allclose(many.score, tape.finals("near").mean(1).numpy(), atol=3.0 * float(tape.finals("near").std()) / 5)
    assert not np.array_equal(one.score, many.score)


def test_what_a_tape_does_not_hold_is_told(tape):
    for search, budget, said in (
        (random, 8 * 31, "30 candidates a prompt"),
        (partial(draft, steps=(5,)), 60, "drafts of 2, 3 steps, not of 5"),
        (partial(halving, at=(3,)), 60, "the tape has none"),
        (zero_order, 60, "A tape holds whole samples of given noises"),
    ):
        with pytest.raises(DiffscaleError, match=said):
            replay(tape, search, "near", budget)
    with pytest.raises(DiffscaleError, match="Unknown verifier of the tape 'nobody'"):
        replay(tape, random, "nobody", 60)


def test_a_recording_that_was_stopped_goes_on(tmp_path):
    class Stopped(NearPoint):
        calls = 0

        def __call__(self, images, prompts):
            self.calls += 1
            if self.calls == 9:
                raise KeyboardInterrupt
            return super().__call__(images, prompts)

    path, plan = tmp_path / "toy.tape", Plan(4, predictions=(2,), drafts=((2, ""),))
    with pytest.raises(KeyboardInterrupt):
        record(ToySampler(PROMPTS, 8), {"near": Stopped()}, plan, path, batch_size=4)
    sampler = ToySampler(PROMPTS, 8)
    assert len([*tmp_path.iterdir()]) == 2
    went_on = record(sampler, {"near": NEAR}, plan, path, batch_size=4)
    whole = record(ToySampler(PROMPTS, 8), {"near": NEAR}, plan, tmp_path / "whole.tape", batch_size=4)
    assert sampler.forwards == 4 * 8 and torch.equal(went_on.scores["near"], whole.scores["near"])
    with pytest.raises(DiffscaleError, match="is no tape"):
        (tmp_path / "torn.tape").write_bytes(path.read_bytes()[:99])
        load_tape(tmp_path / "torn.tape")


def test_parts_of_another_recording_are_refused(tmp_path):
    path = tmp_path / "toy.tape"
    record(ToySampler(PROMPTS[:1], 8), {"near": NEAR}, Plan(4), tmp_path / "toy.tape.0", batch_size=4)
    with pytest.raises(DiffscaleError, match=r"of another recording .*remove it, or choose another --output"):
        record(ToySampler(PROMPTS, 8), {"near": NEAR}, Plan(4), path, batch_size=4)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=7), st.data())
def test_best_of_k_is_the_mean_over_all_subsets(scores, data):
    k = data.draw(st.integers(1, len(scores)))
    worth = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=len(scores), max_size=len(scores))))
    pool = np.array(scores, float)
    subsets = [list(subset) for subset in combinations(range(len(pool)), k)]
    assert best_of(pool, k) == pytest.approx(np.mean([pool[s].max() for s in subsets]))
    # Of equal scores each is chosen alike.
    chosen = [np.mean([worth[i] for i in s if pool[i] == pool[s].max()]) for s in subsets]
    if len(set(scores)) == len(scores):
        assert best_of(pool, k, worth) == pytest.approx(np.mean(chosen), abs=1e-9)


def test_a_multiplier_is_how_much_more_random_search_needs(tape):
    found = replay(tape, random, "near", 4 * 8, draws=200)
    times = multiplier(tape, found, "near", resamples=50)
    assert times["low"] <= times["mean"] <= times["high"] and times["mean"] == pytest.approx(1, abs=0.15)
    assert gain(tape, found, "near", 4 * 8)["mean"] == pytest.approx(0, abs=0.05 * float(tape.finals("near").std()))
    curve = np.array([1.0, 2.0, 3.0])
    assert candidates_worth(curve, 2.0) == pytest.approx(2) and candidates_worth(curve, 9.0) == float("inf")
