"""What optimisers of noises promise: known optima, invariant laws, and subspaces that are orthonormal."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from scipy import stats
from toys import task

from diffscale._util.errors import DiffscaleError, Unsuited
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.environment import SearchEnvironment
from diffscale.engine.journal import Journal
from diffscale.engine.ledger import Ledger
from diffscale.engine.task import Task
from diffscale.registry.arguments import parse
from diffscale.samplers.denoiser import DenoiserSampler
from diffscale.samplers.noise_schedules import LinearFlow
from diffscale.searches import SEARCHES, choose_search
from diffscale.searches.dps import guided
from diffscale.searches.evolution import _winners
from diffscale.searches.reno import Nesterov, log_law_of_norm_slope
from diffscale.searches.subspaces import low_band
from diffscale.testing import NearPoint as Near
from diffscale.testing import WordedToy as ToySampler
from diffscale.testing import check_anytime, points


def environment(shape):
    """An environment whose latents are shaped so."""
    sampler = DenoiserSampler(
        lambda x, t: x, LinearFlow(), "velocity", shape, 4, ["a"], decode=lambda x: torch.zeros(len(x), 3, 4, 4)
    )
    return SearchEnvironment(sampler, 0, noise.root(0), Ledger(100), 8)


def haar_low(x, levels):
    """The low band of pictures [B, C, H, W] by the textbook's steps, over rows and columns in turn."""
    for _ in range(levels):
        x = (x[..., ::2, :] + x[..., 1::2, :]) / 2**0.5
        x = (x[..., ::2] + x[..., 1::2]) / 2**0.5
    return x


@pytest.mark.parametrize(
    ("shape", "levels", "size"),
    [((4, 8, 8), 2, 16), ((4, 8, 8), 9, 4), ((3, 6, 10), 2, 45), ((2, 3, 4, 4), 1, 24), ((16, 5), 1, 20),
     ((3, 5, 5), 2, 75), ((12, 6), 2, 64), ((300,), 2, 64), ((2,), 1, 2)],
)  # fmt: skip
def test_bands_are_orthonormal(shape, levels, size):
    env = environment(shape)
    first = env.prior(1)
    band = low_band(env, first, levels)
    x = torch.randn(3, math.prod(shape), dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    low = band.project(x)
    assert low.shape == (3, size)
    torch.testing.assert_close(band.project(band.lift(low)), low)
    torch.testing.assert_close(band.lift(low).norm(dim=1), low.norm(dim=1))
    # What is left is orthogonal to every direction of the band.
    torch.testing.assert_close(band.project(x - band.lift(low)), torch.zeros_like(low))


def test_the_low_band_is_that_of_a_haar_transform():
    x = torch.randn(3, 4 * 8 * 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    env = environment((4, 8, 12))
    for levels in (1, 2):
        wanted = haar_low(x.view(3, 4, 8, 12), levels)
        torch.testing.assert_close(low_band(env, env.prior(1), levels).project(x), wanted.flatten(1))
    # Tokens of a square picture: the same, with the channels last.
    env = environment((64, 4))
    tokens = x[:, :256].view(3, 8, 8, 4)
    wanted = haar_low(tokens.movedim(-1, 1), 1).movedim(1, -1)
    torch.testing.assert_close(low_band(env, env.prior(1), 1).project(tokens.flatten(1)), wanted.flatten(1))


def noises_of(search, shape, budget):
    """The noises that a search evaluates, in order; their scores are the sums of their first rows."""
    seen = []

    class Watched(DenoiserSampler):
        def run(self, state, to=None, record=None):
            seen.append(state.x.clone())
            return super().run(state, to, record)

    sampler = Watched(lambda x, t: 0 * x, LinearFlow(), "velocity", shape, 2, ["a"], decode=lambda x: x.sigmoid())
    first_row = lambda images, prompts: images[:, :, 0].logit().sum((1, 2)).double()  # noqa: E731
    first_row.name = "first"
    (result,) = run_searches([Task(search, 0, 3, budget)], sampler, first_row)
    return torch.cat(seen), result


def test_spectral_keeps_the_high_band_and_the_norm():
    x, result = noises_of(partial(SEARCHES["spectral"], n=4), (3, 8, 8), 120)
    assert result.candidates == len(x) == 60
    torch.testing.assert_close(x.flatten(1).norm(dim=1), x[0].norm().expand(60), rtol=1e-5, atol=0)
    env = environment((3, 8, 8))
    band = low_band(env, env.prior(1), 2)
    flat = x.flatten(1).double()
    high = flat - band.lift(band.project(flat))
    torch.testing.assert_close(high, high[:1].expand(60, -1), rtol=0, atol=1e-5)
    assert (band.project(flat)[1:] - band.project(flat)[0]).norm(dim=1).min() > 0.1
    scores = result.pool.view(-1)
    assert scores[-12:].mean() > scores[:12].mean() + scores[:12].std()


@pytest.mark.parametrize(
    "name",
    ["spectral", "cma", "pcn cosine=0.95 strength=40", "evolution at=0,0,0,0,0,0 rate=0.3", "reno rate=0.02"],
)
@pytest.mark.parametrize("process", ["flow", "ve"])
def test_reaches_a_known_optimum(name, process):
    """The best picture of the noises of the norm at which the search starts: its angle is to be found."""
    algorithm, options = parse(name, "search", SEARCHES)
    sampler, verifier = ToySampler(steps=4, process=process), Near((2.9, 2.9))
    tried = task(partial(SEARCHES[algorithm], **options), 600, seed=3)
    (result,) = run_searches([tried], sampler, verifier)
    start = sampler.prior(torch.tensor([noise.fold(tried.key, "candidate", 0)]), torch.tensor([0]))
    angle = torch.linspace(0, 2 * math.pi, 1000, dtype=torch.float64)
    ring = start.x.norm() * torch.stack([angle.cos(), angle.sin()], -1)
    every = verifier(sampler.decode(sampler.run(replace(start, x=ring)).x), [])
    best, typical = float(every.max()), float(every.median())
    assert result.best.score >= best - 0.002 * (best - typical)


def test_the_first_candidate_is_the_plain_sample():
    plain = run_searches([task(SEARCHES["random"], 5)], ToySampler(steps=5), Near())[0].best.score
    for name in ("spectral", "cma", "pcn"):
        (result,) = run_searches([task(SEARCHES[name], 20)], ToySampler(steps=5), Near())
        assert result.baseline.score == pytest.approx(plain, abs=1e-9), name


@pytest.mark.parametrize("budget", [84, 96, 108])  # 7, 8 and 9 candidates in the half of it
@pytest.mark.parametrize("name", [name for name in SEARCHES if choose_search(name).declares("anytime")])
def test_a_larger_budget_goes_on_from_a_smaller_one(name, budget):
    n = {"zero_order": "n=5", "spectral": "n=5", "cma": "n=5", "pcn": "chains=5"}.get(name, "")
    check_anytime(f"{name} {n}", budget)


class NoiseItself(ToySampler):
    """The picture of a noise is the noise, in standard deviations."""

    def run(self, state, to=None, record=None):
        unit = state.x / self.noise_scale
        self.asked = unit
        return self._moved(state, unit, self.steps)


@pytest.mark.parametrize("process", ["flow", "ve"])
@pytest.mark.parametrize("strength", [0.0, 1.0])
def test_chains_leave_the_tilted_law_of_noise_as_it_is(process, strength):
    """exp(strength r) of a linear r moves the normal law by strength, and proposals are around cosine times that."""

    class Right(Near):
        def __call__(self, images, prompts):
            return points(images)[:, 0]

    sampler = NoiseItself(steps=1, process=process)
    search = partial(SEARCHES["pcn"], chains=1000, cosine=0.5, strength=strength, units="raw")
    # After 8 moves next to nothing is left of where the chains began.
    run_searches([Task(search, 0, 5, 1000 * 9)], sampler, Right(), 4096)
    assert stats.kstest(sampler.asked[:, 0].numpy(), "norm", args=(0.5 * strength, 1)).pvalue > 1e-3
    assert stats.kstest(sampler.asked[:, 1].numpy(), "norm").pvalue > 1e-3


def test_a_mutant_on_its_way_keeps_the_marginal():
    """The step taken again with other noise is another draw of the same law; its parent is not moved."""
    env = SearchEnvironment(ToySampler(steps=10, process="vp"), 0, noise.root(1), Ledger(10**6), 8)
    state = env.sampler.predict(env.sampler.run(env.prior(4000), 5))
    parents, mutants = env.step(state, eta=1.0), env.step(env.branch(state, 1), eta=1.0)
    for axis in (0, 1):
        assert stats.ks_2samp(parents.x[:, axis].numpy(), mutants.x[:, axis].numpy()).pvalue > 1e-3
    assert 0.1 < (parents.x - mutants.x).norm(dim=1).mean() < (parents.x - parents.x.roll(1, 0)).norm(dim=1).mean() / 2


def test_the_best_wins_nearly_every_tournament_of_nearly_all():
    env = environment((2,))
    scores = torch.tensor([0.1, 3.0, -math.inf, 2.0, 1.0, 0.5, 0.2, 0.3, 0.4, 0.6], dtype=torch.float64)
    winners = _winners(env, scores, 4000, 0.9)
    shares = torch.bincount(winners, minlength=10) / 4000
    assert shares[1] == pytest.approx(0.9, abs=0.02) and shares[3] == pytest.approx(0.1, abs=0.02)
    assert set(_winners(env, scores, 50, 0.01).tolist()) >= {0, 1, 3, 4}  # a member of its own for each: no selection


def test_evolution_pays_for_no_sample_twice_and_spends_what_there_is():
    for budget in (100, 160, 333):
        ran = []

        class Watched(ToySampler):
            def run(self, state, to=None, record=None, ran=ran):
                ran.extend((key, state.step) for key in state.key.tolist())
                return super().run(state, to, record)

        (result,) = run_searches([task(SEARCHES["evolution"], budget)], Watched(steps=10), Near())
        assert budget - 10 < result.ledger.nfe <= budget
        assert len(ran) == len(set(ran))


def test_gradients_of_predictions_are_asked_for_priced_and_journaled(tmp_path):
    """At any step of any schedule they are those of finite differences, and the state goes on from them."""
    target = torch.tensor([2.9, 2.9], dtype=torch.float64)

    class Smooth(Near):
        def __call__(self, images, prompts):
            return -(points(images) - target).square().sum(1)

    for process in ("flow", "vp", "ve"):
        sampler, asked = ToySampler(steps=8, process=process), []

        def search(env, asked=asked):
            state = env.step((yield from env.predict(env.prior(6))), eta=1.0)
            for _ in range(3):
                left = env.nfe_left
                predicted, scores, gradient = yield from env.predict_gradient(state)
                assert env.nfe_left == left - 3 * 6
                asked.append((state, predicted, scores, gradient))
                state = env.step(predicted, eta=0.5)
            yield from env.evaluate(state)

        for _ in range(2):  # the second time from the journal
            journal = Journal(tmp_path / f"{process}.sqlite", {})
            (result,) = run_searches([Task(search, 0, 1, 1000)], sampler, Smooth(), journal=journal)
            journal.close()
        assert result.ledger.nfe == 6 * (1 + 3 * 3 + 4) and result.ledger.network_forwards == 6 * (1 + 3 + 4)
        assert result.ledger.flops == result.ledger.nfe * sampler.flops_per_forward
        assert sampler.forwards == result.ledger.network_forwards and len(asked) == 6

        def value(state, x, sampler=sampler):
            return -(sampler.predict(replace(state, x=x)).x0 - target).square().sum(1)

        for (state, predicted, scores, gradient), again in zip(asked[:3], asked[3:], strict=True):
            assert torch.equal(gradient, again[3]) and torch.equal(predicted.x0, again[1].x0)
            torch.testing.assert_close(predicted.x0, sampler.predict(state).x0)
            torch.testing.assert_close(scores, value(state, state.x), rtol=1e-4, atol=1e-4)  # pictures are float32
            inside = predicted.x0.abs().amax(1) < 5.9  # where pictures are not cut off
            for axis in (0, 1):
                bump = torch.zeros_like(state.x)
                bump[:, axis] = 1e-5
                slope = (value(state, state.x + bump) - value(state, state.x - bump)) / 2e-5
                torch.testing.assert_close(gradient[inside, axis], slope[inside], rtol=1e-4, atol=1e-5)


def test_a_finished_state_has_no_gradient_of_a_prediction():
    def search(env):
        yield from env.predict_gradient((yield from env.run(env.prior(1))))

    with pytest.raises(DiffscaleError, match=r"no prediction whose gradient.*env\.gradient"):
        run_searches([Task(search, 0, 1, 100)], ToySampler(steps=4), Near())


def test_a_verifier_of_earlier_predictions_has_no_gradient_of_one():
    class Steady(Near):
        record_level = 0.4

        def __call__(self, images, prompts, early):
            return super().__call__(images, prompts)

    with pytest.raises(Unsuited, match="cannot score unfinished ones"):
        run_searches([task(SEARCHES["dps"], 100)], ToySampler(steps=4), Steady())


def test_guidance_shifts_by_its_strength_or_keeps_the_norm():
    z = noise.normal(torch.arange(4), (3, 20, 20)).double()
    g = noise.normal(torch.arange(4, 8), (3, 20, 20)).double() * 1e-4
    g[2] = 0
    g[3, 0, 0, 0] = math.nan
    along = (g[:2].flatten(1) / g[:2].flatten(1).norm(dim=1, keepdim=True)).view(2, 3, 20, 20)
    shifted = guided(z, g, 0.1, "shift")
    torch.testing.assert_close(shifted[:2] - z[:2], 0.1 * 1200**0.5 * along)
    tilted = guided(z, g, 0.3, "tilt")
    torch.testing.assert_close((tilted[:2] * along).sum((1, 2, 3)), torch.full((2,), 0.3 * 1200**0.5).double())
    assert ((tilted.square().sum((1, 2, 3)) / z.square().sum((1, 2, 3)) - 1).abs() < 0.01).all()
    for unguided in (shifted[2:], tilted[2:]):
        assert torch.equal(unguided, z[2:])


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
def test_guided_samples_are_better_than_plain_ones(process):
    guided = [partial(SEARCHES["dps"], n=100, strength=0.5, guidance=each) for each in ("shift", "tilt")]
    plain = partial(SEARCHES["svdd"], b=100, m=1)  # the same stochastic steps
    *found, wanted = (
        run_searches([task(each, 20_000)], ToySampler(steps=10, process=process), Near())[0].pool.mean()
        for each in (*guided, plain)
    )
    assert min(found) > wanted * 0.5  # all are negative squared distances


def test_reno_rises_along_the_law_of_the_norm():
    x = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 1.5
    slope = log_law_of_norm_slope(x)
    along = torch.randn(50, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    up, down = (stats.chi(50).logpdf(float((x + d * along).norm())) for d in (1e-5, -1e-5))
    assert float(slope @ along) == pytest.approx((up - down) / 2e-5, rel=1e-6)
    typical = x / x.norm() * 49**0.5
    assert log_law_of_norm_slope(typical).abs().max() < 1e-12


def test_reno_steps_as_torch_s_optimiser_does():
    """Clipped, with Nesterov's momentum, in standard deviations of noise."""
    rate, clip, weight = 0.004, 0.1, 0.01
    start = torch.randn(64, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scale = 80.0
    slope = lambda x: torch.cos(3 * x) * 0.05  # noqa: E731
    parameter = torch.nn.Parameter(start / start.norm() * 8)
    optimiser = torch.optim.SGD([parameter], lr=rate * 8 / clip, momentum=0.9, nesterov=True)
    move, x = Nesterov(rate, clip, weight, 0.9), start / start.norm() * 8 * scale
    for _ in range(5):
        norm = parameter.detach().norm()
        penalty = weight * (parameter.detach() - 63 / norm**2 * parameter.detach())
        parameter.grad = -slope(parameter.detach()) + penalty
        torch.nn.utils.clip_grad_norm_([parameter], clip)
        optimiser.step()
        x = move(x, slope(x / scale) / scale)
        torch.testing.assert_close(x / scale, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_reno_holds_the_norm_where_plain_ascent_would_leave_it():
    """A reward of the noise's own length: the penalty balances it where its slope says."""
    move, x = Nesterov(0.01, 10.0, 1.0, 0.5), torch.ones(100, dtype=torch.float64)
    for _ in range(300):
        x = move(x, x / x.norm())  # r = |x|
    # log p(r) + r rises until (D - 1) / r - r + 1 = 0.
    assert float(x.norm()) == pytest.approx((1 + (1 + 4 * 99) ** 0.5) / 2, rel=1e-3)
