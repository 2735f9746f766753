"""The grader's parts without a server: reading grades, keeping them, turns and Retry-After."""

from __future__ import annotations

import json
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from email.utils import formatdate
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from chat_server import NAMES, grade
from hypothesis import given
from hypothesis import strategies as st

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.client import Tally
from diffscale.verifiers.grader.grade import Grade, GradeCache, MalformedGrade, parse_grade
from diffscale.verifiers.grader.tries import RateLimit, retry_after

SCORE = st.one_of(st.integers(0, 10), st.floats(0, 10))
PROSE = st.text(st.characters(exclude_characters="{}"), max_size=20)
GRADES = st.fixed_dictionaries(
    {name: st.fixed_dictionaries({"reason": st.text(min_size=1, max_size=10), "score": SCORE}) for name in NAMES}
    | {"overall": SCORE}
)
WRONG = st.one_of(
    st.none(),
    st.booleans(),
    st.text(),
    st.lists(SCORE, max_size=2),
    st.floats(max_value=0, exclude_max=True),
    st.floats(min_value=10, exclude_min=True),
    st.just(float("nan")),
)


@given(GRADES, PROSE, PROSE, st.sampled_from([None, 2]))
def test_a_whole_grade_is_read_exactly_amid_prose(
    given: dict[str, Any], before: str, after: str, indent: int | None
) -> None:
    found = parse_grade(before + json.dumps(given, indent=indent) + after.replace("</think>", ""))
    for name in NAMES:
        assert getattr(found, name).model_dump() == given[name]
    assert found.overall == given["overall"]
    assert found.mean == pytest.approx(sum(given[name]["score"] for name in NAMES) / 5)


@given(GRADES, st.sampled_from([*NAMES, "overall"]), WRONG)
def test_no_score_is_made_up_for_a_wrong_one(given: dict[str, Any], name: str, wrong: Any) -> None:
    given[name] = wrong if name == "overall" else {**given[name], "score": wrong}
    with pytest.raises(MalformedGrade, match=name):
        parse_grade(json.dumps(given))


@pytest.mark.parametrize("name", [*NAMES, "overall"])
def test_no_score_is_made_up_for_a_missing_one(name: str) -> None:
    whole: dict[str, Any] = grade()
    del whole[name]
    with pytest.raises(MalformedGrade, match=f"{name}: Field required"):
        parse_grade(json.dumps(whole))


@given(GRADES, st.data())
def test_a_grade_that_breaks_off_is_malformed(given: dict[str, Any], data: st.DataObject) -> None:
    text = json.dumps(given)
    with pytest.raises(MalformedGrade):
        parse_grade(text[: data.draw(st.integers(0, len(text) - 1))])


def test_two_grades_are_malformed() -> None:
    with pytest.raises(MalformedGrade):
        parse_grade(json.dumps(grade(3.0)) + json.dumps(grade(9.0)))


def _twice(text: str, name: str, first: str) -> str:
    """`text` with the name `name` given another time before."""
    return text.replace(f'"{name}":', f'"{first}": 2, "{name}":', 1)


@pytest.mark.parametrize("name", [*Grade.model_fields, "reason", "score"])
@pytest.mark.parametrize("again", ["{}", "\\u{:04x}"], ids=["plain", "escaped"])
def test_a_name_that_is_given_twice_counts_for_neither_value(name: str, again: str) -> None:
    text = json.dumps(grade(9.0))
    first = name if again == "{}" else again.format(ord(name[0])) + name[1:]
    assert parse_grade(text).overall == 9.0
    with pytest.raises(MalformedGrade, match=f"{name}: given twice"):
        parse_grade(_twice(text, name, first))


def test_large_answers_are_read_in_no_time() -> None:
    began = time.monotonic()
    many = json.dumps({f"{i}": {"more": "x"} for i in range(100_000)} | grade(9.0))
    assert parse_grade(many).overall == 9.0
    assert parse_grade("{" * 2**22 + "</think>" + json.dumps(grade(8.0))).overall == 8.0
    for broken in (
        "{" * 2**22,
        "[" * 2**22 + "]" * 2**22,
        '{"a": ' * 2**19,
        "9" * 2**22,
        '{"overall": ' + "9" * 2**22 + "}",
    ):
        with pytest.raises(MalformedGrade):
            parse_grade(broken)
    assert time.monotonic() - began < 10


@given(GRADES)
def test_what_is_kept_comes_back(given: dict[str, Any]) -> None:
    kept = Grade.model_validate(given)
    assert Grade.model_validate_json(kept.model_dump_json()) == kept


def _fill(path: Path, who: int) -> None:
    cache = GradeCache(path)
    for at in range(20):
        cache.put(f"{who}-{at}", "p", "m", "g", parse_grade(json.dumps(grade(who))))
    cache.close()


def test_many_threads_and_processes_may_use_one_file(tmp_path: Path) -> None:
    path = tmp_path / "new" / "grader.sqlite"
    processes = [multiprocessing.get_context("fork").Process(target=_fill, args=(path, who)) for who in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    cache = GradeCache(path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda at: cache.get(f"{at % 3}-{at // 3}", "p", "m", "g"), range(60)))
    assert [grade.overall for grade in found if grade] == [at % 3 for at in range(60)]
    assert cache.get("0-0", "p", "m", "other") is cache.get("0-0", "p", "other", "g") is cache.get("x", "p", "m", "g")
    cache.close()


def test_a_cache_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    broken = tmp_path / "broken.sqlite"
    broken.write_bytes(b"no database" * 1000)
    blocked = tmp_path / "file" / "grader.sqlite"
    blocked.parent.touch()
    for path in (broken, blocked):
        with pytest.raises(DiffscaleError, match=r"cache .* cannot be (read|written to) .* set DIFFSCALE_CACHE"):
            GradeCache(path)


@given(st.lists(st.one_of(st.none(), st.floats(0, 100)), max_size=20), st.floats(1, 600))
def test_turns_are_never_closer_than_the_rate_allows(pauses: list[float | None], per_minute: float) -> None:
    now = 0.0
    limit = RateLimit(per_minute, lambda: now)
    turns = []
    for pause in pauses:
        now += pause or 0.0
        turns.append(now + limit.reserve())
    for earlier, later in pairwise(turns):
        assert later - earlier >= 60 / per_minute - 1e-6


def test_a_pause_is_never_shortened() -> None:
    limit = RateLimit(None, lambda: 0.0)
    limit.pause(30)
    limit.pause(5)
    assert limit.reserve() == limit.reserve() == 30


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("17", 17.0),
        (" 0 ", 0.0),
        (formatdate(1_000_040, usegmt=True), 40.0),
        (formatdate(1_000_040), 40.0),
        (formatdate(999_000, usegmt=True), 0.0),
        (None, None),
        ("", None),
        ("soon", None),
        ("-5", None),
        ("²", None),
        ("1.5", None),
    ],
)
def test_retry_after_is_read_as_the_rfc_says(header: str | None, seconds: float | None) -> None:
    assert retry_after(header, 1_000_000.0) == seconds


@given(st.text())
def test_any_retry_after_is_read(header: str) -> None:
    seconds = retry_after(header, 0.0)
    assert seconds is None or seconds >= 0


def test_one_price_leaves_the_other_free() -> None:
    tally = Tally(price_out=4.0)
    tally.add(prompt_tokens=1_000_000, completion_tokens=500_000)
    assert tally.costs.money == 2.0
