"""What single algorithms promise, against closed forms and plain sampling."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import stats
from toys import GRADIENTS, Tilt, plain, task

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.scoring import DroppedCandidate
from diffscale.engine.task import Task
from diffscale.registry.arguments import parse
from diffscale.samplers.formulas import marginal
from diffscale.samplers.toy import ToySampler
from diffscale.searches import SEARCHES
from diffscale.searches.particles import steer
from diffscale.searches.resampling import RESAMPLERS, effective_sample_size
from diffscale.testing import NearPoint as Near
from diffscale.types import Evaluate, Gradient, Predict, Run, Score, Solve


def test_neighbours_have_the_cosine_and_the_norm():
    x = noise.normal(torch.arange(6), (3, 5, 7)).double()
    for cosine in (0.95, 0.3, -0.5):
        near = noise.neighbours(x, torch.arange(100, 106), cosine)
        a, b = x.flatten(1), near.flatten(1)
        assert torch.allclose(a.norm(dim=1), b.norm(dim=1), atol=1e-12)
        assert torch.allclose((a * b).sum(1) / a.norm(dim=1) ** 2, torch.tensor(cosine).double(), atol=1e-7)
    # The direction is uniform: around a fixed noise, each of the other coordinates has mean 0 and equal variance.
    many = noise.neighbours(x[:1].expand(4000, -1, -1, -1), torch.arange(4000), 0.5).flatten(1)
    off = many - 0.5 * x[:1].flatten(1)
    assert off.mean(0).abs().max() < 5 * off.std() / 4000**0.5


def noised_data(sampler, process, level, n, seed):
    """Draws of the mixture, noised to `level` in closed form."""
    generator = torch.Generator().manual_seed(seed)
    pick = torch.randint(8, (n,), generator=generator)
    x0 = sampler.means[pick] + 0.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    alpha, sigma = marginal(process, level)
    return alpha * x0 + sigma * torch.randn(n, 2, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("process", ["flow", "vp"])
@pytest.mark.parametrize(("start", "to"), [(0.3, 0.8), (0.0, 0.25), (0.437, 0.61)])
def test_renoising_keeps_the_marginal_on_and_off_the_grid(process, start, to):
    n = 4000
    sampler, state = plain(n, process)
    held = sampler._placed(state, noised_data(sampler, process, start, n, 1), start)
    assert (held.level is None) == (start != 0.437)
    moved = sampler.renoise(held, to, noise.normal(torch.arange(n) + 10**6, (2,)))
    wanted = noised_data(sampler, process, to, n, 2)
    for axis in (0, 1):
        assert stats.ks_2samp(moved.x[:, axis].numpy(), wanted[:, axis].numpy()).pvalue > 1e-3
    assert moved.x0 is None and not moved.solver


@pytest.mark.parametrize("process", ["flow", "vp"])
@pytest.mark.parametrize("eta", [0.5, 1.0])
def test_stochastic_steps_of_an_ode_model_keep_the_marginals(process, eta):
    n = 4000
    sampler, state = plain(n, process, eta, steps=100)
    for step in (30, 60, 100):
        state = sampler.run(state, step)
        wanted = noised_data(sampler, process, 1 - step / 100, n, step)
        for axis in (0, 1):
            assert stats.ks_2samp(state.x[:, axis].numpy(), wanted[:, axis].numpy()).pvalue > 1e-3
    ode, same = plain(n, process, 0.0, steps=100)
    assert not torch.allclose(ode.run(same).x, state.x, atol=0.1)


@pytest.mark.parametrize("name", ["multinomial", "systematic", "ssp"])
def test_resampling_is_unbiased(name):
    """The mean count of every particle is k times its weight."""
    weights = torch.tensor([0.02, 0.3, 0.18, 0.0, 0.45, 0.05], dtype=torch.float64)
    env = Uniforms()
    counts = []
    for _ in range(3000):
        picked = RESAMPLERS[name](env, weights.log()[None], 4)
        assert len(picked) == 4
        counts.append(torch.bincount(picked, minlength=6).double())
    counts = torch.stack(counts)
    error = counts.std(0) / len(counts) ** 0.5
    assert ((counts.mean(0) - 4 * weights).abs() <= 4 * error + 1e-9).all()
    if name != "multinomial":
        assert ((counts - 4 * weights).abs() < 1 + (name == "systematic")).all()
        assert counts.var(0).sum() < 0.5 * (4 * weights * (1 - weights)).sum()


class Uniforms:
    def __init__(self):
        self.generator = torch.Generator().manual_seed(0)

    def uniform(self, n):
        return torch.rand(n, generator=self.generator, dtype=torch.float64)


def test_effective_sample_size():
    assert effective_sample_size(torch.zeros(7)) == pytest.approx(7)
    assert effective_sample_size(torch.tensor([0.0, -math.inf, -math.inf])) == pytest.approx(1)


STRENGTH = 3.0


def clouds(runs, k, potential, resampler, threshold):
    """Finished clouds of `runs` independent particle runs on the toy."""
    found = []

    def search(env):
        cloud = yield from steer(
            env, [k] * env.steps, at=range(2, env.steps, 2), potential=potential, strength=lambda *_: STRENGTH,
            resample=RESAMPLERS[resampler], threshold=threshold, eta=1.0,
        )  # fmt: skip
        found.append(cloud)

    tasks = [Task(search, 0, noise.fold(7, i), 10_000) for i in range(runs)]
    run_searches(tasks, ToySampler(steps=10), Tilt(), batch_size=4096)
    return found


@pytest.fixture(scope="module")
def law():
    """Mean of exp(strength r) and the tilted mean of x, over the discretised sampler's own law, with errors."""
    sampler, state = plain(100_000)
    x = sampler.run(state).x
    weight = (STRENGTH * Tilt()(sampler.decode(x), [])).exp()
    z, mean = weight.mean(), (weight * x[:, 0]).mean() / weight.mean()
    return float(z), float(weight.std() / len(x) ** 0.5), float(mean)


@pytest.mark.parametrize("potential", ["max", "difference", "sum", "current", "tempered"])
@pytest.mark.parametrize(("resampler", "threshold"), [("systematic", 0.5), ("ssp", 1.0), ("multinomial", 0.7)])
def test_the_normalising_constant_is_unbiased(law, potential, resampler, threshold):
    z, z_error, _ = law
    found = torch.tensor([math.exp(cloud.log_z) for cloud in clouds(300, 4, potential, resampler, threshold)])
    error = math.hypot(float(found.std()) / len(found) ** 0.5, z_error)
    assert abs(float(found.mean()) - z) < 4 * error


def test_the_tilted_mean_converges_at_rate_one_over_n(law):
    _, _, mean = law
    squared = {}
    for k, runs in ((4, 400), (64, 100)):
        errors = []
        for cloud in clouds(runs, k, "difference", "systematic", 0.5):
            share = cloud.log_weight.softmax(0)
            errors.append(float((share * cloud.state.x[:, 0]).sum()) - mean)
        squared[k] = sum(e**2 for e in errors) / runs
    # 16 times the particles: a 16th of the squared error; 100 runs know it to about 15% (one sigma).
    assert 16 / 2 < squared[4] / squared[64] < 16 * 2


def test_gradients_are_those_of_finite_differences():
    sampler = ToySampler(steps=6)
    state = sampler.prior(torch.tensor([3, 4]), torch.tensor([0, 0]))
    smooth = lambda x: (sampler.run(replace(state, x=x)).x * torch.tensor([0.7, -0.2])).sum(1)  # noqa: E731
    # Pictures are float32: the verifier looks at the latents instead, through the same steps.
    sampler.decode = lambda latents: latents  # type: ignore[method-assign]
    _, _, scores, grad = sampler.gradient(state, lambda points, _: (points * torch.tensor([0.7, -0.2])).sum(1))
    assert torch.allclose(scores, smooth(state.x))
    for axis in (0, 1):
        bump = torch.zeros(2, 2, dtype=torch.float64)
        bump[:, axis] = 1e-5
        slope = (smooth(state.x + bump) - smooth(state.x - bump)) / 2e-5
        assert torch.allclose(grad[:, axis], slope, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "budget"), [("zero_order cosine=0.98", 4000), ("bayes", 500), ("first_order", 4000)])
def test_reaches_a_known_optimum(name, budget):
    """The target is the picture of a noise of norm 1.2, at which the search starts: only its angle is to be found."""
    algorithm, options = parse(name, "search", SEARCHES)
    sampler = ToySampler(steps=5)
    start = sampler.prior(torch.tensor([noise.fold(noise.fold(noise.root(3), 0), "candidate", 0)]), torch.tensor([0]))
    radius = start.x.norm()
    angle = torch.linspace(0, 2 * math.pi, 2001, dtype=torch.float64)[:-1]
    ring = radius * torch.stack([angle.cos(), angle.sin()], 1)
    verifier = Near((2.9, 2.9))
    every = verifier(sampler.decode(sampler.run(replace(start, x=ring)).x), [])
    (result,) = run_searches(
        [Task(lambda env: SEARCHES[algorithm](env, **options), 0, noise.fold(noise.root(3), 0), budget)],
        sampler,
        verifier,
    )
    best, typical = float(every.max()), float(every.median())
    assert result.best.score >= best - 0.02 * (best - typical)


def test_paths_go_up_and_down_as_told():
    """A round goes from 0.11 to 0.89, back to 0.08, then 0.05, 0.02 and 0."""
    seen = []

    class Watched(ToySampler):
        def solve(self, state, level, steps, record=None):
            seen.append((round(self._level(state), 6), round(level, 6), steps, len(state)))
            return super().solve(state, level, steps)

    run_searches([task("paths")], Watched(steps=10), Near())
    assert seen[0] == (0.2, 0.11, 1, 2)
    assert [(up, down) for up, down, *_ in seen[1:]] == [(0.89, 0.08), (0.86, 0.05), (0.83, 0.02), (0.8, 0.0)]
    assert {(steps, rows) for *_, steps, rows in seen[1:]} == {(4, 6)}


def test_zero_order_pays_for_no_pivot_twice():
    for setting in ("zero_order", "zero_order greedy", "zero_order restart"):
        ran = []

        class Watched(ToySampler):
            def run(self, state, to=None, record=None, ran=ran):
                ran.extend(state.key.tolist())
                return super().run(state, to, record)

        run_searches([task(setting)], Watched(steps=5), Near())
        assert len(ran) == len(set(ran)) > 8


@pytest.mark.parametrize(
    "wrong",
    [
        "zero_order n=0", "zero_order cosine=1", "zero_order policy=bold", "paths forward=0.9", "paths n=0",
        "first_order rate=0", "demon k=0", "demon weights=relu", "free2guide temperature=-1", "fk k=0", "fk ess=2",
        "fk resampler=top", "svdd b=0", "bayes n=0", "fk k=x", "bfs interval=5", "das gamma=0", "vasr select=best",
        "funnel narrow=0", "beam m=0", "dfs at=3,2", "dts at=5", "rbf levels=cosine",
        "evolution rate=0", "spectral elites=0", "cma n=0",
        "pcn cosine=1", "pcn strength=-1", "reno momentum=1", "reno clip=0", "dps strength=0", "dps guidance=none",
    ],
)  # fmt: skip
def test_settings_out_of_range_are_refused_before_anything_runs(wrong):
    sampler = ToySampler(steps=5)
    with pytest.raises(DiffscaleError):
        name, options = parse(wrong, "search", SEARCHES)
        run_searches([Task(lambda env: SEARCHES[name](env, **options), 0, 1, 1000)], sampler, Near())
    assert sampler.forwards == 0


@pytest.mark.parametrize("setting", sorted(GRADIENTS))
def test_a_verifier_without_gradient_is_told(setting):
    class Hard(Near):
        def __call__(self, images, prompts):
            return super().__call__(images, prompts).detach()

    with pytest.raises(DiffscaleError, match="has no gradient"):
        run_searches([task(setting)], ToySampler(steps=5), Hard())


def test_a_search_that_never_gives_in_is_ended():
    def stubborn(env):
        yield Evaluate(env.prior(1))
        while True:
            try:
                yield Run(env.prior(10**4))
            except Exception:
                continue

    (result,) = run_searches([task(stubborn, 20)], ToySampler(steps=5), Near())
    assert result.ledger.nfe == 5


def test_all_requests_off_the_grid():
    def wander(env):
        state = yield Solve(env.prior(2), 0.33, 3)
        state = yield Predict(env.renoise(state, 0.512))
        scores = yield Score(state)
        assert scores.isfinite().all()
        state = yield Solve(state, 0.2, 1)
        assert state.level is None and env.levels[state.step] == pytest.approx(0.2)
        scores, gradient = yield Gradient(state)
        assert gradient.shape == state.x.shape
        yield Evaluate(state)

    (result,) = run_searches([task(wander)], ToySampler(steps=5), Near())
    assert result.ledger.nfe == 2 * (3 + 1 + 1 + 4 * 1 + 1)


@pytest.mark.parametrize("potential", ["max", "difference", "sum", "tempered"])
def test_particles_that_were_all_dropped_go_on(potential):
    class Blind(Tilt):
        calls = 0

        def __call__(self, images, prompts):
            Blind.calls += 1
            return super().__call__(images, prompts) if Blind.calls > 1 else torch.full((len(images),), math.nan)

    search = partial(SEARCHES["fk"], k=4, interval=2, potential=potential)
    with pytest.warns(DroppedCandidate):
        (result,) = run_searches([Task(search, 0, 1, 10_000)], ToySampler(steps=8), Blind())
    assert result.dropped == 4 and math.isfinite(result.best.score)
