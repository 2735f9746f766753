"""The search and the verifier keep to the rules of diffscale, and are found by their names."""

import pytest

import diffscale
from diffscale import testing


@pytest.mark.parametrize("text", ["survival", "survival population=3 cosine=0.5"])
def test_the_search_keeps_to_the_rules(text):
    testing.check_search(text)


def test_the_verifier_keeps_to_the_rules():
    testing.check_verifier(diffscale.load_verifier("sharpness power=2"))


def test_all_are_found_by_name():
    for kind, name in (("searches", "survival"), ("verifiers", "sharpness"), ("suites", "weather")):
        assert diffscale.plugins(kind).source(name).startswith("diffscale-example")
    result = diffscale.search("example-tiny-sd", "rain", search="survival", verifier="sharpness", nfe=24)
    assert result.best.score > result.baseline.score
