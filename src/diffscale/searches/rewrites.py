"""A bandit over wordings: candidates are drawn from several wordings of a prompt, most from those that promise most."""

import math
from typing import Final

import torch
from pydantic import PositiveInt
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.types import Environment, Search, search_traits

_PRIOR: Final = 2  # candidates that what is known of all arms counts as, in the spread of one


@search_traits(anytime=True, rewords=True)
def rewrites(env: Environment, wordings: PositiveInt = 4, n: PositiveInt = 4) -> Search:
    """Best of independent noises, each in one of several wordings of the prompt, by a bandit. Price: n * steps a round.

    The user's own wording and others are the arms, at most `wordings` of them. Each has one candidate first, then
    rounds of `n` candidates go to those by which the best score is expected to rise most (`promising`). All wordings
    are scored as pictures of the user's own prompt.

    Raises DiffscaleError where the prompt has one wording alone.
    """
    arms = min(wordings, len(env.wordings))
    if len(env.wordings) < 2:
        raise no_wordings(env.wordings[0])
    asked: list[int] = []
    scores: list[Tensor] = []
    next_ones = list(range(arms))
    while now := min(len(next_ones), env.nfe_left // env.steps):
        asked += next_ones[:now]
        scores.append((yield from env.evaluate(env.reword(env.prior(now), next_ones[:now]))))
        next_ones = promising(torch.tensor(asked), env.value(torch.cat(scores)), arms, n)


def promising(asked: Tensor, values: Tensor, arms: int, n: int) -> list[int]:
    """The arms of the next `n` candidates, after those of the arms `asked` int64 [N], each once at least, had `values`
    [N].

    Each goes to the arm with the largest expected improvement over the best so far (Mockus 1978) by a normal law whose
    mean and spread are at the upper end of what may be: sqrt(log N) standard errors above what was seen, as in UCB
    (Auer et al. 2002, doi 10.1023/A:1013689704352). So an arm pays by a high mean or by a wide spread, and none is
    given up for ever. What is seen of a spread is weighed with the spread of all. Candidates of one round count as
    drawn; one that was dropped counts as the worst that was seen.
    """
    finite = values.isfinite()
    lowest = values[finite].min() if finite.any() else 0.0
    values = torch.where(finite, values, lowest)
    best, overall = values.max(), values.var(correction=0) or torch.ones(())
    counts = torch.bincount(asked, minlength=arms).double()
    means = torch.zeros(arms, dtype=torch.float64).index_add(0, asked, values) / counts
    squares = torch.zeros(arms, dtype=torch.float64).index_add(0, asked, (values - means[asked]).square())
    pooled = (squares.sum() + _PRIOR * overall) / (len(values) - arms + _PRIOR)
    spread = ((squares + _PRIOR * pooled) / (counts - 1 + _PRIOR)).sqrt()
    chosen: list[int] = []
    for _ in range(n):
        error = (math.log(len(asked) + len(chosen)) / counts).sqrt()
        mean, width = means + spread * error, spread * (1 + error / math.sqrt(2))
        z = (mean - best) / width
        rise = width * (torch.exp(-z.square() / 2) / math.sqrt(2 * math.pi) + z * torch.special.ndtr(z))
        chosen.append(int(rise.argmax()))
        counts[chosen[-1]] += 1
    return chosen


def no_wordings(prompt: str) -> DiffscaleError:
    """The error for a `prompt` of which there is one wording alone."""
    return DiffscaleError(
        f"There are no other wordings of {prompt!r} to draw from: give them in a file (--wordings FILE), have a "
        'language model write them (--wordings "llm model=NAME"), or take another search.'
    )
