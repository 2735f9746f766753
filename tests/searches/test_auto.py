"""The default search: what it expects, what its pilot may cost, and that it does what it said wherever it goes on."""

import json

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from toys import same, task

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.samplers.toy import ToySampler
from diffscale.searches import auto as auto_file
from diffscale.searches import choose_search
from diffscale.searches.agreements import TYPICAL
from diffscale.searches.looks import Agreement, Look
from diffscale.searches.policies import _expected, _simulated, policies
from diffscale.testing import NearPoint as Near
from diffscale.types import Decide, Draft, Evaluate

auto = auto_file.auto


def best_of_normals(n):
    return integrate.quad(lambda x: x * n * stats.norm.pdf(x) * stats.norm.cdf(x) ** (n - 1), -8, 8)[0]


@pytest.mark.parametrize("n", [1, 4, 30, 3000])
def test_random_search_is_expected_to_find_the_best_of_as_many_normals(n):
    assert _expected(TYPICAL, (), (n,)) == pytest.approx(best_of_normals(n), abs=0.12)


def test_a_look_that_agrees_so_far_is_worth_so_much():
    """With one look of correlation r the best of n by the look is at r times the best of n normals."""
    for r in (0.3, 0.8):
        alone = Agreement((Look(5),), (0.25,), ((1.0, r), (r, 1.0)))
        assert _expected(alone, (0,), (20, 1)) == pytest.approx(r * best_of_normals(20), abs=0.12)


def test_what_is_expected_is_what_rounds_find_on_the_simulated_scores():
    """Prompt by prompt, with a sort of the candidates in each round, as `rounds.halve` has it."""
    scores = _simulated(TYPICAL).transpose(1, 2, 0)
    for numbers, sizes in (((5,), (30, 4)), ((5, 2), (40, 9, 1)), ((1, 3), (300, 60, 60)), ((4,), (2, 1))):
        best = []
        for prompt in scores:
            alive = prompt[: sizes[0]]
            for number, kept in enumerate(sizes[1:], 1):
                worth = alive[:, numbers[:number]] @ TYPICAL.weights(numbers[:number]).numpy()
                alive = alive[np.argsort(-worth)[:kept]]
            best.append(alive[:, -1].max())
        assert _expected(TYPICAL, numbers, sizes) == pytest.approx(np.mean(best), abs=1e-12)


def test_weights_are_those_of_a_regression():
    rng = np.random.default_rng(0)
    root = rng.standard_normal((3, 3))
    draws = rng.standard_normal((200_000, 3)) @ root.T
    draws = (draws - draws.mean(0)) / draws.std(0)
    matrix = np.corrcoef(draws.T)
    agreement = Agreement((Look(3), Look(5)), (0.15, 0.25), tuple(map(tuple, matrix.tolist())))
    wanted = np.linalg.lstsq(draws[:, :2], draws[:, 2], rcond=None)[0]
    assert np.allclose(agreement.weights([0, 1]).numpy(), wanted, atol=0.05 * abs(wanted).max() + 0.02)


def test_moved_agreements_are_correlations_still():
    for on_the_way, shift in ((True, -0.9), (True, 0.6), (False, -0.5), (False, 0.3)):
        moved, look = TYPICAL.moved(on_the_way, shift), Look(9, on_the_way=on_the_way)
        matrix = np.array(moved.matrix)
        assert np.linalg.eigvalsh(matrix).min() > -1e-6 and np.allclose(np.diag(matrix), 1)
        assert (moved.with_the_end(look, 0.45) > TYPICAL.with_the_end(look, 0.45)) == (shift > 0)
    assert TYPICAL.without_drafts().with_the_end(Look(5), 0.25) == 0


class Watched:
    """A search, what it asked for before it decided, and what it had spent then."""

    def __init__(self, search):
        self.search, self.before, self.spent = search, [], None

    def __call__(self, env):
        budget, inner, answer = env.nfe_left, self.search(env), None
        while True:
            try:
                request = inner.send(answer)
            except StopIteration:
                return
            if isinstance(request, Decide):
                self.spent = budget - env.nfe_left
            elif self.spent is None:
                self.before.append(type(request))
            answer = yield request


@pytest.mark.parametrize("budget", [20, 159, 160, 400, 3000])
def test_the_pilot_costs_a_tenth_at_most(budget):
    watched = Watched(auto)
    (result,) = run_searches([task(watched, budget)], ToySampler(steps=20), Near())
    assert watched.spent <= budget / 10
    assert (Draft in watched.before) == (budget >= 160) and (Evaluate in watched.before) == (budget >= 960)
    assert result.ledger.nfe > 0.85 * (budget // 20 * 20)
    (decision,) = result.decisions
    assert decision.startswith("Random search: a tenth" if budget < 160 else "Chosen: ")


def test_where_no_pilot_can_be_paid_it_is_random_search():
    same_budget = [run_searches([task(search, 150)], ToySampler(steps=20), Near())[0] for search in (auto, "random")]
    first, random = same_budget
    assert torch.equal(first.pool[: len(random.pool)], random.pool[: len(first.pool)])


class Plain:
    """A sampler of somebody's own, which has what the protocol asks for and no more."""

    def __init__(self, *args, **kwargs):
        own = ToySampler(*args, **kwargs)
        names = "prompts levels steps flops_per_forward prior predict predicted step run solve renoise decode gradient"
        for name in names.split():
            setattr(self, name, getattr(own, name))
        self._own = own

    @property
    def forwards(self):
        return self._own.forwards


@pytest.mark.parametrize("sampler", [Plain(steps=20), ToySampler(steps=2), ToySampler(steps=1)])
def test_what_cannot_be_drafted_is_searched_at_random_and_that_is_told(sampler):
    (found,) = run_searches([task(auto, 400)], sampler, Near())
    assert found.candidates == 400 // sampler.steps
    told = f"Random search: this model of {sampler.steps} steps cannot be drafted in {max(2, sampler.steps // 5)}."
    assert found.decisions == [told]


class Misleading(ToySampler):
    """Its drafts are of other noises."""

    def drafter(self, steps, via=""):
        drafter = super().drafter(steps, via)
        if "decode" not in vars(drafter):  # it is the same each time
            own = drafter.decode
            drafter.decode = lambda latents: own(latents).flip(0)
        return drafter


def test_drafts_that_tell_nothing_are_not_used_where_the_pilot_can_tell():
    def chosen(sampler):
        return run_searches([task(auto, 40_000)], sampler, Near())[0].decisions[0]

    assert "drafts" in chosen(ToySampler(steps=20)).split(", by")[0]
    assert "drafts" not in chosen(Misleading(steps=20)).split(", by")[0]


def test_a_run_that_goes_on_does_what_it_had_decided(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.sqlite", {})
    (whole,) = run_searches([task(auto, 400)], ToySampler(steps=20), Near(), journal=journal)
    journal.close()
    own = policies
    # Elsewhere rounding may say something else: there all others are better.
    monkeypatch.setattr(auto_file, "policies", lambda *args: [type(p)(p.looks, p.sizes, -p.gain) for p in own(*args)])
    (other,) = run_searches([task(auto, 400)], ToySampler(steps=20), Near())
    journal = Journal(tmp_path / "journal.sqlite", {})
    sampler = ToySampler(steps=20)
    (again,) = run_searches([task(auto, 400)], sampler, Near(), journal=journal)
    assert again.best.key == whole.best.key and torch.equal(again.pool, whole.pool) and sampler.forwards == 0
    assert not same(other, whole)
    # What it tells is what it did, and not what it would decide here.
    assert again.decisions == whole.decisions != other.decisions


def profile(tmp_path, **seconds):
    path = tmp_path / "profile.json"
    looks = [{"steps": 5}, {"steps": 11, "on_the_way": True}]
    matrix = [[1.0, 0.6, 0.7], [0.6, 1.0, 0.9], [0.7, 0.9, 1.0]]
    told = {"format": "diffscale profile 1", "steps": 20, "looks": looks, "matrix": matrix, "seconds": seconds}
    path.write_text(json.dumps(told))
    return f"auto profile={path}"


def test_with_a_profile_there_is_no_pilot_and_no_choice_that_takes_longer(tmp_path):
    def chosen(budget=400, **seconds):
        watched = Watched(choose_search(profile(tmp_path, **seconds)).make())
        (result,) = run_searches([task(watched, budget)], ToySampler(steps=20), Near())
        assert not watched.before
        return result.decisions[0]

    assert "drafts" in chosen(step=1.0, decode=0.0, verify=0.0)
    assert "drafts" in chosen(100, step=1.0, decode=0.1, verify=0.1)
    # Where a picture costs as much as a hundred steps, many drafts take too long.
    assert chosen(step=0.01, decode=0.5, verify=0.5).startswith("Chosen: random search of 20 samples")
    with pytest.raises(DiffscaleError, match="nowhere"):
        run_searches([task(choose_search("auto profile=nowhere").make(), 400)], ToySampler(steps=20), Near())


def test_ways_of_drafting_that_it_does_not_try_are_told():
    class Cached(ToySampler):
        drafts = ("", "cache")

    (found,) = run_searches([task(auto, 400)], Cached(steps=20), Near())
    told = "Drafts by fewer steps alone were tried: search by draft via=cache for others."
    assert found.decisions[0].endswith(told)
    (plain,) = run_searches([task(auto, 400)], ToySampler(steps=20), Near())
    assert f"{plain.decisions[0]} {told}" == found.decisions[0]
