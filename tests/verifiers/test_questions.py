"""Soft-TIFA, TIFA and DPG-Bench by a server on this machine, against scores computed by hand."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_server import Asked, ChatServer, Reply, Time, fails, pictures, written

from diffscale._util.errors import DiffscaleError
from diffscale.suites.prompts import categories
from diffscale.suites.prompts import load as load_prompts
from diffscale.verifiers import check
from diffscale.verifiers.grader.answers import answer_probability, says_yes
from diffscale.verifiers.grader.client import Written, _Completion
from diffscale.verifiers.grader.grade import MalformedGrade
from diffscale.verifiers.grader.picture import Ungraded
from diffscale.verifiers.questions import Dpg, GenEval2, QuestionVerifier, Tifa

pytest_plugins = ["grader_fixtures"]
PROMPT = "four white bicycles"
ATOMS = [["How many bicycles are in the image?", "four"], ["Are the bicycles white?", "Yes"], ["Any bicycles?", "Yes"]]
DPG = ("item_id", "text", "keywords", "proposition_id", "dependency", "category_broad", "category_detailed", "tuple",
       "question_natural_language")  # fmt: skip
Make = Callable[..., QuestionVerifier]


def said(*chances: tuple[str, float], text: str | None = None, before: tuple[str, ...] = ()) -> Reply:
    """An answer whose first word has these chances, the first of which was written; `before`: pieces thought first."""
    top = [{"token": token, "logprob": math.log(chance), "bytes": None} for token, chance in chances]
    tokens = [{"token": each, "logprob": 0.0, "bytes": None, "top_logprobs": []} for each in before]
    tokens.append({**top[0], "top_logprobs": top})
    return written(text or "".join(before) + chances[0][0], logprobs={"content": tokens})


def read(reply: Reply) -> Written:
    completion = _Completion.model_validate_json(reply.body)
    return Written(completion.message.content or "", completion.tokens())


@pytest.fixture
def geneval2(tmp_path: Path) -> Path:
    file = tmp_path / "geneval2_data.jsonl"
    skills = ["count", "attribute", "object"]
    file.write_text(json.dumps({"prompt": PROMPT, "atom_count": 3, "vqa_list": ATOMS, "skills": skills}))
    return file


@pytest.fixture
def dpg(tmp_path: Path) -> Path:
    """Three questions of which each depends on the one before, and one that depends on none."""
    file = tmp_path / "dpg_bench.csv"
    rows = [(1, "0", "a cat?"), (2, "1", "a black cat?"), (4, "1, 2", "a black cat with a hat?"), (7, "0", "a sofa?")]
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, DPG)
        writer.writeheader()
        for number, depends, question in rows:
            row = {"item_id": "x1", "text": "A long text, of a cat", "proposition_id": number, "dependency": depends}
            writer.writerow(row | {"question_natural_language": question, "tuple": "entity - whole (cat)"})
    return file


@pytest.fixture
def make(server: ChatServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    made: list[QuestionVerifier] = []
    monkeypatch.setenv("DIFFSCALE_CACHE", str(tmp_path))

    def of(kind: type[QuestionVerifier], file: Path, **options: Any) -> QuestionVerifier:
        options = {"concurrency": 1, "timing": Time().timing} | options
        made.append(kind(str(file), "seer", server.url, **options))
        return made[-1]

    yield of
    for verifier in made:
        verifier.close()


def by_question(replies: dict[str, Reply]) -> Callable[[Asked], Reply]:
    return lambda asked: next(reply for question, reply in replies.items() if asked.text.startswith(question + " "))


ATOM_REPLIES = {
    ATOMS[0][0]: said(("four", 0.5), ("4", 0.25), ("five", 0.2), ("Four", 0.05)),
    ATOMS[1][0]: said(("No", 0.9), ("Yes", 0.06), (" yes", 0.02), ("Maybe", 0.02)),
    ATOMS[2][0]: said(("Yes", 0.99), ("No", 0.01)),
}


def test_soft_tifa_is_the_mean_of_the_probabilities_of_the_right_answers(
    make: Make, server: ChatServer, geneval2: Path
) -> None:
    server.script = by_question(ATOM_REPLIES)
    images = pictures(2)
    am = make(Tifa, geneval2)(images, [PROMPT, PROMPT])
    chances = [0.5 + 0.25 + 0.05, 0.08, 0.99]
    torch.testing.assert_close(am, torch.full((2,), sum(chances) / 3, dtype=torch.float64))
    assert len(server.asked) == 6  # three questions about each of two pictures
    first = server.asked[0]
    assert first.text == "How many bicycles are in the image? Answer in one word."
    assert first.body["logprobs"] is True and first.body["top_logprobs"] == 20 and first.body["temperature"] == 0
    assert first.picture.shape == (6, 4, 3)

    gm = make(GenEval2, geneval2)
    torch.testing.assert_close(gm(images, [PROMPT] * 2), torch.full((2,), math.prod(chances) ** (1 / 3)).double())
    assert len(server.asked) == 6 and gm.costs.cache_hits == 6  # the same answers, which are paid for already


def test_the_prompts_are_a_suite_by_the_number_of_atoms(geneval2: Path, dpg: Path) -> None:
    assert load_prompts(str(geneval2)) == [PROMPT] and categories(str(geneval2)) == {PROMPT: "3"}
    assert load_prompts(str(dpg)) == ["A long text, of a cat"]


@pytest.mark.parametrize(
    ("reply", "answer", "chance"),
    [
        (said(("Yes", 0.7), ("yes", 0.1), ("No", 0.2)), "Yes", 0.8),
        (said(("three", 0.6), ("3", 0.3)), "three", 0.9),
        (said((" Yes.", 0.7), ("No", 0.2)), "Yes", 0.7),
        # What was thought before it does not count.
        (said(("No", 0.7), ("Yes", 0.2), before=("<th", "ink>", "Yes", "</th", "ink>", "\n")), "Yes", 0.2),
        # Not told: what is told leaves 0.02, and everything that is not told is less likely than what is.
        (said(("No", 0.9), ("Maybe", 0.08)), "Yes", 0.02),
        (said(("No", 0.5), ("Maybe", 0.01)), "Yes", 0.01),
    ],
)
def test_probabilities(reply: Reply, answer: str, chance: float) -> None:
    assert answer_probability(read(reply), answer, "url") == pytest.approx(chance)


def test_an_answer_of_several_pieces_is_their_product() -> None:
    pieces = [("ele", 0.8), ("phant", 0.5), ("<|im_end|>", 0.9)]
    content = [{"token": token, "logprob": math.log(chance), "top_logprobs": []} for token, chance in pieces]
    answer = read(written("elephant", logprobs={"content": content}))
    assert answer_probability(answer, "Elephant", "url") == pytest.approx(0.4)


def test_tifas_own_file_tells_the_choices(make: Make, server: ChatServer, tmp_path: Path) -> None:
    file = tmp_path / "questions.json"
    rows = [
        {
            "id": "x",
            "caption": "a brown dog",
            "question": "what colour?",
            "choices": ["red", "brown"],
            "answer": "brown",
        },
        {"id": "x", "caption": "a brown dog", "question": "a dog?", "choices": ["yes", "no"], "answer": "yes"},
    ]
    file.write_text(json.dumps(rows))
    server.script = by_question({"what colour?": said(("brown", 0.6), ("red", 0.4)), "a dog?": said(("yes", 1.0))})
    assert make(Tifa, file)(pictures(1), ["a brown dog"]).item() == pytest.approx(0.8)
    assert server.asked[0].text == "what colour? Choose one of: red, brown. Answer in one word."
    assert load_prompts(str(file)) == ["a brown dog"]


@pytest.mark.parametrize(
    ("words", "score"),
    [
        ("yes yes yes yes", 1.0),
        ("no yes yes yes", 0.25),  # what depends on the cat does not count, and the sofa does
        ("yes no yes yes", 0.5),
        ("yes yes no no", 0.5),
    ],
)
def test_a_question_of_dpg_counts_only_with_those_that_it_depends_on(
    words: str, score: float, make: Make, server: ChatServer, dpg: Path
) -> None:
    server.replies = [written(f"{word.capitalize()}.") for word in words.split()]
    assert make(Dpg, dpg)(pictures(1), ["A long text, of a cat"]).item() == score
    assert "logprobs" not in server.asked[0].body and len(server.asked) == 4


def test_dpg_reads_words() -> None:
    assert says_yes(Written("<think>no?</think> Yes, it is.")) == 1 and says_yes(Written("**No**")) == 0
    with pytest.raises(MalformedGrade, match="not yes or no"):
        says_yes(Written("A cat."))


def test_a_server_that_tells_no_probabilities_ends_the_run_in_a_sentence(
    make: Make, server: ChatServer, geneval2: Path
) -> None:
    server.replies = [written("Yes")]
    with pytest.raises(DiffscaleError, match="tells no log-probabilities, which this score is made of"):
        make(GenEval2, geneval2)(pictures(1), [PROMPT])
    assert len(server.asked) == 1


def test_a_server_that_knows_fewer_words_is_asked_for_fewer(make: Make, server: ChatServer, geneval2: Path) -> None:
    def strict(asked: Asked) -> Reply:
        few = asked.body["top_logprobs"] == 5
        return by_question(ATOM_REPLIES)(asked) if few else fails(400, "top_logprobs must be at most 5")

    server.script = strict
    assert make(Tifa, geneval2)(pictures(1), [PROMPT]).item() > 0
    assert [each.body["top_logprobs"] for each in server.asked] == [20, 5, 5, 5]


def test_a_picture_without_an_answer_is_dropped_alone(make: Make, server: ChatServer, geneval2: Path) -> None:
    images = pictures(3)
    images[1] = math.nan
    broken = int(images[2, 0, 0, 0] * 255 + 0.5)

    def script(asked: Asked) -> Reply:
        return written(None) if asked.picture[0, 0, 0] == broken else by_question(ATOM_REPLIES)(asked)

    server.script = script
    verifier = make(Tifa, geneval2, tries=2)
    with pytest.warns(Ungraded, match="No score for a picture of 'four white bicycles': (malformed|the picture)"):
        scores = verifier(images, [PROMPT] * 3)
    assert scores.isnan().tolist() == [False, True, True] and verifier.costs.dropped == 2


@pytest.mark.parametrize(
    ("kind", "content", "wrong"),
    [
        ("GenEval2", None, "There is no file .*: give your own copy of that of GenEval 2"),
        ("GenEval2", '{"prompt": "a"}', "no file of GenEval 2 .* or TIFA"),
        ("Tifa", '{"prompt": "a", "vqa_list": []}', "Mend vqa_list in"),
        ("Dpg", "text,proposition_id\na,1\n", "no file of DPG-Bench, its dpg_bench.csv: a row has no dependency"),
        (
            "Dpg",
            "text,proposition_id,dependency,question_natural_language\na,1,2,b?\na,2,0,c?\n",
            "Mend the dependency '2' of 'b[?]'",
        ),
    ],
)
def test_other_files_are_refused_in_a_sentence(kind: str, content: str | None, wrong: str, tmp_path: Path) -> None:
    file = tmp_path / ("file.csv" if kind == "Dpg" else "file.jsonl")
    if content is not None:
        file.write_text(content)
    with pytest.raises(DiffscaleError, match=wrong):
        check(f"diffscale.verifiers.questions:{kind} file={file}")


def test_another_prompt_is_refused_before_anything_is_asked(make: Make, server: ChatServer, dpg: Path) -> None:
    with pytest.raises(DiffscaleError, match="'a dog' is not in"):
        make(Dpg, dpg)(pictures(1), ["a dog"])
    assert not server.asked
