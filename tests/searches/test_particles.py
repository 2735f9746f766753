"""What particle methods promise: laws, constants and counts, against plain sampling and by hand."""

import math
from importlib import import_module

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from toys import Tilt, make, plain, same, task

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches import SEARCHES
from diffscale.searches.funnel import narrowing
from diffscale.searches.particles import steer
from diffscale.searches.resampling import RESAMPLERS, ssp
from diffscale.testing import NearPoint as Near

STEPS = 10


@pytest.fixture
def clouds(monkeypatch):
    """Finished clouds of so many independent runs of a search on the toy."""

    def run(name, runs, **settings):
        found = []

        def recorded(*args, **more):
            found.append((yield from steer(*args, **more)))

        monkeypatch.setattr(import_module(f"diffscale.searches.{name}"), "steer", recorded)
        tasks = [Task(lambda env: SEARCHES[name](env, **settings), 0, noise.fold(7, i), 10_000) for i in range(runs)]
        run_searches(tasks, ToySampler(steps=STEPS), Tilt(), batch_size=4096)
        return found

    return run


# The settings, and how often its strength a method has in the end.
UNBIASED = [
    ("bfs", {}, 2),
    ("das", {}, 1),
    ("vasr", {}, 1),
    ("vasr", {"select": "max", "interval": 2}, 1),
    ("funnel", {}, 1),
    ("funnel", {"narrow": 0.01, "temperature": "constant", "ess": 1.0, "resampler": "ssp"}, 1),
]


@pytest.fixture(scope="module")
def samples():
    """Plain samples of the discretised sampler: points, and their rewards."""
    sampler, state = plain(20_000, steps=STEPS)
    x = sampler.run(state).x
    return x, Tilt()(sampler.decode(x), [])


@pytest.mark.parametrize(("name", "settings", "times"), UNBIASED)
def test_the_normalising_constant_is_unbiased(samples, clouds, name, settings, times):
    """Its mean is that of exp(strength r) over plain samples, whatever was resampled on the way."""
    truth = (2.0 * samples[1]).exp()
    found = clouds(name, 120, k=4, strength=2.0 / times, units="raw", **settings)
    z = torch.tensor([math.exp(cloud.log_z) for cloud in found])
    error = math.hypot(float(z.std()) / len(z) ** 0.5, float(truth.std()) / len(truth) ** 0.5)
    assert abs(float(z.mean() - truth.mean())) < 4 * error < 0.2 * float(truth.mean())


@pytest.mark.parametrize(
    ("name", "settings"),
    [*((name, {"strength": 0.0, **settings}) for name, settings, _ in UNBIASED), ("beam", {"m": 1})],
)
def test_without_strength_the_law_is_that_of_plain_sampling(samples, clouds, name, settings):
    found = torch.cat([cloud.state.x for cloud in clouds(name, 10, k=150, **settings)])
    # Particles of equal weights are all kept, or so many of them: nothing is there twice.
    assert len(found.unique(dim=0)) == len(found) and (len(found) == 1500 or name == "funnel")
    for axis in (0, 1):
        assert stats.ks_2samp(found[:, axis].numpy(), samples[0][:, axis].numpy()).pvalue > 1e-3


def test_tempered_weights_are_those_of_the_target_now(clouds):
    """Never resampled, the product of all potentials is exp(strength r) of the finished sample."""
    (cloud,) = clouds("das", 1, k=6, strength=3.0, units="raw", ess=0.0)
    assert torch.allclose(cloud.log_weight, 3.0 * cloud.last)


def test_vasr_is_a_setting_of_fk():
    def result(search):
        return run_searches([task(search)], ToySampler(steps=6), Near())[0]

    fk = {"k": 5, "potential": "difference", "interval": 1, "ess": 1.0}
    assert same(result(make("vasr")), result(lambda env: SEARCHES["fk"](env, **fk)))


def test_breadth_first_search_weighs_the_best_score_so_far_ever_more(monkeypatch):
    seen, scores = [], []

    class Watched(Tilt):
        def __call__(self, images, prompts):
            scores.append(super().__call__(images, prompts))
            return scores[-1]

    def recorded(env, log_weights, k):
        seen.append((log_weights.flatten(), ssp(env, log_weights, k)))
        return seen[-1][1]

    monkeypatch.setitem(RESAMPLERS, "ssp", recorded)
    search = lambda env: SEARCHES["bfs"](env, k=12, strength=3.0, units="raw", interval=2)  # noqa: E731
    run_searches([Task(search, 0, 5, 10_000)], ToySampler(steps=STEPS), Watched(), batch_size=100)
    best = torch.full((12,), -math.inf, dtype=torch.float64)
    assert len(seen) == 4
    for step, (log_weights, chosen), now in zip((2, 4, 6, 8), seen, scores, strict=False):
        best = torch.maximum(best, now)
        assert torch.allclose(log_weights, 2 * 3.0 * step / STEPS * best)
        children = torch.bincount(chosen, minlength=12)
        assert ((children - 12 * log_weights.softmax(0)).abs() < 1).all()
        best = best[chosen]


def test_beams_are_the_best_of_all_children_whoever_their_parents_are(monkeypatch):
    seen = []
    beam = import_module("diffscale.searches.beam")

    def recorded(env, log_weights, k):
        seen.append((log_weights, top(env, log_weights, k)))
        return seen[-1][1]

    top = beam.top
    monkeypatch.setattr(beam, "top", recorded)
    run_searches([task(lambda env: SEARCHES["beam"](env, k=3, m=4, interval=3))], ToySampler(steps=STEPS), Tilt())
    assert [values.shape for values, _ in seen] == [(3, 4)] * 3
    for values, kept in seen:
        assert set(kept.tolist()) == set(values.flatten().argsort(descending=True)[:3].tolist())
    assert any(len(set((kept // 4).tolist())) < 3 for _, kept in seen)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=7), st.integers(0, 3000), st.floats(0.01, 1.0)
)  # fmt: skip
def test_a_funnel_narrows_and_spends_what_there_is(lengths, extra, narrow):
    nfe = sum(lengths) + extra
    sizes = narrowing(lengths, nfe, narrow)
    spent = sum(size * length for size, length in zip(sizes, lengths, strict=True))
    assert nfe - lengths[0] < spent <= nfe and min(sizes) >= 1
    assert sizes == sorted(sizes, reverse=True)
    if len(sizes) > 1 and sizes[0] > 50:
        assert sizes[-1] / sizes[0] == pytest.approx(narrow, abs=0.1)


def test_a_funnel_has_many_particles_early_few_late_and_the_same_nfe():
    rows = {}

    class Watched(ToySampler):
        def predict(self, state):
            rows[state.step] = rows.get(state.step, 0) + len(state)
            return super().predict(state)

    (result,) = run_searches([task("funnel")], Watched(steps=STEPS), Near())
    assert [rows[step] for step in range(STEPS)] == [9, 9, 9, 6, 6, 5, 5, 4, 4, 3]
    assert result.ledger.nfe == 6 * STEPS and result.candidates == 3
