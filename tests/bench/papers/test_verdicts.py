"""Tests behind verdicts: known answers, error rates on synthetic data, and formulas of other libraries."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from diffscale.bench.papers.verdicts import (
    Contrast,
    Evidence,
    decide,
    equivalent,
    every,
    holm,
    jackknife,
    not_superior,
    paired,
    superior,
)


def test_superiority_is_the_paired_t_test() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(0.3, 1, 40), rng.normal(0, 1, 40)
    evidence = superior(paired(a - b))
    assert evidence.holds == pytest.approx(stats.ttest_rel(a, b, alternative="greater").pvalue)
    assert evidence.fails == pytest.approx(stats.ttest_rel(a, b, alternative="less").pvalue)
    shifted = superior(paired(a - b), 0.1)
    assert shifted.holds == pytest.approx(stats.ttest_1samp(a - b, 0.1, alternative="greater").pvalue)


def test_equivalence_is_the_larger_of_two_one_sided_tests() -> None:
    values = np.random.default_rng(1).normal(0.05, 0.2, 30)
    lower = stats.ttest_1samp(values, -0.15, alternative="greater").pvalue
    upper = stats.ttest_1samp(values, 0.15, alternative="less").pvalue
    assert equivalent(paired(values), 0.15).holds == pytest.approx(max(lower, upper))
    beyond = stats.ttest_1samp(values, 0.15, alternative="greater").pvalue
    assert not_superior(paired(values), 0.15).fails == pytest.approx(beyond)
    assert equivalent(paired(values + 1), 0.15).fails == pytest.approx(
        2 * stats.ttest_1samp(values + 1, 0.15, alternative="greater").pvalue
    )


def test_the_interval_is_that_of_the_t_test() -> None:
    values = np.random.default_rng(2).normal(1, 2, 12)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert paired(values).interval() == pytest.approx((low, high))


def test_the_jackknife_of_a_mean_is_its_standard_error() -> None:
    values = np.random.default_rng(3).normal(size=25)
    without = [np.delete(values, i).mean() for i in range(25)]
    found = jackknife(float(values.mean()), [without])
    assert found.error == pytest.approx(stats.sem(values)) and found.freedom == 24
    assert jackknife(1.0, []).error == jackknife(1.0, [[1.0]]).error == np.inf


def test_the_stratified_jackknife_of_a_mean_counts_what_varies_within_strata_alone() -> None:
    values = np.random.default_rng(4).normal(size=(6, 4)) + 10 * np.arange(6)[:, None]
    without = [[np.delete(values.ravel(), 4 * s + g).mean() for g in range(4)] for s in range(6)]
    found = jackknife(float(values.mean()), without)
    textbook = np.sqrt((values.var(1, ddof=1) / 4).sum()) / 6
    assert found.error == pytest.approx(textbook) and found.freedom == 18


def test_holm_by_hand() -> None:
    # Sorted .005, .01, .03, .04 times 4, 3, 2, 1, then never falling: Holm 1979, example of its table.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_no_correction_and_bonferroni(p: list[float]) -> None:
    adjusted = holm(p)
    assert all(x <= a <= min(1, len(p) * x) + 1e-12 for x, a in zip(p, adjusted, strict=True))
    order = np.argsort(p, kind="stable")
    assert (np.diff(np.array(adjusted)[order]) >= 0).all()


def test_a_conjunction_holds_by_its_weakest_part_and_fails_by_its_worst() -> None:
    both = every([Evidence(0.01, 0.99, "a"), Evidence(0.2, 0.004, "b")])
    assert (both.holds, both.fails, both.found) == (0.2, 0.008, "a; b")


def test_verdicts_of_clear_cases() -> None:
    clear = [Evidence(1e-6, 1.0), Evidence(1.0, 1e-6), Evidence(0.5, 0.5), Evidence(0.02, 0.98)]
    assert [verdict for verdict, _ in decide(clear)] == ["holds", "does not hold", "not decided", "not decided"]
    # Alone, and both directions counted, 0.02 is enough.
    assert decide([Evidence(0.02, 0.98)])[0] == ("holds", 0.04)


def test_too_few_prompts_decide_nothing() -> None:
    for values in ([], [3.0]):
        evidence = superior(paired(values))
        assert decide([evidence])[0][0] == "not decided"
    assert decide([superior(paired([float("nan")] * 3))])[0][0] == "not decided"
    # Without any spread there is nothing to test either, but a difference that is always the same is one.
    assert superior(Contrast(0.0, 0.0, 5)).holds == 1 and superior(Contrast(0.2, 0.0, 5)).holds == 0


@pytest.mark.parametrize("kind", ["superior", "equivalent", "not_superior"])
def test_wrong_verdicts_are_as_rare_as_stated(kind: str) -> None:
    """At the edge of each claim, where it is neither true nor false, at most 5% are called either."""
    rng, wrong, runs = np.random.default_rng(4), 0, 400
    for _ in range(runs):
        values = rng.normal(0, 1, 20)
        evidence = {
            "superior": lambda v: superior(paired(v)),
            "equivalent": lambda v: equivalent(paired(v + 0.5), 0.5),
            "not_superior": lambda v: not_superior(paired(v + 0.5), 0.5),
        }[kind](values)
        wrong += decide([evidence])[0][0] != "not decided"
    assert wrong / runs < 0.05 + 3 * (0.05 * 0.95 / runs) ** 0.5


def test_true_claims_are_found() -> None:
    rng = np.random.default_rng(5)
    same, better = rng.normal(0, 0.1, 60), rng.normal(0.3, 0.5, 60)
    assert decide([equivalent(paired(same), 0.1), superior(paired(better))])[0][0] == "holds"
    assert decide([equivalent(paired(better), 0.05)])[0][0] == "does not hold"
