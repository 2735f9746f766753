"""How probable a model finds an answer to a question about a picture, by the log-probabilities that servers tell."""

import math
from collections.abc import Sequence
from itertools import takewhile
from typing import Any, Final

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.grader.client import Token, Written
from diffscale.verifiers.grader.grade import MalformedGrade

FORMS: Final[tuple[dict[str, Any], ...]] = (
    {"logprobs": True, "top_logprobs": 20, "temperature": 0},
    {"logprobs": True, "top_logprobs": 5, "temperature": 0},
    {"logprobs": True, "top_logprobs": 5},
)
"""With log-probabilities of as many words as a server tells; some know no more than five, or no temperature."""

_NUMBERS: Final = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def answer_probability(written: Written, answer: str, url: str) -> float:
    """The probability, in [0, 1], of `answer` as the first word of what the model answers, as Soft-TIFA takes it.

    It is the sum over the spellings that are told: in any case, and of numbers also in digits. Of an answer in several
    pieces that the model wrote out, it is the product over the pieces; of one that is not told at all it is the most
    that what is told leaves for it. Raises DiffscaleError where the server at `url` tells nothing, and MalformedGrade
    for an answer of no words.
    """
    words = _answer_tokens(written, url)
    spellings = _spellings(answer)
    likely = [(each.token, math.exp(min(each.logprob, 0.0))) for each in words[0].top_logprobs or words[:1]]
    told = sum(chance for token, chance in likely if _plain(token) in spellings)
    if told:
        return min(told, 1.0)
    if _plain("".join(each.token for each in words)) in spellings:
        return math.exp(min(sum(each.logprob for each in words), 0.0))
    rest = 1 - sum(chance for _, chance in likely)
    return max(min(rest, *(chance for _, chance in likely)), 0.0)


def says_yes(written: Written) -> float:
    """1 where the model answers yes, 0 where it answers no; by the word alone, which every server tells.

    Raises MalformedGrade for an answer that is neither.
    """
    text = _plain(written.text.rpartition("</think>")[2])
    if text.startswith("yes") or text.startswith("no"):
        return float(text.startswith("yes"))
    raise MalformedGrade(f"it says {text[:40]!r}, not yes or no")


def _answer_tokens(written: Written, url: str) -> Sequence[Token]:
    """The pieces of the answer from its first word to its end, without what was thought before it."""
    if not written.tokens:
        raise DiffscaleError(
            f"The language model's server {url} tells no log-probabilities, which this score is made of: take a server "
            "that does, such as vLLM, SGLang, llama.cpp or OpenAI's, or score by dpg, which needs the words alone."
        )
    said, start = "", 0
    for place, each in enumerate(written.tokens):
        said += each.token
        if said.rstrip().endswith("</think>"):
            start = place + 1
    after = written.tokens[start:]
    blank = sum(1 for _ in takewhile(lambda each: not _plain(each.token), after))
    words = [each for each in after[blank:] if not each.token.strip().startswith("<|")]
    if not words:
        raise MalformedGrade("the answer has no words")
    return words


def _spellings(answer: str) -> set[str]:
    text = _plain(answer)
    return {text} | ({str(_NUMBERS.index(text))} if text in _NUMBERS else set())


def _plain(text: str) -> str:
    return text.strip().strip(".,!\"'*").lower()
