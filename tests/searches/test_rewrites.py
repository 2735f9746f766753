"""The bandit over wordings: known arms, and what searches, verifiers and results know of wordings."""

import copy
import math
import pickle

import pytest
import torch
from scipy import stats
from toys import task

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches.rewrites import promising, rewrites
from diffscale.testing import NearPoint, WordedToy, shuffled
from diffscale.types import Compares, Wording, concat, own_prompt

OWN = "a point"
WORDINGS = [Wording(f"{OWN}, {how}", OWN) for how in ("low", "wide", "high")]


class Arms(ToySampler):
    """The pictures of each row of the prompts have a law of their own: mean and spread of the first coordinate."""

    def __init__(self, laws, prompts=(OWN, *WORDINGS)):
        super().__init__(prompts, steps=4)
        self.laws = torch.tensor(laws, dtype=torch.float64)

    def run(self, state, to=None, record=None):
        self.forwards += len(state) * self.steps
        mean, spread = self.laws[state.prompt_index].unbind(1)
        x = torch.stack([mean + spread * state.x[:, 0], torch.zeros(len(state))], 1)
        return self._moved(state, x, self.steps)


class Right:
    """Prefers the right, and notes what it is called with."""

    name = "right"

    def __init__(self):
        self.told = []

    def __call__(self, images, prompts):
        self.told += prompts
        return images[:, 0, 0, 0].double()


def drawn(laws, candidates, seeds=12, **settings):
    """How many candidates each arm had, as shares, and the mean of the best."""
    sampler, counts, best = Arms(laws), torch.zeros(len(laws)), 0.0
    tasks = [
        Task(lambda env: rewrites(env, **settings), 0, noise.fold(5, seed), 4 * candidates) for seed in range(seeds)
    ]
    for result in run_searches(tasks, sampler, Right()):
        assert result.candidates == candidates == len(result.wordings) and result.ledger.nfe == 4 * candidates
        counts += torch.tensor([result.wordings.count(prompt) for prompt in sampler.prompts])
        best += result.best.score / seeds
    return counts / counts.sum(), best


@pytest.mark.parametrize(
    ("laws", "arm"),
    [
        ([[0.0, 0.5], [-1.0, 0.5], [-0.5, 0.5], [1.5, 0.5]], 3),  # the mean tells
        ([[1.0, 0.3], [-1.0, 0.3], [0.0, 0.3], [0.0, 0.3]], 0),  # the user's own is the best
        ([[0.5, 0.3], [0.5, 0.3], [0.2, 1.0], [0.5, 0.3]], 2),  # a wide spread finds more than a higher mean
    ],
)
def test_the_arm_that_finds_the_best_is_found(laws, arm):
    few, _ = drawn(laws, 16)
    shares, best = drawn(laws, 96)
    assert shares.argmax() == arm and shares[arm] > max(0.5, few[arm])
    _, alone = drawn([laws[0]] * 4, 96)
    assert best > alone + 0.02 if arm else best > alone - 0.02


def test_equal_arms_have_equal_shares_and_cost_nothing():
    shares, best = drawn([[0.0, 0.5]] * 4, 40, seeds=40)
    assert (shares - 0.25).abs().max() < 0.1
    _, alone = drawn([[0.0, 0.5]] * 4, 40, seeds=40, wordings=1)
    assert best == pytest.approx(alone, abs=1e-9)  # the same noises, whatever they are asked in


def test_the_index_is_the_expected_improvement_at_the_upper_end_of_mean_and_spread():
    """Against numerical integration of the normal law."""
    asked = torch.tensor([0, 0, 0, 1, 1, 2])
    values = torch.tensor([0.3, 0.1, 0.5, 0.2, 0.8, 0.4], dtype=torch.float64)
    pooled = (0.08 + 0.18 + 2 * values.var(correction=0)) / (6 - 3 + 2)
    rises = []
    for mean, squares, count in ((0.3, 0.08, 3), (0.5, 0.18, 2), (0.4, 0.0, 1)):
        spread = math.sqrt((squares + 2 * pooled) / (count - 1 + 2))
        law = stats.norm(
            mean + spread * math.sqrt(math.log(6) / count), spread * (1 + math.sqrt(math.log(6) / (2 * count)))
        )
        rises.append(law.expect(lambda x: x - 0.8, lb=0.8, ub=20))
    order = sorted(range(3), key=lambda arm: -rises[arm])
    assert promising(asked, values, 3, 1) == [order[0]]
    # More candidates of one round are shared out, and what was dropped is the worst that was seen.
    assert len(set(promising(asked, values, 3, 9))) > 1
    dropped = torch.where(asked == order[0], -torch.inf, values)
    assert promising(asked, dropped, 3, 1) == promising(asked, torch.where(dropped.isinf(), 0.2, values), 3, 1)


def test_every_arm_has_one_first_and_the_first_is_the_plain_sample():
    sampler = Arms([[0.0, 1.0]] * 4)
    (result,) = run_searches([task(rewrites, 28)], sampler, Right())
    (plain,) = run_searches([task("random", 4)], sampler, Right())
    assert result.wordings[:4] == list(sampler.prompts) and result.baseline.key == plain.best.key
    assert result.baseline.wording == OWN and not isinstance(result.baseline.wording, Wording)
    (few,) = run_searches([task(lambda env: rewrites(env, wordings=2), 28)], sampler, Right())
    assert set(few.wordings) == {OWN, WORDINGS[0]}
    (short,) = run_searches([task(rewrites, 9)], sampler, Right())
    assert short.wordings == [OWN, WORDINGS[0]]


class Comparing(Right):
    def __call__(self, images, prompts):
        return super().__call__(images, prompts).round()

    def compare(self, first, second, prompts):
        self.told += prompts
        return torch.full((len(prompts),), 0.5)


def everything(env):
    """All requests that a verifier takes part in, of rows in other wordings."""
    state = env.reword(env.prior(2), [1, 2])
    yield from env.draft(state, 2)
    predicted = yield from env.predict(state)
    yield from env.score(predicted)
    yield from env.predict_gradient(state)
    yield from env.gradient(state)
    yield from env.evaluate(env.mutate(env.branch(state, 2), 0.5))
    yield from env.score((yield from env.run(state)))


def test_verifiers_and_choosers_and_comparisons_are_told_the_users_own_prompt_alone():
    for verifier, chooser in ((Comparing(), None), (Right(), Comparing())):
        search = everything if chooser else rewrites
        tasks = [task(search, 400, row) for row in range(2)]
        results = run_searches(tasks, WordedToy(steps=4), verifier, choose=chooser)
        for each in filter(None, (verifier, chooser)):
            assert set(each.told) == {"a point", "another point"} and not any(isinstance(p, Wording) for p in each.told)
        assert isinstance(chooser or verifier, Compares) and any(result.compared for result in results)
        assert all(own_prompt(each) == result.prompt for result in results for each in result.wordings)
    assert {str(each) for each in results[0].wordings} == {"a point, said", "a point, told"}
    assert all(isinstance(result.best.wording, Wording) for result in results)


def test_rows_keep_their_wording_and_their_noise():
    seen = {}

    def search(env):
        first = env.prior(3)
        worded = env.reword(first, [2, 0, 1])
        assert torch.equal(worded.x, first.x) and torch.equal(worded.key, first.key)
        for name, state in (
            ("worded", worded),
            ("near", env.neighbours(worded, 2, 0.9)),
            ("branch", env.branch(worded, 2)),
            ("joined", concat([worded, worded[[2]]])),
            ("started", env.start(worded.x)),
        ):
            seen[name] = [str(sampler.prompts[row]) for row in state.prompt_index.tolist()]
        assert list(env.wordings) == ["a point", "a point, said", "a point, told"]
        predicted = env.reword((yield from env.predict(worded)), [0, 0, 0])
        assert predicted.x0 is None and predicted.model_output is None  # which were of the other wording
        for wrong in ([0, 1], [0, 1, 3], [0, 1, -1]):
            with pytest.raises(DiffscaleError, match="the number of a wording, 0 to 2, for each of the 3 rows"):
                env.reword(worded, wrong)
        yield from env.evaluate(worded)

    sampler = WordedToy(steps=4)
    run_searches([task(search, 40)], sampler, Right())
    own, said, told = "a point", "a point, said", "a point, told"
    assert seen["worded"] == [told, own, said] and seen["joined"] == [told, own, said, said]
    assert seen["near"] == seen["branch"] == [told, told, own, own, said, said] and seen["started"] == [own] * 3


def test_a_prompt_of_one_wording_is_refused_in_a_sentence():
    with pytest.raises(DiffscaleError, match=r"no other wordings of 'a point' .* \(--wordings FILE\)"):
        run_searches([task(rewrites, 100)], ToySampler(["a point", Wording("b", "another")]), NearPoint())


def test_a_wording_is_the_same_wherever_it_is_sent():
    wording = Wording("seen from afar, a point", OWN)
    for again in (pickle.loads(pickle.dumps(wording)), copy.deepcopy(wording)):
        assert again == wording and own_prompt(again) == OWN and isinstance(again, Wording)
    assert own_prompt(OWN) == OWN
    wanted, found = (
        run_searches([task(rewrites, 200)], WordedToy(steps=6), NearPoint(), 6, executor=executor)[0]
        for executor in (None, shuffled(3))
    )
    assert wanted.wordings == found.wordings
