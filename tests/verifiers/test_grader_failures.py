"""`llm_grader` and servers that fail: who waits how long, who is asked again, who is dropped, and when to stop."""

from __future__ import annotations

import gzip
import json
import time
from email.utils import formatdate

import pytest
from chat_server import Asked, ChatServer, Make, Reply, Script, Time, fails, good, pictures, written

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.verifier import Ungraded

pytest_plugins = ["grader_fixtures"]


def test_retry_after_is_honoured(server: ChatServer, make_grader: Make) -> None:
    server.replies = [fails(429, Retry_After="17"), good(3.0)]
    clock = Time()
    grader = make_grader(timing=clock.timing)
    assert grader(pictures(1), ["p"]).tolist() == [3.0]
    assert clock.waits == [17 + 1]  # and then the jitter, or all come back at once
    assert (grader.costs.requests, grader.costs.retries) == (2, 1)


def test_retry_after_may_be_a_date(server: ChatServer, make_grader: Make) -> None:
    clock = Time(jitter=0.0)
    server.replies = [fails(503, Retry_After=formatdate(clock.at + 40, usegmt=True)), good(3.0)]
    assert make_grader(timing=clock.timing)(pictures(1), ["p"]).tolist() == [3.0]
    assert clock.waits == [40.5]


def test_retry_after_holds_every_picture(server: ChatServer, make_grader: Make) -> None:
    clock = Time(frozen=True)  # as for threads that come while the first one waits
    server.replies = [fails(429, Retry_After="30"), good()]
    make_grader(timing=clock.timing)(pictures(2), ["limited", "other"])
    assert clock.waits == [31, 30, 30]


def test_a_server_that_wants_to_be_left_alone_for_long_ends_the_run(server: ChatServer, make_grader: Make) -> None:
    server.replies = [fails(429, "quota of the day is used up", Retry_After="86400")]
    clock = Time()
    with pytest.raises(DiffscaleError, match=r"alone for 86400 s \(HTTP 429 quota of the day is used up\)"):
        make_grader(timing=clock.timing)(pictures(1), ["p"])
    assert (len(server.asked), clock.waits) == (1, [])


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_failures_that_pass_are_waited_out_longer_each_time(server: ChatServer, make_grader: Make, status: int) -> None:
    server.replies = [fails(status)] * 8 + [good(2.0)]
    longest, shortest = Time(jitter=1.0), Time(jitter=0.0)
    assert make_grader(timing=longest.timing, tries=9)(pictures(1), ["p"]).tolist() == [2.0]
    assert longest.waits == [1, 2, 4, 8, 16, 32, 60, 60]
    server.replies = [fails(status)] * 8 + [good(2.0)]
    assert make_grader(timing=shortest.timing, tries=9)(pictures(1), ["q"]).tolist() == [2.0]
    assert shortest.waits == [0.5, 1, 2, 4, 8, 16, 30, 30]


def test_a_picture_that_the_server_stumbles_over_is_dropped(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: fails(500, "CUDA error") if asked.prompt == "bad" else good(float(asked.prompt))
    grader = make_grader(tries=4)
    with pytest.warns(Ungraded, match=r"'bad': no answer \(HTTP 500 CUDA error\)"):
        scores = grader(pictures(3), ["1", "bad", "3"])
    assert scores[[0, 2]].tolist() == [1.0, 3.0]
    assert scores[1].isnan()
    assert [asked.prompt for asked in server.asked] == ["1", *["bad"] * 4, "3"]
    assert grader.costs.dropped == 1


def test_no_whole_answer_in_time_is_asked_for_again(server: ChatServer, make_grader: Make) -> None:
    def script(asked: Asked) -> Reply:
        if len(server.asked) == 1:
            time.sleep(0.6)
        return good(5.0)

    server.script = script
    assert make_grader(timeout=0.2)(pictures(1), ["p"]).tolist() == [5.0]
    assert len(server.asked) == 2
    slow = good(5.0)
    slow.pause = 0.05  # each byte is in time, the whole is not
    server.script = lambda asked: slow if asked.prompt == "slow" else good(6.0)
    began = time.monotonic()
    with pytest.warns(Ungraded, match=r"no answer \(ReadTimeout no whole answer in 0.2 s\)"):
        assert make_grader(timeout=0.2, tries=2)(pictures(1), ["slow"]).isnan().all()
    assert time.monotonic() - began < 2  # the answer takes 20 s


@pytest.mark.parametrize("cut", [-1, 0, 40])
def test_a_dropped_connection_is_asked_again(server: ChatServer, make_grader: Make, cut: int) -> None:
    broken = good(9.0)
    broken.cut = cut
    server.replies = [broken, broken, good(5.0)]
    grader = make_grader()
    assert grader(pictures(1), ["p"]).tolist() == [5.0]
    assert (grader.costs.requests, grader.costs.prompt_tokens) == (3, 100)


HUGE = 50 * 2**20
HUGE_ANSWERS = {
    "a reason": lambda: good(9.0, reason="x" * HUGE),
    "blanks": lambda: Reply(" " * HUGE + str(good(9.0).body)),
    "an error": lambda: Reply("x" * HUGE, 500),
    "packed": lambda: Reply(gzip.compress(b" " * HUGE, 1) * 2, headers={"Content-Encoding": "gzip"}),
}


@pytest.mark.parametrize("what", HUGE_ANSWERS)
def test_a_huge_answer_is_not_read_to_its_end(what: str, server: ChatServer, make_grader: Make) -> None:
    huge = HUGE_ANSWERS[what]()
    server.script = lambda asked: huge if asked.prompt == "huge" else good(6.0)
    began = time.monotonic()
    with pytest.warns(Ungraded, match=r"'huge': malformed answer \(the answer goes on beyond [\d,]+ bytes\)"):
        scores = make_grader(tries=2)(pictures(2), ["huge", "p"])
    assert scores[0].isnan() and scores[1] == 6.0
    assert time.monotonic() - began < 5
    assert all(asked.headers["Accept-Encoding"] == "identity" for asked in server.asked)


@pytest.mark.parametrize("body", ["<html>Please log in</html>", '{"error": "overloaded"}', '{"choices": []}'])
def test_a_200_that_is_no_completion_is_a_failure(server: ChatServer, make_grader: Make, body: str) -> None:
    server.replies = [Reply(body), good(5.0)]
    assert make_grader()(pictures(1), ["p"]).tolist() == [5.0]
    assert len(server.asked) == 2


@pytest.mark.filterwarnings("ignore::diffscale.verifiers.grader.verifier.Ungraded")
def test_a_server_that_is_not_there_is_told(server: ChatServer, make_grader: Make) -> None:
    server.close()
    with pytest.raises(DiffscaleError, match=r"4 pictures in a row \(ConnectError"):
        make_grader(tries=2)(pictures(5), ["p"] * 5)


def test_an_outage_ends_the_run_and_is_counted_over_calls(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: fails(500) if asked.prompt == "bad" else good()
    grader = make_grader(tries=2)
    for prompts in (["bad"] * 2 + ["fine"], ["bad"], ["bad"] * 2):
        with pytest.warns(Ungraded):
            grader(pictures(len(prompts), seed=len(server.asked)), prompts)
    with pytest.raises(DiffscaleError, match=r"no answer for 4 pictures in a row \(HTTP 500 no\)"):
        grader(pictures(1, seed=99), ["bad"])


def test_an_outage_stops_the_other_threads_too(server: ChatServer, make_grader: Make) -> None:
    server.replies = [fails(500)]
    with pytest.raises(DiffscaleError, match="4 pictures in a row"):
        make_grader(tries=1, concurrency=2)(pictures(40), ["p"] * 40)
    assert len(server.asked) < 8


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "put a key that is valid there into the environment variable OPENAI_API_KEY"),
        (402, "pay there"),
        (404, "the model 'seer' is there"),
        (405, "check base_url"),
        (302, "check base_url"),
    ],
)
def test_settings_that_will_not_do_are_told_at_once(
    server: ChatServer, make_grader: Make, status: int, says: str
) -> None:
    server.replies = [fails(status, "because", Location=f"{server.url}/elsewhere")]
    with pytest.raises(DiffscaleError, match=f"HTTP {status} because.*{says}"):
        make_grader()(pictures(1), ["p"])
    assert len(server.asked) == 1


def accepts(*formats: str | None) -> Script:
    """A server that knows these formats only."""

    def script(asked: Asked) -> Reply:
        return good(5.0) if asked.format in formats else fails(400, "response_format is unavailable")

    return script


@pytest.mark.parametrize(
    ("known", "first"),
    [
        ({"json_schema", "json_object", None}, ["json_schema"]),
        ({"json_object", None}, ["json_schema", "json_object"]),
        ({None}, ["json_schema", "json_object", None]),
    ],
)
def test_a_refused_schema_falls_back_once(
    server: ChatServer, make_grader: Make, known: set[str | None], first: list[str | None]
) -> None:
    server.script = accepts(*known)
    grader = make_grader()
    assert grader(pictures(3), ["p"] * 3).tolist() == [5.0] * 3
    assert [asked.format for asked in server.asked] == [*first, first[-1], first[-1]]
    assert grader.costs.retries == len(first) - 1


def test_a_refused_picture_is_dropped_and_changes_nothing(server: ChatServer, make_grader: Make) -> None:
    server.script = lambda asked: fails(400, "unsafe picture") if asked.prompt == "bad" else good()
    grader = make_grader()
    with pytest.warns(Ungraded, match="unsafe picture"):
        scores = grader(pictures(2), ["bad", "fine"])
    assert scores.isnan().tolist() == [True, False]
    # Each format once, without waiting or trying again; the next picture is asked for with the schema as before.
    assert [asked.format for asked in server.asked] == ["json_schema", "json_object", None, "json_schema"]


def test_without_a_schema_answers_amid_prose_are_read(server: ChatServer, make_grader: Make) -> None:
    answer = json.loads(good(6.5).body)["choices"][0]["message"]["content"]
    server.replies = [written(f"<think>{{}} maybe 3?</think>Here it is:\n```json\n{answer}\n```\nAnything else?")]
    assert make_grader()(pictures(1), ["p"]).tolist() == [6.5]


def test_requests_are_spaced_to_the_rate_limit(server: ChatServer, make_grader: Make) -> None:
    clock = Time()
    sent: list[float] = []

    def script(asked: Asked) -> Reply:
        sent.append(clock.at)
        return fails(500) if len(sent) == 2 else good()

    server.script = script
    make_grader(timing=clock.timing, per_minute=12)(pictures(4), ["p"] * 4)
    # Tries count as well as first requests.
    assert [at - sent[0] for at in sent] == [0, 5, 10, 15, 20]
