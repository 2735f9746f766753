"""What a search sees: mutations at any scale of the prior, and requests of a known type."""

import re
from dataclasses import replace

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
    x = torch.randn(rows, size, generator=torch.Generator().manual_seed(seed)).double() * scale
    parents = replace(env.prior(rows), x=x)
    children = env.mutate(parents, cosine)
    assert children.step == 0 and len(children) == rows and children.x.dtype == parents.x.dtype
    assert not set(children.key.tolist()) & set(parents.key.tolist())
    torch.testing.assert_close(children.x.norm(dim=1), parents.x.norm(dim=1), rtol=1e-9, atol=0)
    similarity = torch.nn.functional.cosine_similarity(children.x, parents.x, dim=1)
    torch.testing.assert_close(similarity, torch.full_like(similarity, cosine), rtol=0, atol=1e-6)


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
    with pytest.raises(DiffscaleError, match="cosine between noises is from -1 to 1, not"):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_latents_of_a_searchs_own_become_what_the_model_takes(dtype):
    env = SearchEnvironment(ToySampler(steps=6, dtype=dtype), 0, 1, Ledger(100), 64)
    a, b = env.prior(3), env.prior(3)
    mixed = env.start(env.uniform(3)[:, None].sqrt() * a.x.double() + b.x.double())
    assert mixed.x.dtype == dtype and len(mixed) == len(mixed.key) == 3
    assert torch.equal(env.start(a.x).x, a.x)


@pytest.mark.parametrize("wrong", [torch.randn(1, 3, 64, 64), torch.randn(2), torch.randn(2, 3), None])
def test_latents_of_another_shape_are_told(wrong):
    with pytest.raises(
        DiffscaleError, match=r"env.start takes latents shaped \[rows, 2\], as env.prior gives them, not"
    ):
        environment().start(wrong)


def scores_latents(env):
    yield from env.evaluate(env.prior(1).x)


def runs_too_far(env):
    yield from env.run(env.prior(1), to=1000)


def scores_too_early(env):
    yield from env.score(env.prior(1))


def steps_too_early(env):
    yield from env.predict(env.step(env.prior(1)))


def solves_in_no_step(env):
    yield from env.solve(env.prior(1), 0.5, 0)


def solves_upwards(env):
    yield from env.solve(env.prior(1), 2.0, 1)


def asks_for_nothing(env):
    yield from env.evaluate(env.prior(0))


def stretches(env):
    yield from env.evaluate(env.mutate(env.prior(1), 2.0))


def raises_in_torch(env):
    yield from env.evaluate(env.prior(1))
    torch.nn.functional.conv2d(torch.zeros(1), torch.zeros(1))


def raises_in_the_library(env):
    yield from env.evaluate(env.mutate(3, 0.5))


MISTAKES = {
    forgets_to_wait: "did not wait for scores: write `yield from",
    yields_the_helper: "yielded generator: write `yield from`",
    scores_latents: "Evaluate takes a state, such as env.prior gives, not a Tensor",
    runs_too_far: "A run from step 0 cannot end at step 1000, of 4 in all",
    scores_too_early: r"no picture to score: write `state = yield from env.predict\(state\)` first",
    steps_too_early: r"needs a prediction: write `state = yield from env.predict\(state\)` first",
    solves_in_no_step: "1 or more, not steps=0",
    solves_upwards: "down from level 1, to 0 at the lowest, not to 2",
    asks_for_nothing: "Evaluate of no rows",
    stretches: "from -1 to 1, not 2.0",
    raises_in_torch: r"raises_in_torch for 'a point' failed \(RuntimeError",
    raises_in_the_library: r"raises_in_the_library for 'a point' failed \(AttributeError",
}


@pytest.mark.parametrize("search", MISTAKES)
def test_a_mistake_is_told_with_the_line_that_it_is_in(search):
    first = search.__code__.co_firstlineno
    with pytest.raises(DiffscaleError, match=MISTAKES[search]) as told:
        run_searches([Task(search, 0, 0, 100)], ToySampler(steps=4), Bright())
    line = int(re.search(rf"in line (\d+) of {re.escape(__file__)}\)", str(told.value))[1])
    assert first < line <= max(line for *_, line in search.__code__.co_lines() if line) and "\n" not in str(told.value)


@pytest.mark.parametrize("search", [forgets_to_wait, yields_the_helper])
def test_a_helper_that_is_not_waited_for_is_told(search):
    with pytest.raises(DiffscaleError, match="`yield from"):
        run_searches([Task(search, 0, 0, 100)], ToySampler(steps=4), Bright())
