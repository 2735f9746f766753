"""What the cells of a bench share: samples, journals, noises found, and what is chosen for a set."""

from dataclasses import replace

import pytest
import torch

from diffscale._util.files import parse_jsonl
from diffscale.api import make_sampler
from diffscale.bench import run as bench
from diffscale.bench.config import BenchConfig
from diffscale.bench.run import read_found, run
from diffscale.bench.series import Cell, PromptRepeat
from diffscale.bench.shared_samples import SharedSampler
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.models.options import LoadOptions
from diffscale.searches.random import random
from diffscale.verifiers import load

PROMPTS = ["a red circle", "a blue star"]
SETTINGS = BenchConfig(search=["random"], steps=2, device="cpu", seed=5)


@pytest.fixture
def rows_run(monkeypatch):
    """How many rows each call of a sampler's `run` has."""
    ran = []

    def counted(*args, **named):
        sampler = make_sampler(*args, **named)
        whole = sampler.run
        sampler.run = lambda state, *more: ran.append(len(state)) or whole(state, *more)
        return sampler

    monkeypatch.setattr(bench, "make_sampler", counted)
    return ran


def test_shared_samples_are_sampled_once_and_are_the_samples_and_cost_what_they_cost(tmp_path):
    sampler = make_sampler("shapes-flux", PROMPTS, steps=2, pipe_args={}, loading=LoadOptions(device="cpu"))
    shared = SharedSampler(sampler, tmp_path / "samples.sqlite")
    before, verifier = sampler.forwards, load("clip_ssl", image_model="shapes-flux")
    searches = [Task(random, row, key=7 + row, budget=8) for row in range(2)]
    plain = run_searches(searches, sampler, verifier)
    spent = sampler.forwards - before
    for again in range(2):
        found = run_searches(searches, shared, verifier)
        assert sampler.forwards - before == 2 * spent  # once without, once with the file
        for one, other in zip(plain, found, strict=True):
            assert one.best.key == other.best.key and torch.allclose(one.pool, other.pool, atol=1e-4), again
            assert one.ledger.nfe == other.ledger.nfe and one.ledger.flops == other.ledger.flops
    state = sampler.predict(sampler.prior(torch.tensor([7]), torch.tensor([0])))
    torch.testing.assert_close(shared.run(sampler.step(state)).x, sampler.run(sampler.step(state)).x)


def test_verifiers_share_samples_and_a_verifier_that_comes_later_scores_what_is_there(tmp_path, rows_run):
    both = SETTINGS.model_copy(update={"verifier": ["clip", "aesthetic"], "budget": [4, 8]})
    run(both, PROMPTS, tmp_path, share=True)
    assert sum(rows_run) == 8  # 4 candidates of 2 prompts: for both verifiers, both budgets and the first samples
    later = both.model_copy(update={"verifier": ["clip", "image_reward"]})
    samples = run(later, PROMPTS, tmp_path, only=[Cell("random", "clip", 8)], share=True)
    assert sum(rows_run) == 8 and set(samples[0]["scores"]) == {"clip", "aesthetic", "image_reward"}
    lines = parse_jsonl((tmp_path / "samples.jsonl").read_text(), tmp_path)
    assert len(lines) == 8 + 2 and lines[-1] == samples[-1]
    image = read_found(samples[0], tmp_path)
    assert samples[0]["scores"]["image_reward"]["best"] == pytest.approx(
        float(load("image_reward", image_model="shapes-flux")(image[None], PROMPTS[:1])), abs=1e-5
    )


@pytest.mark.parametrize("search", ["random", "zero_order n=2"])
def test_a_search_goes_on_from_a_smaller_budget_and_a_smaller_one_reads_a_larger(tmp_path, rows_run, search):
    settings = SETTINGS.model_copy(update={"search": [search], "budget": [4]})
    small = run(settings, PROMPTS, tmp_path / "grown")
    began = sum(rows_run)
    large = run(settings.model_copy(update={"budget": [8]}), PROMPTS, tmp_path / "grown")
    assert sum(rows_run) - began == 4 and [s["nfe"] for s in small + large] == [4, 4, 8, 8]
    alone = run(settings.model_copy(update={"budget": [8, 4]}), PROMPTS, tmp_path / "alone")
    for one, other in zip(large + small, alone, strict=True):
        assert one["key"] == other["key"] and one["score"]["best"] == pytest.approx(other["score"]["best"], abs=1e-4)


def test_the_noise_found_is_what_is_sampled_again(tmp_path):
    """Sampled again in as many steps as it was found with, the winner is itself."""
    once = Cell("zero_order n=2", "clip", 8)
    cells = [once, replace(once, final_steps=2), Cell("svdd b=1 m=2", "clip", 8, final_steps=2)]
    samples = run(SETTINGS, PROMPTS[:1], tmp_path, only=cells)
    found, again = (read_found(sample, tmp_path) for sample in samples[:2])
    assert (found - again).abs().max() <= 1.01 / 255
    assert samples[1]["nfe"] == 10 and samples[1]["flops"] == pytest.approx(samples[0]["flops"] * 10 / 8)
    assert "svdd b=1 m=2 finds has no noise to sample again" in samples[2]["error"]


def test_what_the_judge_cannot_read_is_not_asked_again(tmp_path, monkeypatch):
    settings = SETTINGS.model_copy(update={"budget": [2]})
    samples = run(settings, ["a bear on a skateboard"], tmp_path, judges=["shapes-judge"])
    assert samples[0]["scores"]["shapes-judge"] == {}
    monkeypatch.setattr(bench, "make_sampler", None)
    assert (
        run(settings, ["a bear on a skateboard"], tmp_path, judges=["shapes-judge"])[0]["scores"]
        == samples[0]["scores"]
    )


def test_noise_that_a_scheduler_scales_by_its_steps_is_sampled_again_at_its_own_scale(tmp_path):
    scheduler = "EulerDiscreteScheduler timestep_spacing=leading"
    settings = SETTINGS.model_copy(update={"model": "shapes-sdxl", "scheduler": scheduler})
    (again,) = run(settings, PROMPTS[:1], tmp_path, only=[Cell("random", "clip", 2, final_steps=8)])
    loading = LoadOptions(device="cpu", scheduler=scheduler)
    sampler = make_sampler("shapes-sdxl", PROMPTS[:1], steps=8, pipe_args={}, loading=loading)
    image = sampler.decode(sampler.run(sampler.prior(torch.tensor([again["key"]]), torch.tensor([0]))).x)[0]
    assert (read_found(again, tmp_path) - image).abs().max() <= 2.01 / 255


class Down:
    """An endpoint that is down at first."""

    name, up = "down", False

    def __call__(self, images, prompts):
        return images.mean((1, 2, 3)) if self.up else torch.full((len(images),), torch.nan)


def test_what_could_not_be_scored_is_tried_again_where_samples_are_shared(tmp_path, monkeypatch, rows_run):
    monkeypatch.setattr("diffscale.bench.networks.load_verifier", lambda *_, **__: Down())
    settings = SETTINGS.model_copy(update={"budget": [4]})
    with pytest.warns(UserWarning):
        (failed, _) = run(settings, PROMPTS, tmp_path, share=True)
    assert "None of the 2 candidates" in failed["error"]
    monkeypatch.setattr(Down, "up", True)
    (mended, _) = run(settings, PROMPTS, tmp_path, share=True)
    assert mended["dropped"] == 0 and "error" not in mended and sum(rows_run) == 4


def test_without_a_verifier_the_first_noise_is_sampled(tmp_path):
    (plain,) = run(SETTINGS, PROMPTS[:1], tmp_path, only=[Cell("random", "", 0)])
    key = PromptRepeat(PROMPTS[0], 0).key(SETTINGS.seed)
    assert plain["key"] == noise.fold(key, "candidate", 0) and plain["nfe"] == 2
    sampler = make_sampler("shapes-flux", PROMPTS, steps=2, pipe_args={}, loading=LoadOptions(device="cpu"))
    image = sampler.decode(sampler.run(sampler.prior(torch.tensor([plain["key"]]), torch.tensor([0]))).x)[0]
    assert (read_found(plain, tmp_path) - image).abs().max() <= 1.01 / 255


class Brightest:
    """Likes bright pictures, and remembers for which prompts it was told that one was chosen."""

    name, came = "brightest", []

    def __call__(self, images, prompts):
        return images.flatten(1).sum(1)

    def begin(self):
        self.came.clear()

    def choose(self, image, prompt):
        self.came.append(prompt)


def test_prompts_come_to_a_set_verifier_in_an_order_by_chance_repeat_after_repeat(tmp_path, monkeypatch):
    monkeypatch.setattr("diffscale.bench.networks.load_verifier", lambda *_, **__: Brightest())
    settings = SETTINGS.model_copy(update={"steps": 1, "budget": [1], "repeats": 2})
    prompts = [
        f"a {color} circle" for color in ("red", "blue", "green", "yellow", "purple", "orange", "white", "black")
    ]
    samples = run(settings, prompts, tmp_path / "one")
    order = list(Brightest.came)
    halves = order[:8], order[8:]
    assert all(set(half) == set(prompts) for half in halves) and len({*map(tuple, halves), tuple(prompts)}) == 3
    assert [(s["prompt"], s["repeat"]) for s in samples] == [(p, r) for p in prompts for r in range(2)]
    run(settings, prompts[::-1], tmp_path / "other")
    assert Brightest.came == order
