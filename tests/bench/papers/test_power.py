"""Power and sample sizes: against published numbers, closed forms for large samples, and simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from diffscale.bench.papers import power
from diffscale.bench.papers.power import Need
from diffscale.bench.papers.verdicts import crossed, equivalent, paired, superior


@pytest.mark.parametrize(
    ("effect", "level", "wanted", "count"), [(0.5, 0.025, 0.8, 34), (0.2, 0.025, 0.8, 199), (0.5, 0.05, 0.95, 45)]
)
def test_sample_sizes_of_paired_t_tests_are_those_of_g_power(
    effect: float, level: float, wanted: float, count: int
) -> None:
    """G*Power 3.1, means: difference between two dependent means (Faul et al. 2007, and its manual)."""
    assert power.enough([Need(effect, power.over_prompts(1.0), 1)], level, wanted) == [count]


def test_in_large_samples_power_is_that_of_the_normal_formula() -> None:
    level, effect, deviation, wanted = 0.002, 0.01, 0.3, 0.8
    z = stats.norm.isf(level) + stats.norm.ppf(wanted)
    closed = (z * deviation / effect) ** 2
    assert power.enough([Need(effect, power.over_prompts(deviation), 1)], level, wanted) == [
        pytest.approx(closed, rel=0.001)
    ]
    z = stats.norm.isf(level) + stats.norm.ppf((1 + wanted) / 2)
    equal = Need(effect, power.over_prompts(deviation), 1, equal=True)
    assert power.enough([equal], level, wanted) == [pytest.approx((z * deviation / effect) ** 2, rel=0.001)]


@pytest.mark.parametrize("equal", [False, True])
def test_power_is_the_share_of_simulated_experiments_that_decide(equal: bool) -> None:
    rng, runs, size, level = np.random.default_rng(0), 4000, 12, 0.02
    found = 0
    for _ in range(runs):
        values = rng.normal(0 if equal else 0.9, 1, size)
        evidence = equivalent(paired(values), 0.9) if equal else superior(paired(values))
        found += evidence.holds <= level
    expected = Need(0.9, power.over_prompts(1.0), size, equal).power(level)
    assert found / runs == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / runs))


def test_to_rule_an_effect_out_is_as_likely_as_to_find_it() -> None:
    rng, runs, size, level, matters = np.random.default_rng(1), 4000, 15, 0.02, 0.9
    ruled_out = sum(superior(paired(rng.normal(0, 1, size)), matters=matters).fails <= level for _ in range(runs))
    expected = Need(matters, power.over_prompts(1.0), size).power(level)
    assert ruled_out / runs == pytest.approx(expected, abs=3 * math.sqrt(expected * (1 - expected) / runs))


def test_power_over_seeds_is_that_of_simulated_trainings() -> None:
    rng, runs, seeds, prompts, level = np.random.default_rng(2), 1500, 5, 30, 0.02
    seed, prompt, rest, effect = 0.05, 0.2, 0.3, 0.25
    found = 0
    for _ in range(runs):
        values = (
            effect
            + rng.normal(0, seed, (seeds, 1))
            + rng.normal(0, prompt, prompts)
            + rng.normal(0, rest, (seeds, prompts))
        )
        found += superior(crossed(values)).holds <= level
    expected = Need(effect, power.over_seeds(prompts, seed, prompt, rest), seeds).power(level)
    # The degrees of freedom are estimated too, which the formula leaves out.
    assert found / runs == pytest.approx(expected, abs=0.05)


def test_all_of_several_is_at_least_what_boole_says() -> None:
    needs = [Need(0.5, power.over_prompts(1.0), 60), Need(0.6, power.over_prompts(1.0), 50)]
    each = [need.power(0.01) for need in needs]
    assert power.of_all(needs, 0.01) == pytest.approx(sum(each) - 1) and power.of_all(needs, 0.01) < min(each)
    sizes = power.enough(needs, 0.01)
    assert sizes is not None and sizes[0] > sizes[1]  # in the same proportions
    # Repeats do not help between classes.
    assert power.enough([Need(0.1, power.over_repeats(48, 0.5, 1.0), 4)], 0.01) is None


def test_errors_go_with_their_sizes() -> None:
    assert power.over_repeats(48, 0.3, 0.6)(4)[0] == pytest.approx(math.sqrt((0.09 + 0.09) / 48))
    assert power.of_groups(1.2, 4, lambda repeats: 2 * repeats)(16) == (pytest.approx(0.6), 32)
    assert power.over_seeds(300, 0.01, 0.1, 0.2)(1) == (math.inf, 1)
