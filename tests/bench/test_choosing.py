"""A bench with a verifier whose scores depend on what was chosen before: prompts added, and runs that were stopped."""

import json

import pytest

from diffscale.bench.config import BenchConfig
from diffscale.bench.run import run
from diffscale.suites import prompts

SETTINGS = BenchConfig(verifier=["oracle_fid"], search=["random"], budget=[8], steps=4)


def folder(path):
    path.mkdir()
    return path


def same(samples, others):
    """Whether they found the same pictures, of scores that differ as those of other micro-batches do."""
    assert [s["name"] for s in samples] == [s["name"] for s in others]
    for one, other in zip(samples, others, strict=True):
        assert one["key"] == other["key"] and one["score"] == pytest.approx(other["score"], rel=1e-4)
    return True


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Three prompts in one go."""
    return run(SETTINGS, prompts.load("shapes-mini", 3), folder(tmp_path_factory.mktemp("oracle") / "whole"))


def test_prompts_that_are_added_find_what_they_find_in_one_go(tmp_path, whole):
    chosen = prompts.load("shapes-mini", 3)
    home = folder(tmp_path / "grown")
    for n in (1, 2):
        run(SETTINGS, chosen[:n], home)
    again = run(SETTINGS, chosen, home)
    assert same(again, whole) and len({s["score"]["best"] for s in again}) == 3


def test_another_limit_that_puts_a_prompt_between_is_another_search_of_what_follows(tmp_path, whole):
    """With 2 and with 3 prompts the second one differs, so the last one follows another set; nothing is mixed."""
    home = folder(tmp_path / "other")
    run(SETTINGS, [prompts.load("shapes-mini", 3)[i] for i in (0, 2)], home)
    again = run(SETTINGS, prompts.load("shapes-mini", 3), home)
    assert same(again, whole)
    lines = [json.loads(line) for line in (home / "samples.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["name"] for line in lines}) == len({line["image"] for line in lines}) == 4


def test_a_run_that_was_stopped_goes_on_with_the_same_set(tmp_path, whole):
    chosen, home = prompts.load("shapes-mini", 3), folder(tmp_path / "killed")

    def stop(cell, nfe, total, **_):
        if nfe > 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(SETTINGS, chosen, home, stop)
    assert same(run(SETTINGS, chosen, home), whole)
