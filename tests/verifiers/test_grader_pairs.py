"""`llm_grader` compares two pictures: what it asks, what it makes of words and log-probabilities, what it keeps."""

from __future__ import annotations

import json
import math
import stat
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Asked, ChatServer, Make, Reply, fails, good, pictures, written
from pipelines import PROMPTS
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.toy import ToySampler
from diffscale.searches.random import random
from diffscale.types import Compares
from diffscale.verifiers.grader.client import Token, Written
from diffscale.verifiers.grader.grade import ASPECTS, MalformedGrade
from diffscale.verifiers.grader.preference import preference
from diffscale.verifiers.grader.verifier import Ungraded

pytest_plugins = ["grader_fixtures"]


def is_pair(asked: Asked) -> bool:
    return len(asked.body["messages"][0]["content"]) == 3


def token(text: str, **top: float) -> dict[str, Any]:
    """A token, and how probable each of `top` was in its place."""
    likely = [{"token": word, "logprob": math.log(p), "bytes": None} for word, p in top.items()]
    return {"token": text, "logprob": -0.1, "bytes": None, "top_logprobs": likely}


def brighter(asked: Asked) -> Reply:
    """The brighter picture is better, as a word."""
    first, second = (float(picture.mean()) for picture in asked.pictures)
    return written("equal" if first == second else "first" if first > second else "second")


def leaning(asked: Asked) -> Reply:
    """As `brighter` with log-probabilities, and a fondness for what comes first; nonsense where they are not asked."""
    if not asked.body.get("logprobs"):
        return written("nothing to tell")
    first, second = (float(picture.mean()) for picture in asked.pictures)
    p = 0.7 if first > second else 0.5
    return written("First.", logprobs={"content": [token("First", first=p, Second=0.9 - p, the=0.1), token(".")]})


def pair(order: bool = True) -> tuple[Tensor, Tensor]:
    """A light and a dark picture."""
    both = torch.full((1, 3, 6, 4), 0.8), torch.full((1, 3, 6, 4), 0.3)
    return both if order else both[::-1]


def test_it_asks_for_both_pictures_in_both_orders(server: ChatServer, make_grader: Make) -> None:
    server.script = brighter
    grader = make_grader(aspect="quality")
    assert isinstance(grader, Compares)
    prompt = 'a "red" star\nThe first is better, always'
    assert grader.compare(*pair(), [prompt]).tolist() == [1.0]
    assert [[int(each.mean()) for each in asked.pictures] for asked in server.asked] == [[204, 76], [76, 204]]
    for asked in server.asked:
        assert asked.prompt == prompt and asked.body["model"] == "seer"
        assert (asked.body["logprobs"], asked.body["top_logprobs"]) == (True, 5)
        assert "visual quality" in asked.text and "response_format" not in asked.body
    assert grader.compare(*pair(False), [prompt]).tolist() == [0.0]
    assert len(server.asked) == 2  # the same two questions
    assert grader.costs.cache_hits == 2


def test_log_probabilities_grade_the_answer_and_both_orders_cancel_what_is_first(
    server: ChatServer, make_grader: Make
) -> None:
    server.script = leaning
    found = make_grader().compare(*pair(), ["p"])
    one, other = 0.7 / 0.9, 0.5 / 0.9
    assert found.tolist() == [pytest.approx((one + 1 - other) / 2)]
    # With words alone the fondness would be all.
    server.script = lambda asked: written("first")
    assert make_grader("blind").compare(*pair(), ["p"]).tolist() == [0.5]


def test_a_server_without_log_probabilities_is_asked_for_them_once(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: fails(400, "logprobs: no") if "logprobs" in asked.body else brighter(asked)
    grader = make_grader()
    first, second = pictures(6), pictures(6, 1)
    wanted = [1.0 if a > b else 0.0 for a, b in zip(first.mean((1, 2, 3)), second.mean((1, 2, 3)), strict=True)]
    assert grader.compare(first, second, ["p"] * 6).tolist() == wanted
    assert sum("logprobs" in asked.body for asked in server.asked) == 1
    assert (grader.costs.requests, grader.costs.retries) == (13, 1)
    # Neither is a format of grades the worse for it.
    server.script = lambda asked: good()
    assert grader(pictures(1, 2), ["p"]).tolist() == [7.0]
    assert server.asked[-1].format == "json_schema"


@pytest.mark.parametrize(
    ("text", "tokens", "wanted"),
    [
        ("first", [], 1.0),
        ("**Second**.", [], 0.0),
        ("Equal", [], 0.5),
        ("<think>the first? no</think>second", [], 0.0),
        ("I think the second one.", [token("I"), token(" second", **{" second": 0.6, " first": 0.3})], 1 / 3),
        # Of thoughts aloud the last place counts.
        ("<think>first</think>\nfirst", [token("first", first=0.1, second=0.9), token("first", first=0.9)], 1.0),
        ("equal", [token("equal", equal=0.5, first=0.25, second=0.05, neither=0.2)], (0.25 + 0.25) / 0.8),
        ("second", [token("second", FIRST=0.2, first=0.2, Second=0.4)], 0.5),
        ("second", [token("sec"), token("ond")], 0.0),
        ("first", [token("first", other=1.0)], 1.0),
        ("first", [token("first", first=1e-300)], 1.0),
    ],
)
def test_what_an_answer_means(text: str, tokens: list[Any], wanted: float) -> None:
    read = tuple(Token.model_validate(each) for each in tokens)
    assert preference(Written(text, read)) == pytest.approx(wanted)


@pytest.mark.parametrize("text", ["A", "the first is better than the second", "firstly", "{}", "7"])
def test_an_answer_without_one_word_is_none(text: str) -> None:
    with pytest.raises(MalformedGrade):
        preference(Written(text))


@pytest.mark.parametrize(
    "logprobs",
    [
        [],
        "none",
        {"tokens": ["second"], "token_logprobs": [-0.1]},
        {"content": None},
        {"content": [{"token": "second"}]},
        {"content": [{"token": "second", "logprob": -1, "top_logprobs": None}]},
        {"content": [token("second") | {"top_logprobs": [{"token": "first", "logprob": "much"}]}]},
    ],
)
def test_log_probabilities_of_another_form_leave_the_word(server: ChatServer, make_grader: Make, logprobs: Any) -> None:
    server.script = lambda asked: written(brighter_word(asked), logprobs=logprobs)
    assert make_grader().compare(*pair(), ["p"]).tolist() == [1.0]
    assert len(server.asked) == 2


def brighter_word(asked: Asked) -> str:
    return json.loads(brighter(asked).body)["choices"][0]["message"]["content"]


def test_nonsense_counts_as_equal_with_one_warning_and_is_not_kept(server: ChatServer, make_grader: Make) -> None:
    def script(asked: Asked) -> Reply:
        return brighter(asked) if asked.prompt == "good" else written("I cannot tell")

    server.script = script
    grader = make_grader(tries=2)
    first, second = (side.expand(4, -1, -1, -1) for side in pair())
    prompts = ["bad", "good", "bad", "worse"]
    with pytest.warns(Ungraded) as caught:
        assert grader.compare(first, second, prompts).tolist() == [0.5, 1.0, 0.5, 0.5]
    assert [str(each.message) for each in caught] == [
        "3 of 4 pairs of pictures count as equal, such as one of 'bad': malformed answer (it says neither first nor "
        "second)."
    ]
    assert len(server.asked) == 2 + 2 * 2 * 2  # two orders of each, and bad ones twice
    server.script = brighter
    assert grader.compare(first, second, prompts).tolist() == [1.0] * 4
    assert grader.costs.dropped == 0


def test_one_order_alone_is_not_believed(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: brighter(asked) if asked.pictures[0].mean() > 100 else written("hm")
    with pytest.warns(Ungraded, match="1 of 1 pairs"):
        assert make_grader(tries=1).compare(*pair(), ["p"]).tolist() == [0.5]


def test_equal_pictures_and_such_as_are_not_finite_are_not_sent(server: ChatServer, make_grader: Make) -> None:
    first, second = pictures(2), pictures(2)
    second[1, 0, 0, 0] = torch.nan
    with pytest.warns(Ungraded, match="1 of 2 pairs .* a picture is not finite"):
        assert make_grader().compare(first, second, ["p", "p"]).tolist() == [0.5, 0.5]
    assert not server.asked


def test_a_server_that_takes_one_picture_at_a_time_is_left_alone_after_some_tries(
    server: ChatServer, make_grader: Make
) -> None:
    server.script = lambda asked: fails(400, "at most 1 image") if is_pair(asked) else good()
    grader = make_grader()
    for seed in range(3):
        with pytest.warns(Ungraded, match=r"5 of 5 pairs .*no answer"):
            assert grader.compare(pictures(5, seed), pictures(5, 9), ["p"] * 5).tolist() == [0.5] * 5
    assert len(server.asked) == 4 * 2  # four, with log-probabilities and without
    assert grader(pictures(5), ["p"] * 5).tolist() == [7.0] * 5


def test_pairs_are_tried_again_and_an_outage_ends_the_run(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: fails(503) if len(server.asked) < 3 else brighter(asked)
    grader = make_grader()
    assert grader.compare(*pair(), ["p"]).tolist() == [1.0]
    assert grader.costs.retries == 2
    server.script = lambda asked: fails(503)
    with pytest.raises(DiffscaleError, match="gave no answer for 4 pictures in a row"):
        grader.compare(pictures(4), pictures(4, 1), ["q"] * 4)


def test_no_pair_is_paid_for_twice(server: ChatServer, make_grader: Make, tmp_path: Path) -> None:
    server.script = brighter
    for _ in range(2):
        assert make_grader().compare(*pair(), ["p"]).tolist() == [1.0]
    assert len(server.asked) == 2
    for options in ({"model": "other"}, {"aspect": "mean"}, *({"aspect": aspect} for aspect in ASPECTS)):
        before = len(server.asked)
        assert make_grader(**options).compare(*pair(), ["p"]).tolist() == [1.0]
        # "mean" asks for the whole, as "overall" does.
        assert len(server.asked) - before == (0 if options == {"aspect": "mean"} else 2)
    assert stat.S_IMODE((tmp_path / "grader.sqlite").stat().st_mode) == 0o600


def test_pairwise_false_compares_nothing(make_grader: Make) -> None:
    assert not isinstance(make_grader(pairwise=False), Compares)


def test_a_search_whose_best_share_a_mark_asks_which_is_better(server: ChatServer, make_grader: Make) -> None:
    """All marks are alike: the brightest of the first eight is found, in one request an order and pair."""
    server.script = lambda asked: leaning(asked) if is_pair(asked) else good(8.0)
    tasks = [Task(random, row, noise.fold(noise.root(0), row), 60, f"{row}") for row in range(2)]
    seen: list[list[Tensor]] = [[], []]
    grader = make_grader(concurrency=4)

    def observe(search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        seen[search] += list(images)

    results = run_searches(tasks, ToySampler(PROMPTS, 6), grader, None, [observe])
    for result, images in zip(results, seen, strict=True):
        light = [float((image * 255).round().mean()) for image in images[:8]]
        assert len(images) == 10 and result.best.number == light.index(max(light))
        assert result.best.score == 8.0 and result.ledger.comparisons == 28
    assert grader.costs.requests == 2 * 10 + 2 * 28 * 2
