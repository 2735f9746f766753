"""Several verifiers as one: by mean rank, or by a sum of z-scores, both within the pool that is compared."""

import math
import re
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Self

import torch
from scipy.stats import rankdata
from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.engine.scoring import at_stage, call_verifier, shaped_scores
from diffscale.models.shipped import verifier_networks
from diffscale.registry.arguments import rejoined
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Stage, Verifier

_USUAL: Final = "aesthetic,clip,image_reward"  # as in paper A
_ARGUMENT: Final = re.compile(r":(?=[A-Za-z_]\w*=)")
_FUNCTION: Final = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*(:|$)")


@dataclass
class Combined:
    """Members' scores side by side: components [B, K]. Not differentiable: a candidate's worth depends on its pool.

    `weights`: one over 0 for each member. Raises DiffscaleError for members that are ensembles themselves or look at
    more than pictures and prompts.
    """

    name: str
    members: Sequence[Verifier]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        for member in self.members:
            if isinstance(member, PoolVerifier | NeedsIntermediateX0 | SetVerifier):
                raise DiffscaleError(f"Verifier {member.name} cannot be a member of {self.name}; leave it out.")

    @property
    def shares(self) -> Tensor:
        """The weights float64 [K], so that they add up to 1."""
        weights = torch.tensor(self.weights, dtype=torch.float64)
        return weights / weights.sum()

    @property
    def components(self) -> list[str]:
        """The members' names."""
        return [member.name for member in self.members]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Components float64 [B, K] of `images` [B, 3, H, W] in [0, 1].

        Raises DiffscaleError for a member that does not give B scores.
        """
        each = [shaped_scores(member, call_verifier(member, images, prompts), prompts) for member in self.members]
        return torch.stack([scores.detach().cpu().double() for scores in each], 1)

    def unfinished(self, stage: Stage) -> Self:
        """See `types.JudgesUnfinished`: each member judges as it does alone."""
        return type(self)(self.name, [at_stage(member, stage) for member in self.members], self.weights)


class Ensemble(Combined):
    """Mean rank (paper A, Ma et al. 2025, arXiv 2501.09732, section 3.1), over the size of the pool.

    Ties share their mean rank. A score lies in (0, 1], 1 for what is best in every component. In algorithms that go on
    in rounds the pool is the round; for the final choice it is all that was seen.
    """

    def aggregate(self, pool: Tensor) -> Tensor:
        """Values float64 [n] of components [n, K]."""
        ranks = torch.from_numpy(rankdata(pool.numpy(), axis=0)) / len(pool)
        return ranks @ self.shares


class Weighted(Combined):
    """Weighted mean of z-scores, so that verifiers of different units count alike.

    A score is in standard deviations of the pool; a component in which all are equal counts as 0.
    """

    def aggregate(self, pool: Tensor) -> Tensor:
        """Values float64 [n] of components [n, K]."""
        spread = pool.std(0, correction=0)
        # Equal numbers have a spread of rounding errors, not of 0.
        flat = spread <= 1e-12 * pool.abs().amax(0)
        return ((pool - pool.mean(0)) / spread.masked_fill(flat, torch.inf)) @ self.shares


def ensemble(of: str = _USUAL, weights: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """Mean rank over the verifiers named in `of`, within what is compared; as in paper A by default."""
    return Ensemble("ensemble", *members(of, weights, load=_loader(device, image_model)))


def weighted(of: str = _USUAL, weights: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Verifier:
    """Weighted mean of the z-scores of the verifiers named in `of`, within what is compared."""
    return Weighted("weighted", *members(of, weights, load=_loader(device, image_model)))


def _loader(device: Any, image_model: str) -> Callable[[str], Verifier]:
    from diffscale.verifiers import load

    return partial(load, device=device, image_model=image_model)


def check_members(of: str = _USUAL, weights: str | None = None) -> None:
    """Raise DiffscaleError for members, arguments of theirs or weights that `members` would refuse; loads nothing."""
    from diffscale.verifiers import check

    for member in (texts := _split(of)):
        try:
            check(alone(member))
        except DiffscaleError as error:
            # What to write has colons here, where a verifier alone has spaces.
            said = str(error).replace(f"write {alone(member)} ", f"write {member}:")
            raise type(error)(f"In of={of}: {said}") from error
    _shares(weights, len(texts))


ensemble.check = weighted.check = check_members  # type: ignore[attr-defined]


def members(
    of: str = _USUAL, weights: str | None = None, *, load: Callable[[str], Verifier]
) -> tuple[list[Verifier], list[float]]:
    """The verifiers named in "clip,aesthetic:model=x" (arguments after colons), and their weights, 1 by default.

    `load` gives each of them, by its name with spaces before its arguments.

    Values may have colons, commas and equals signs in them: a colon begins an argument only before `key=`, and a comma
    a member only before a verifier's name or `package.module:function`, or where there is no value to go on.

    Raises DiffscaleError for names and weights that are none.
    """
    shares = _shares(weights, len(texts := _split(of)))
    return [load(alone(text)) for text in texts], shares


def alone(member: str) -> str:
    """A member as a verifier is named alone: with spaces before its arguments, and quotation marks around their own."""
    parts = _ARGUMENT.split(member)
    return " ".join(shlex.quote(part) if any(sign in part for sign in " '\"") else part for part in parts)


def _shares(weights: str | None, members: int) -> list[float]:
    """The numbers in "1,1,2", one for each member."""
    with explained(f"Weights are numbers, as in weights=1,1,2, not {weights!r}.", ValueError):
        shares = [1.0] * members if weights is None else [float(weight) for weight in weights.split(",")]
    if members < 2 or len(shares) != members or not all(0 < share < math.inf for share in shares):
        raise DiffscaleError(
            "An ensemble takes two members or more, as in of=clip,aesthetic, and a finite weight over 0 for each, not "
            f"{members} members and the weights {shares}."
        )
    return shares


def _split(of: str) -> list[str]:
    from diffscale.verifiers import VERIFIERS

    def is_name(piece: str) -> bool:
        name = piece.partition(":")[0]
        return name in VERIFIERS or name in verifier_networks() or _FUNCTION.match(piece) is not None

    return rejoined(of.split(","), is_name)
