"""What is learned from a tape, of which prompts, and that a tape with values is searched as the model is."""

import pytest
import torch

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches import choose_search
from diffscale.tape.profile import measured
from diffscale.tape.record import Plan, record
from diffscale.tape.replay import replay
from diffscale.tape.sampler import TapeSampler
from diffscale.tape.tape import DraftKind, Tape, load_tape
from diffscale.tape.value import foretold, is_held_out, learn
from diffscale.tape.verifiers import recorded_names, scores_of
from diffscale.testing import NearPoint, points
from diffscale.verifiers.valued import Valued

PROMPTS = [f"point {i}" for i in range(24)]
PLAN = Plan(16, seed=3, predictions=(2, 4, 6), drafts=((2, ""), (3, "")), views=True)


class Sees(NearPoint):
    """It sees where the point is, in numbers that float16 holds, and the score."""

    def view(self, images, prompts):
        seen = points(images)
        return torch.cat([seen, seen**2, self(images, prompts)[:, None]], 1).half().double()


@pytest.fixture(scope="module")
def tape(tmp_path_factory):
    path = tmp_path_factory.mktemp("tape") / "toy.tape"
    made = {"near": Sees(), "far": NearPoint((-4.0, 0.0))}
    recorded = record(ToySampler(PROMPTS, 8), made, PLAN, path, batch_size=20)
    loaded = load_tape(path)
    assert [*loaded.views] == ["near"] and torch.equal(loaded.views["near"], recorded.views["near"])
    assert loaded.views["near"].shape == (24, 16, 5, 5) and loaded.views["near"].dtype == torch.float16
    return loaded


def artificial(slope=None, prompts=200, seed=0):
    """A tape whose finished samples are `slope` (one for each prompt) times what is seen first, whatever the score."""
    generator = torch.Generator().manual_seed(seed)
    seen = torch.randn(prompts, 6, 2, 3, generator=generator)
    slope = torch.ones(prompts) if slope is None else slope
    of_prompt = 9 * torch.randn(prompts, 1, generator=generator)  # which tells nothing within a prompt
    final = slope[:, None] * seen[:, :, 0, 0] + 0.1 * torch.randn(prompts, 6, generator=generator) + of_prompt
    scores = torch.cat([seen[..., -1], final[..., None]], -1)
    names = [f"prompt {i}" for i in range(prompts)]
    drafts, levels = [DraftKind(2, "", 2.0, 2)], [1.0, 0.75, 0.5, 0.25, 0.0]
    return Tape(names, levels, 0, [1], drafts, {"near": scores}, views={"near": seen.half()})


def test_what_a_view_tells_of_the_end_is_learned_within_prompts_and_look_by_look():
    model, (prediction, draft) = learn(artificial(), "near")
    assert str(prediction.look) == "predictions after 1 steps" and str(draft.look) == "drafts of 2 steps"
    assert prediction.valued > 0.95 and abs(prediction.plain) < 0.2
    assert abs(draft.valued) < 0.2  # another look, which knows nothing
    assert [(each.done, each.via) for each in model.stages] == [(0.0, None), (0.5, "")]
    assert float(model.weights[0, 0]) == pytest.approx(1, abs=0.15)
    assert float(model.weights[1].abs().max()) < 0.1


def test_values_are_on_the_scale_of_scores():
    tape = artificial()
    model, _ = learn(tape, "near")
    values = foretold(tape, model)
    assert values.shape == tape.scores["near"].shape and torch.equal(values[..., -1], tape.finals("near"))
    assert float(values[..., 0].mean()) == pytest.approx(float(tape.finals("near").mean()), abs=1e-3)


def test_it_is_judged_on_prompts_that_it_was_not_learned_from():
    names = [f"prompt {i}" for i in range(200)]
    held_out = torch.tensor([is_held_out(name) for name in names])
    assert 0.15 < held_out.float().mean() < 0.35
    # On the prompts that are held out what is seen tells the contrary.
    _, (prediction, _) = learn(artificial(torch.where(held_out, -1.0, 1.0)), "near")
    assert prediction.valued < 0.2  # the penalty that leaves the score alone is the best


def test_where_there_is_nothing_to_learn_the_score_stays():
    generator = torch.Generator().manual_seed(1)
    tape = artificial()
    final = tape.views["near"][..., 0, -1].float() + torch.randn(200, 6, generator=generator)
    tape.scores["near"][..., -1] = final
    _, (prediction, _) = learn(tape, "near")
    assert prediction.valued == pytest.approx(prediction.plain, abs=0.02) and prediction.plain > 0.5


def test_what_could_not_be_scored_is_left_out():
    whole, torn = artificial(), artificial()
    torn.views["near"][::3, 0] = torch.nan
    torn.scores["near"][::3, 0, :2] = -torch.inf
    torn.scores["near"][1::3, 1, -1] = -torch.inf
    model, (prediction, _) = learn(torn, "near")
    assert prediction.valued > 0.95 and torch.allclose(model.weights, learn(whole, "near")[0].weights, atol=0.1)
    assert bool(foretold(torn, model)[0, 0, 0] == -torch.inf)


@pytest.mark.parametrize("search", ["draft", "draft steps=2,3 at=4", "halving at=2,6", "auto"])
def test_a_search_with_values_on_a_tape_finds_what_it_finds_on_the_model(tape, search, tmp_path):
    learned, _ = learn(tape, "near")
    learned.save(tmp_path / "near.value")
    text, made = f"valued file={tmp_path / 'near.value'} of=near", choose_search(search).make()
    replayed = replay(tape, made, text, 40, judges=["far"])
    tasks = [Task(made, row, key, 40) for row, key in enumerate(TapeSampler(tape).keys)]
    results = run_searches(tasks, ToySampler(PROMPTS, 8), Valued(Sees(), learned))
    assert replayed.score.tolist() == pytest.approx([result.best.score for result in results], abs=1e-4)
    assert replayed.nfe.tolist() == [result.ledger.nfe for result in results]
    assert recorded_names(tape, f"ensemble of=far,{text.replace(' ', ':')}") == ["far", *recorded_names(tape, text)]
    assert torch.equal(scores_of(tape, text), foretold(tape, learned))
    assert measured(tape, text).agreement != measured(tape, "near").agreement


def test_a_recording_with_views_goes_on_and_is_none_without(tape, tmp_path):
    path = tmp_path / "toy.tape"
    tape.rows(slice(0, 1)).save(tmp_path / "toy.tape.0")
    about = {"prompts": PROMPTS, "batch_size": 20}
    assert dict(tape.about) == about
    both = {"near": Sees(), "far": NearPoint((-4.0, 0.0))}
    with pytest.raises(DiffscaleError, match=r"views was \['near'\], now \[\]"):
        record(ToySampler(PROMPTS, 8), both, Plan(**{**vars(PLAN), "views": False}), path, batch_size=20)
    went_on = record(ToySampler(PROMPTS, 8), both, PLAN, path, batch_size=20)
    assert torch.equal(went_on.views["near"], tape.views["near"])


def test_what_no_value_model_can_be_learned_from_is_told(tape, tmp_path):
    with pytest.raises(DiffscaleError, match="None of far has views to keep"):
        record(ToySampler(PROMPTS, 8), {"far": NearPoint()}, PLAN, tmp_path / "a.tape")
    for given, verifier, said in (
        (tape, "nobody", "Unknown verifier of the tape 'nobody'"),
        (tape, "far", "no views of far: record one with `diffscale tape record --views`"),
        (tape.rows([0]), "near", "of many prompts"),
    ):
        with pytest.raises(DiffscaleError, match=said):
            learn(given, verifier)
    model, _ = learn(tape, "near")
    with pytest.raises(DiffscaleError, match="no views of near that this value model takes"):
        foretold(Tape(**{**vars(tape), "views": {}}), model)
