"""What more candidates are expected to bring: against draws from the same beliefs, and against known truths."""

import numpy as np
import pytest
from scipy import integrate, stats

from diffscale.engine.improvement import Beliefs, Moments, outlook, prior_of


def test_the_posterior_is_that_of_numbers():
    """Against the likelihood times the prior, integrated over a grid of means and variances."""
    seen, prior = np.array([0.3, 1.1, -0.4]), Beliefs(*map(np.array, (0.2, 0.7, 2.5, 1.3)))
    after = prior.given(Moments.of([seen]))
    mean, variance = np.meshgrid(np.linspace(-8, 8, 1601), np.geomspace(1e-2, 1e3, 2000))
    density = stats.invgamma(2.5, scale=1.3).pdf(variance) * stats.norm(0.2, np.sqrt(variance / 0.7)).pdf(mean)
    density *= np.prod([stats.norm(mean, np.sqrt(variance)).pdf(each) for each in seen], axis=0)

    def expected(value):
        inner = integrate.trapezoid(value * density, mean, axis=1), integrate.trapezoid(density, mean, axis=1)
        return np.divide(*(integrate.trapezoid(each, variance[:, 0]) for each in inner))

    assert after.mean[0] == pytest.approx(expected(mean), rel=1e-3)
    assert after.scale[0] / (after.shape[0] - 1) == pytest.approx(expected(variance), rel=1e-2)
    assert (after.weight[0], after.shape[0]) == (3.7, 4.0)


BELIEFS = Beliefs(*map(np.array, ([0.0, 1.0, 2.0, 0.0], [4.5, 9.0, 4.5, 40.0], [4.0, 6.0, 5.0, 25.0], [3.0] * 4)))
MORE = np.array([1.0, 4.0, 16.0, 3.0])


def tops(beliefs, more, row, rng, draws=200_000):
    """The best of `more` draws of prompt number `row`, which have their mean and variance in common."""
    deviation = np.sqrt(beliefs.scale[row] / rng.gamma(beliefs.shape[row], size=draws))
    mean = beliefs.mean[row] + deviation * rng.standard_normal(draws) / np.sqrt(beliefs.weight[row])
    return (mean[:, None] + deviation[:, None] * rng.standard_normal((draws, int(more[row])))).max(1)


def test_chances_are_those_of_draws():
    levels, rng = np.array([[1.0, -1.0], [2.0, 4.0], [2.5, 3.5], [0.1, 0.6]]), np.random.default_rng(0)
    found = BELIEFS.chance_above(MORE, levels)
    for row in range(4):
        drawn = [(tops(BELIEFS, MORE, row, rng) > level).mean() for level in levels[row]]
        assert found[row] == pytest.approx(drawn, abs=0.005)


def test_one_more_candidate_is_a_student_t_and_several_are_less_than_independent_ones():
    beliefs = Beliefs(*(np.array([each]) for each in (1.0, 4.5, 5.0, 3.0)))
    student, levels = stats.t(10, 1.0, np.sqrt(3 * 5.5 / (5 * 4.5))), np.array([[-1.0, 1.5, 3.0]])
    assert beliefs.chance_above(np.ones(1), levels)[0] == pytest.approx(student.sf(levels[0]), abs=2e-3)
    assert (beliefs.chance_above(np.full(1, 8.0), levels)[0] < 1 - student.cdf(levels[0]) ** 8).all()


def drawn(prompts, of_each, rng, weight=0.5, shape=4.0, scale=3.0):
    """Scores [prompts, of_each] of prompts by chance."""
    deviation = np.sqrt(scale / rng.gamma(shape, size=prompts))
    mean = deviation * rng.standard_normal(prompts) / np.sqrt(weight)
    return mean[:, None] + deviation[:, None] * rng.standard_normal((prompts, of_each))


def test_the_prior_is_found_again():
    prior = prior_of(Moments.of(list(drawn(3000, 6, np.random.default_rng(1)))))
    assert prior.mean == pytest.approx(0, abs=0.1) and prior.weight == pytest.approx(0.5, rel=0.1)
    assert prior.shape == pytest.approx(4, rel=0.25) and prior.scale / prior.shape == pytest.approx(3 / 4, rel=0.1)


@pytest.mark.parametrize(
    "shown", [lambda x: x, lambda x: np.exp(x / 2), lambda x: 1 - np.exp(-x), lambda x: np.minimum(x, 1.5)]
)
def test_what_is_expected_comes_true_whatever_form_scores_have(shown):
    """The mean over many prompts, of four candidates each, of what four more bring and of how many are better."""
    scores = shown(drawn(400, 8, np.random.default_rng(2), scale=1.0, weight=2.0))
    chance, gain = outlook(list(scores[:, :4]), np.full(400, 4.0))
    best, later = scores[:, :4].max(1), np.minimum(scores[:, 4:].max(1), scores[:, :4].max())
    rise = np.maximum(later - best, 0)
    assert chance.mean() == pytest.approx((later > best).mean(), abs=0.07)
    assert gain.mean() == pytest.approx(rise.mean(), abs=3 * rise.std() / 20)
    assert stats.spearmanr(gain, rise)[0] > 0.25
    assert (
        outlook(list(scores[:, :4]), np.full(400, 4.0), float(np.median(best)))[1][best > np.median(best)] == 0
    ).all()


def test_a_run_whose_scores_are_all_equal_or_few_has_an_outlook():
    for scores in ([np.full(4, 0.1), np.full(3, 0.1)], [np.full(4, 1.0), np.array([0.0, 0.5])], [np.array([2.0])]):
        chance, gain = outlook(scores, np.full(len(scores), 4.0))
        assert np.isfinite([chance, gain]).all() and gain[0] == 0 and (chance >= 0).all()
    assert outlook([np.full(4, 0.1), np.full(3, 0.1)], np.full(2, 4.0))[0].max() < 0.05
