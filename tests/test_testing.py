"""The checks that plug-ins call find what they are for."""

import pytest
import torch

from diffscale import DiffscaleError, Evaluate, Task, run_searches, search_traits, testing
from diffscale.samplers.toy import ToySampler


def walk(env, scale=0.9):
    """A random walk that keeps the best. Price: as many samples as the budget pays."""
    state = env.prior(1)
    best, value = state, (yield Evaluate(state))
    while env.nfe_left >= env.steps:
        near = env.neighbours(best, 1, scale)
        score = yield Evaluate(near)
        if env.value(score).max() > env.value(value).max():
            best, value = near, score


def of_torch(env):
    """It draws noise of its own."""
    while env.nfe_left >= env.steps:
        yield Evaluate(env.start(torch.randn(2, 2, dtype=torch.float64)))


def of_no_noise(env):
    while env.nfe_left >= env.steps:
        yield Evaluate(env.start(torch.zeros(1, 2, dtype=torch.float64)))


def by_share(env):
    """As many rows as a tenth of the budget pays, so that a larger budget is another search."""
    n = max(1, env.nfe_left // (10 * env.steps))
    best = env.prior(n)
    yield from env.evaluate(best)
    while env.nfe_left >= n * env.steps:
        best = env.mutate(best, 0.5)
        yield from env.evaluate(best)


@search_traits(anytime=True)
def claims(env):
    yield from by_share(env)


class Walk:
    """A search as a class, with an argument that it needs."""

    def __init__(self, scale: float) -> None:
        self.scale = scale

    def __call__(self, env):
        return walk(env, self.scale)


def test_a_search_that_keeps_to_the_rules_passes():
    testing.check_search(walk)
    testing.check_search(f"{__name__}:Walk scale=0.8", 60)


def test_a_search_that_is_not_what_it_says_of_itself_is_told():
    testing.check_anytime(walk, 60)
    testing.check_search(by_share, 120)
    with pytest.raises(AssertionError, match="leave `anytime` out"):
        testing.check_search(claims, 120)


def of_doubles(env):
    a, b = env.prior(2), env.prior(2)
    w = env.uniform(2)[:, None]
    yield from env.evaluate(env.start(torch.lerp(a.x, b.x, w)))


def of_pictures(env):
    yield from env.evaluate(env.start(torch.zeros(2, 3, 64, 64)))


def test_a_search_whose_latents_suit_no_model_is_told():
    with pytest.raises(DiffscaleError, match=r"dtype.* in line .*test_testing.py"):
        testing.check_search(of_doubles)
    with pytest.raises(DiffscaleError, match=r"env\.start takes latents shaped"):
        testing.check_search(of_pictures)


def test_a_search_that_draws_by_itself_is_told():
    with pytest.raises(AssertionError, match="differs between batches"):
        testing.check_determinism(of_torch, 60)
    with pytest.raises(AssertionError, match="draw noise from the environment"):
        testing.check_determinism(of_no_noise, 30)


@pytest.mark.parametrize(
    ("search", "said"),
    [
        (lambda env: [1, 2], "is a generator function that yields requests, but .* gave list"),
        (lambda env: (each for each in ["x"]), "yields Run, .* yielded str"),
        (lambda env: (each for each in [env.prior(1)]), r"yielded State: write `yield from env\.evaluate\(state\)`"),
        (lambda env: (env.value(each) for each in [env.evaluate(env.prior(1))]), "write `yield from env.evaluate"),
        (lambda env: (each / 0 for each in [1]), r"failed \(ZeroDivisionError: .*, in line \d+ of .*test_testing.py\)"),
        (
            lambda env: (Evaluate(env.prior(100)) for _ in [0]),
            "asked for Evaluate of 100 rows, .* 60 of 60 were left",
        ),
        (lambda env: (each for each in []), r"for 'a point'.* ended by itself after 0 of 60 NFE"),
    ],
)
def test_what_is_no_search_is_told(search, said):
    with pytest.raises(DiffscaleError, match=said):
        run_searches([Task(search, 0, 1, 60)], ToySampler(), testing.NearPoint())


def bright(images, prompts):
    return images.mean((1, 2, 3))


def relative(images, prompts):
    return images.mean((1, 2, 3)) - images.mean()


def test_verifiers_are_checked():
    testing.check_verifier(bright)
    testing.check_verifier(f"{__name__}:bright")
    with pytest.raises(AssertionError, match="depends on the batch"):
        testing.check_verifier(relative)


def test_verifiers_that_load_a_network_or_read_some_prompts_only_are_checked_too():
    testing.check_verifier("ensemble of=clip,aesthetic", image_model="shapes-flux")
    prompts = ["a red circle", "a blue square", "two green stars"]
    testing.check_verifier("shapes-judge", prompts=prompts)


class Comparing:
    """Compares by brightness, and in some `way` as it should not."""

    def __init__(self, way=""):
        self.way = way

    def __call__(self, images, prompts):
        return bright(images, prompts).round()

    def compare(self, first, second, prompts):
        found = (bright(first, prompts) - bright(second, prompts)).sigmoid()
        if self.way == "batch":
            found = found * (1 - 0.1 * (len(first) > 1))
        if self.way == "order":
            found = 0.5 + found / 2
        return torch.full_like(found, torch.nan) if self.way == "nan" else found


def test_comparisons_are_probabilities_that_depend_on_the_two_pictures_alone():
    testing.check_verifier(Comparing())
    for way, said in (("batch", "depends on the batch"), ("order", "which comes first"), ("nan", "cannot be compared")):
        with pytest.raises(AssertionError, match=said):
            testing.check_verifier(Comparing(way))
