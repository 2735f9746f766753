"""A draft is what the model gives of the same noise in fewer steps, at the price of these."""

import families
import pytest
import torch
from pipelines import PROMPTS

from diffscale._util.errors import DiffscaleError, Unsuited
from diffscale.engine.driver import run_searches
from diffscale.engine.ledger import price
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.samplers.whole import sampler_of
from diffscale.testing import NearPoint
from diffscale.types import Draft

EVERY = {**families.OTHERS, **families.WINDOWED, **families.WHOLE}


@pytest.mark.parametrize("name", EVERY)
def test_of_every_pipeline_it_is_a_call_in_fewer_steps(name):
    """The reference is a sampler that was made with fewer steps, whose runs are tested against the pipeline's calls."""
    tiny, scheduler, *_ = EVERY[name]
    t = tiny(scheduler(), True)
    whole = sampler_of(t.pipe, PROMPTS, 8, t.args)
    drafter = whole.drafter(3)
    short = sampler_of(t.pipe, PROMPTS, drafter.cheap.intervals, t.args)
    keys, rows = torch.arange(2), torch.tensor([1, 0])
    # By the unit noise that both start from: solvers on few steps may start at another scale.
    start = whole.prior(keys, rows)
    done = drafter.run(start)
    alone = short.run(short.prior(keys, rows))
    assert done.step == whole.steps and drafter.nfe == short.steps == drafter.steps < whole.steps
    assert torch.allclose(done.x, alone.x, atol=2e-5)
    assert torch.allclose(drafter.decode(done.x), short.decode(alone.x), atol=2e-5)


@pytest.mark.parametrize("name", ["sd_image", "flux_image", "sd_inpaint"])
def test_of_a_pipeline_that_begins_within_its_grid_too(name):
    tiny, scheduler, *_ = EVERY[name]
    t = tiny(scheduler(), True)
    whole = sampler_of(t.pipe, PROMPTS, 10, {**t.args, "strength": 0.3})
    assert whole.steps == 3 and whole.drafter(2).nfe == 2
    try:
        assert whole.drafter(1).nfe == 1
    except DiffscaleError as error:  # where rounding down leaves none
        assert "draft in more steps" in str(error)


@pytest.mark.parametrize("process", ["flow", "vp", "ve"])
@pytest.mark.parametrize("solver", ["ddim", "heun"])
def test_of_our_own_solvers_too(process, solver):
    whole, short = (ToySampler(steps=steps, process=process, solver=solver) for steps in (12, 3))
    keys, rows = torch.arange(5), torch.zeros(5, dtype=torch.int64)
    drafter = whole.drafter(short.steps)
    assert torch.equal(drafter.run(whole.prior(keys, rows)).x, short.run(short.prior(keys, rows)).x)
    assert drafter.forwards == 5 * short.steps and whole.forwards == 0
    assert whole.drafter(short.steps) is drafter


def test_other_prompts_are_drafted_for_after_they_were_set():
    sampler = ToySampler(("a point",), 8)
    sampler.drafter(3)
    sampler.prompts = ["another point"]
    assert sampler.drafter(3).cheap.prompts == ["another point"]


def test_a_share_of_an_evaluation_is_rounded_up_over_all_rows(monkeypatch):
    sampler = ToySampler(steps=10)
    monkeypatch.setattr(sampler.drafter(3), "nfe", 0.1)
    start = sampler.prior(torch.arange(7), torch.zeros(7, dtype=torch.int64))
    assert [price(Draft(start[:rows], 3), sampler) for rows in (1, 3, 7)] == [1, 1, 1]
    monkeypatch.setattr(sampler.drafter(3), "nfe", 2.6)
    assert [price(Draft(start[:rows], 3), sampler) for rows in (1, 5)] == [3, 13]


def test_what_cannot_be_drafted_is_told_in_the_line_that_asked():
    def search(env):
        start = env.prior(2)
        moved = yield from env.run(start, 2)
        for state, steps, via, said in (
            (moved, 3, "", "noises at step 0"),
            (start, 0, "", "1 or more, not steps=0"),
            (start, 3, "nothing", "Unknown way of drafting 'nothing'"),
        ):
            with pytest.raises(DiffscaleError, match=said):
                yield from env.draft(state, steps, via)
        assert env.drafts == ("",) and env.draft_nfe(3) == 3
        yield from env.evaluate(start)

    (result,) = run_searches([Task(search, 0, 1, 100)], ToySampler(steps=10), NearPoint())
    assert result.ledger.nfe == 2 * 2 + 2 * 10 and result.ledger.scheduler_steps == 24


def test_a_model_whose_steps_are_stated_one_by_one_has_no_draft():
    tiny, scheduler, *_ = families.WINDOWED["flux_dev"]
    t = tiny(scheduler(), False)
    sampler = sampler_of(t.pipe, PROMPTS, 4, {**t.args, "sigmas": [1.0, 0.7, 0.4, 0.1]})
    with pytest.raises(DiffscaleError, match="leave timesteps and sigmas out"):
        sampler.drafter(2)

    class Bare:
        steps, drafter_of = 4, None

    with pytest.raises(Unsuited, match="cannot be drafted"):
        price(Draft(sampler.prior(torch.arange(1), torch.zeros(1, dtype=torch.int64)), 2), Bare())
