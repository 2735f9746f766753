"""What a search sees: mutations at any scale of the prior, and requests of a known type."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.environment import SearchEnvironment
from diffscale.engine.ledger import Ledger
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.types import Evaluate, Gradient, Predict, Run, Score, Solve


def environment(process="ve", key=1):
    return SearchEnvironment(ToySampler(steps=6, process=process), 0, key, Ledger(100), 64)


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 200.0), st.floats(-1.0, 1.0), st.integers(1, 5), st.integers(2, 40), st.integers(0, 2**31))
def test_a_mutation_has_the_cosine_and_the_norm_of_its_parent_at_any_scale(scale, cosine, rows, size, seed):
    env = environment(key=seed)
    parents = env.start(torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).double() * scale)
    children = env.mutate(parents, cosine)
    assert children.step == 0 and len(children) == rows and children.x.dtype == parents.x.dtype
    assert not set(children.key.tolist()) & set(parents.key.tolist())
    torch.testing.assert_close(children.x.norm(dim=1), parents.x.norm(dim=1), rtol=1e-9, atol=0)
    similarity = torch.nn.functional.cosine_similarity(children.x, parents.x, dim=1)
    torch.testing.assert_close(similarity, torch.full_like(similarity, cosine), rtol=0, atol=1e-6)
    assert torch.equal(environment(key=seed).start(parents.x).x, parents.x)


@pytest.mark.parametrize(("process", "scale"), [("flow", 1.0), ("vp", 1.0), ("ve", 80.0)])
def test_mutations_of_the_prior_are_draws_of_the_prior_however_often(process, scale):
    env = environment(process)
    population = env.prior(4000)
    for _ in range(5):
        before, population = population, env.mutate(population, 0.7)
    for axis in (0, 1):
        assert stats.kstest(population.x[:, axis].numpy(), stats.norm(0, scale).cdf).pvalue > 1e-3
    assert stats.pearsonr(before.x[:, 0], population.x[:, 0])[0] == pytest.approx(0.7, abs=0.05)
    # What `noise` draws has no such scale.
    assert env.noise(population).std() == pytest.approx(1.0, abs=0.05)


def test_a_mutation_is_the_one_neighbour():
    a, b = environment(), environment()
    one, other = a.mutate(a.prior(3), 0.9), b.neighbours(b.prior(3), 1, 0.9)
    assert torch.equal(one.x, other.x) and torch.equal(one.key, other.key)


def test_what_is_no_noise_is_not_mutated():
    env = environment()
    later = env.sampler.run(env.prior(1), 2)
    with pytest.raises(DiffscaleError, match=r"noises at step 0.*these are at step 2"):
        env.mutate(later, 0.9)
    with pytest.raises(DiffscaleError, match=r"a cosine in \[-1, 1\]"):
        env.mutate(env.prior(1), 1.5)


@pytest.mark.parametrize(
    ("helper", "request_"),
    [
        (lambda env, s: env.evaluate(s), lambda s: Evaluate(s)),
        (lambda env, s: env.score(s), lambda s: Score(s)),
        (lambda env, s: env.run(s, 3), lambda s: Run(s, 3)),
        (lambda env, s: env.run(s), lambda s: Run(s)),
        (lambda env, s: env.solve(s, 0.2, 4), lambda s: Solve(s, 0.2, 4)),
        (lambda env, s: env.predict(s), lambda s: Predict(s)),
        (lambda env, s: env.gradient(s), lambda s: Gradient(s)),
    ],
)
def test_a_helper_yields_its_request_and_returns_the_answer(helper, request_):
    env = environment()
    state = env.prior(2)
    asked = helper(env, state)
    assert next(asked) == request_(state)
    with pytest.raises(StopIteration) as end:
        asked.send("the answer")
    assert end.value.value == "the answer"


class Bright:
    name = "bright"

    def __call__(self, images, prompts):
        return images[:, 0].mean((1, 2))


def forgets_to_wait(env):
    env.value(env.evaluate(env.prior(1)))
    yield Evaluate(env.prior(1))


def yields_the_helper(env):
    yield env.evaluate(env.prior(1))


@pytest.mark.parametrize("search", [forgets_to_wait, yields_the_helper])
def test_a_helper_that_is_not_waited_for_is_told(search):
    with pytest.raises(DiffscaleError, match="`yield from"):
        run_searches([Task(search, 0, 0, 100)], ToySampler(steps=4), Bright())
