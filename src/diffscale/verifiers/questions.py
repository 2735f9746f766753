"""Benchmarks that ask a vision model questions about a picture: GenEval 2's Soft-TIFA, TIFA and DPG-Bench.

Soft-TIFA is of GenEval 2 (Kamath et al. 2025, arXiv 2512.16853), which asks Qwen3-VL on the same machine; DPG-Bench (Hu
et al. 2024, arXiv 2403.05135) asks mPLUG. These ask whatever model a server serves, in words of our own.
"""

import math
import threading
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar, Final

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from diffscale.suites.benchmarks import Question, answer_questions, dpg_questions, of_prompt
from diffscale.verifiers.grader.answers import FORMS, answer_probability, says_yes
from diffscale.verifiers.grader.client import GraderCosts, Tally, Written
from diffscale.verifiers.grader.endpoint import BaseUrl, KeyVariable, resolve
from diffscale.verifiers.grader.grade import GradeCache, default_path
from diffscale.verifiers.grader.picture import Picture, Ungraded, as_picture
from diffscale.verifiers.grader.tries import Forms, RetryingClient, Timing, ask_all

_Asked = tuple[Picture, Question]
_LEAST: Final = 1e-300  # in the place of a probability of 0, whose logarithm there is none of


class QuestionVerifier(ABC):
    """Scores in [0, 1] by what a vision model at any OpenAI-compatible endpoint answers to a prompt's questions.

    `file`: the user's own copy of the benchmark's. `model`, `base_url`, `key_env`, `concurrency`, `per_minute`,
    `tries`, `timeout`: as of `LlmGrader`. Answers are kept in `grader.sqlite` by picture, question and model. Without
    a gradient. Raises DiffscaleError for another file, and for what of the server is missing or wrong.
    """

    name: ClassVar[str]
    forms: ClassVar[Sequence[dict[str, Any]]] = FORMS
    reads: ClassVar[str] = "probability"
    """What is kept of an answer, of which each kind has an entry of its own in the cache."""

    def __init__(
        self,
        file: str,
        model: str | None = None,
        base_url: BaseUrl = None,
        key_env: KeyVariable = "OPENAI_API_KEY",
        concurrency: PositiveInt = 8,
        per_minute: PositiveFloat | None = None,
        tries: PositiveInt = 6,
        timeout: PositiveFloat = 120.0,
        *,
        key: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._questions, self._file = self.questions_in(file), file
        endpoint = resolve(model, base_url, key_env, key)
        self._model, self._url, self._concurrency = endpoint.model, endpoint.url, concurrency
        self._tally, self._cache = Tally(), GradeCache(default_path())
        self._client = RetryingClient(endpoint, timeout, per_minute, tries, self._tally, timing or Timing())
        self._forms = Forms(self.forms)

    @classmethod
    def check(cls, file: str, **_: object) -> None:
        """Raise DiffscaleError for a file that is none of the benchmark's."""
        cls.questions_in(file)

    @property
    def costs(self) -> GraderCosts:
        """Tokens and requests so far."""
        return self._tally.costs

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score float64 [B] in [0, 1] of `images` [B, 3, H, W] in [0, 1] for prompts of the file.

        NaN, with an Ungraded warning, for a picture of which a question has no usable answer.
        """
        pictures = [as_picture(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        wanted = [of_prompt(self._questions, prompt, self._file) for prompt in prompts]
        asked = dict.fromkeys(
            (picture, question)
            for picture, questions in zip(pictures, wanted, strict=True)
            if picture is not None
            for question in questions
        )
        answers = dict(zip(asked, ask_all(self._answer, list(asked), self._concurrency), strict=True))
        scores = []
        for picture, questions, prompt in zip(pictures, wanted, prompts, strict=True):
            found = ["the picture is not finite"] if picture is None else [answers[picture, each] for each in questions]
            numbers = [each for each in found if isinstance(each, float)]
            if missing := [each for each in found if isinstance(each, str)]:
                warnings.warn(f"No score for a picture of {prompt!r}: {missing[0]}.", Ungraded, stacklevel=2)
            scores.append(math.nan if missing else self.combine(questions, numbers))
        self._tally.add(dropped=sum(map(math.isnan, scores)))
        return torch.tensor(scores, dtype=torch.float64)

    def close(self) -> None:
        """Close connections and cache."""
        self._client.close()
        self._cache.close()

    @staticmethod
    @abstractmethod
    def questions_in(file: str) -> dict[str, list[Question]]:
        """The questions of the benchmark's file, by prompt."""

    @abstractmethod
    def combine(self, questions: Sequence[Question], answers: Sequence[float]) -> float:
        """The score of a picture, of how probable the right answer to each question is."""

    def read(self, written: Written, question: Question) -> float:
        """How probable what the model wrote makes the right answer."""
        return answer_probability(written, question.answer, self._url)

    def _answer(self, asked: _Asked, stop: threading.Event) -> float | str:
        picture, question = asked
        text = _wording(question)
        key = (picture.digest, text, f"{self.reads} of {question.answer}", self._model)
        if (known := self._cache.answer(*key)) is not None:
            self._tally.add(cache_hits=1)
            return known
        answer = self._client.answer(picture.png, text, self._forms, lambda said: self.read(said, question), stop)
        if isinstance(answer, float):
            self._cache.put_answer(answer, *key)
        return answer


class GenEval2(QuestionVerifier):
    """Soft-TIFA GM of GenEval 2, in [0, 1]: geometric mean of the probabilities of the right answers to all atoms.

    `file`: your own copy of geneval2_data.jsonl. The other settings are as of `QuestionVerifier`.
    """

    name = "geneval2"

    @staticmethod
    def questions_in(file: str) -> dict[str, list[Question]]:
        return answer_questions(file)

    def combine(self, questions: Sequence[Question], answers: Sequence[float]) -> float:
        return math.exp(sum(math.log(max(each, _LEAST)) for each in answers) / len(answers))


class Tifa(GenEval2):
    """Soft-TIFA AM, in [0, 1]: arithmetic mean of the probabilities of all right answers, of GenEval 2 or TIFA.

    `file`: your own copy of geneval2_data.jsonl, or of TIFA's tifa_v1.0_question_answers.json, whose choices are told
    in the question. The other settings are as of `QuestionVerifier`.
    """

    name = "tifa"

    def combine(self, questions: Sequence[Question], answers: Sequence[float]) -> float:
        return sum(answers) / len(answers)


class Dpg(QuestionVerifier):
    """DPG-Bench, in [0, 1]: share of a prompt's questions that are answered by yes, and so are all that they depend on.

    `file`: your own copy of dpg_bench.csv. The other settings are as of `QuestionVerifier`.
    """

    name = "dpg"
    forms = ({"temperature": 0}, {})
    reads = "word"

    @staticmethod
    def questions_in(file: str) -> dict[str, list[Question]]:
        return dpg_questions(file)

    def read(self, written: Written, question: Question) -> float:
        return says_yes(written)

    def combine(self, questions: Sequence[Question], answers: Sequence[float]) -> float:
        counts: list[bool] = []
        for question, answer in zip(questions, answers, strict=True):
            counts.append(answer == 1 and all(counts[parent] for parent in question.parents))
        return sum(counts) / len(counts)


def _wording(question: Question) -> str:
    choices = f" Choose one of: {', '.join(question.choices)}." if question.choices else ""
    return f"{question.text}{choices} Answer in one word."
