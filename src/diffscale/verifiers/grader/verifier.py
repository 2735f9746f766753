"""A vision LLM as verifier: five aspects and an overall, as paper A's LLM grader (Ma et al. 2025, 2501.09732)."""

import math
import threading
import warnings
from collections.abc import Mapping

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from diffscale._util.errors import check_name
from diffscale.verifiers.grader.client import GraderCosts, Tally
from diffscale.verifiers.grader.endpoint import BaseUrl, KeyVariable, resolve
from diffscale.verifiers.grader.grade import DIGEST, SCORES, Grade, GradeCache, default_path
from diffscale.verifiers.grader.picture import Picture, Ungraded, as_picture
from diffscale.verifiers.grader.preference import digest as pair_digest
from diffscale.verifiers.grader.tries import RetryingClient, Timing, ask_all

_Pair = tuple[Picture, Picture]


class LlmGrader:
    """Grade in [0, 10] by a vision LLM at any OpenAI-compatible endpoint: `aspect`, by default overall.

    `model`, `base_url` (such as http://localhost:11434/v1 for Ollama): else DIFFSCALE_GRADER_MODEL and OPENAI_BASE_URL.
    `key_env`: the environment variable that holds the key, if the server wants one; a command never holds the key
    itself, as commands are kept with the results; a program may give `key`.

    `aspect`: accuracy, creativity, quality, consistency, resonance, overall (the model's own) or mean (of the five).
    `concurrency`: requests at once. `per_minute`: most requests in a minute, evenly spaced; None: no limit. `tries`:
    requests for one picture before it is dropped. `timeout`: seconds for one answer. `price_in`, `price_out`: of a
    million tokens, for `costs`. Sampling settings are the server's own.

    Marks are whole numbers more often than not, and several candidates of a search share the best one: then it also
    compares pictures in pairs (`types.Compares`), each pair in both orders, two requests; `pairwise=false`: not so.

    Grades are kept in `grader.sqlite` in DIFFSCALE_CACHE (~/.cache/diffscale) by picture, prompt, model and wording:
    give models that differ different names. The paper reports scores times 10. Without a gradient. Raises
    DiffscaleError for what is missing or wrong.
    """

    name = "llm_grader"

    def __init__(
        self,
        model: str | None = None,
        base_url: BaseUrl = None,
        key_env: KeyVariable = "OPENAI_API_KEY",
        aspect: str = "overall",
        concurrency: PositiveInt = 8,
        per_minute: PositiveFloat | None = None,
        tries: PositiveInt = 6,
        timeout: PositiveFloat = 120.0,
        price_in: NonNegativeFloat | None = None,
        price_out: NonNegativeFloat | None = None,
        pairwise: bool = True,
        *,
        key: str | None = None,
        timing: Timing | None = None,
    ) -> None:
        endpoint = resolve(model, base_url, key_env, key)
        check_name("aspect", aspect, SCORES)
        self.aspect = aspect
        self.compare = self._compare if pairwise else None
        self._model = endpoint.model
        self._cache = GradeCache(default_path())
        self._concurrency = concurrency
        self._tally = Tally(price_in, price_out)
        self._client = RetryingClient(endpoint, timeout, per_minute, tries, self._tally, timing or Timing())

    @property
    def costs(self) -> GraderCosts:
        """Tokens, requests and money so far."""
        return self._tally.costs

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score float64 [B] in [0, 10] of `images` [B, 3, H, W] in [0, 1]; NaN where there is no grade."""
        grades = self.grades(images, prompts)
        return torch.tensor([math.nan if g is None else g.score(self.aspect) for g in grades], dtype=torch.float64)

    def grades(self, images: Tensor, prompts: list[str]) -> list[Grade | None]:
        """Whole grades of `images` [B, 3, H, W] in [0, 1], from the cache where it has them.

        None, with an Ungraded warning, for a picture that is not finite, that the server refuses, or whose answers
        are malformed or fail to come `tries` times. Raises DiffscaleError if the key, the address or the model will
        not do, if the cache cannot be used, and if the server fails for many pictures in a row.
        """
        pictures = [as_picture(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        different = dict.fromkeys(picture for picture in pictures if picture is not None)
        cached = {p: self._cache.get(p.digest, p.prompt, self._model, DIGEST) for p in different}
        missing = [picture for picture, grade in cached.items() if grade is None]
        answers = cached | dict(zip(missing, ask_all(self._grade, missing, self._concurrency), strict=True))
        grades: list[Grade | None] = []
        for picture, prompt in zip(pictures, prompts, strict=True):
            answer = "the picture is not finite" if picture is None else answers[picture]
            if isinstance(answer, str):
                warnings.warn(f"No grade for a picture of {prompt!r}: {answer}.", Ungraded, stacklevel=2)
            grades.append(answer if isinstance(answer, Grade) else None)
        dropped = grades.count(None)
        paid = sum(isinstance(answers[picture], Grade) for picture in missing)
        self._tally.add(cache_hits=len(grades) - dropped - paid, dropped=dropped)
        return grades

    def close(self) -> None:
        """Close connections and cache."""
        self._client.close()
        self._cache.close()

    def _compare(self, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
        """See `types.Compares`: the mean over both orders, float64 [B], from the cache where it has them.

        0.5, with one Ungraded warning, for pairs whose answer is missing or malformed in an order.
        """
        pictures: dict[Picture | None, Picture | None] = {}  # one of equal ones, which is encoded once
        pairs: list[_Pair | None] = []
        for *images, prompt in zip(first, second, prompts, strict=True):
            one, other = (pictures.setdefault(each, each) for each in (as_picture(image, prompt) for image in images))
            pairs.append((one, other) if one and other else None)
        orders = dict.fromkeys(
            (a, b) for one, other in filter(None, pairs) if one != other for a, b in ((one, other), (other, one))
        )
        answers: dict[_Pair, float | str] = {}
        for order in orders:
            if (known := self._cache.preference(*self._asked(order))) is not None:
                answers[order] = known
        self._tally.add(cache_hits=len(answers))
        missing = [order for order in orders if order not in answers]
        answers |= zip(missing, ask_all(self._prefer, missing, self._concurrency), strict=True)
        found = [_mean_preference(pair, answers) for pair in pairs]
        if undecided := [row for row, each in enumerate(found) if isinstance(each, str)]:
            warnings.warn(
                f"{len(undecided)} of {len(found)} pairs of pictures count as equal, such as one of "
                f"{prompts[undecided[0]]!r}: {found[undecided[0]]}.",
                Ungraded,
                stacklevel=2,
            )
        return torch.tensor([0.5 if isinstance(each, str) else each for each in found], dtype=torch.float64)

    def _asked(self, order: _Pair) -> tuple[str, ...]:
        first, second = order
        return first.digest, second.digest, first.prompt, self._model, pair_digest(self.aspect)

    def _grade(self, picture: Picture, stop: threading.Event) -> Grade | str:
        answer = self._client.grade(picture.png, picture.prompt, stop)
        if isinstance(answer, Grade):
            self._cache.put(picture.digest, picture.prompt, self._model, DIGEST, answer)
        return answer

    def _prefer(self, order: _Pair, stop: threading.Event) -> float | str:
        first, second = order
        answer = self._client.prefer(first.png, second.png, first.prompt, self.aspect, stop)
        if isinstance(answer, float):
            self._cache.put_preference(answer, *self._asked(order))
        return answer


def _mean_preference(pair: _Pair | None, answers: Mapping[_Pair, float | str]) -> float | str:
    """How probable it is that the first is better, by the answers to both orders; or why that is not known."""
    if pair is None:
        return "a picture is not finite"
    first, second = pair
    if first == second:
        return 0.5
    one, other = answers[first, second], answers[second, first]
    if isinstance(one, str) or isinstance(other, str):
        return one if isinstance(one, str) else other
    return (one + 1 - other) / 2
