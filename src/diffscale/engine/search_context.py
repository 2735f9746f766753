"""What all searches of one call have in common: the model, who scores, who chooses, and where it is kept."""

from dataclasses import dataclass

from diffscale.engine.journal import Journal
from diffscale.engine.results import Observer
from diffscale.engine.scoring import record_level
from diffscale.engine.ties import MOST_TIED
from diffscale.types import Aggregate, Compares, PoolVerifier, Sampler, Verifier


@dataclass(frozen=True)
class SearchContext:
    """What all searches of one call have in common.

    `gallery`: how many thumbnails of each come back, `keep_best`: how many candidates in full size. `choose`: the
    verifier that ranks finished candidates in the place of `verifier`, which steers the searches.
    """

    sampler: Sampler
    verifier: Verifier
    observers: tuple[Observer, ...]
    gallery: int
    journal: Journal | None
    keep_best: int = 1
    choose: Verifier | None = None

    @property
    def components(self) -> tuple[str, ...]:
        """Names of the verifier's components, none for a verifier of one score."""
        return tuple(self.verifier.components) if isinstance(self.verifier, PoolVerifier) else ()

    @property
    def aggregate(self) -> Aggregate | None:
        """Of the scores that searches see."""
        return aggregate_of(self.verifier)

    @property
    def ranker(self) -> Verifier:
        """Who ranks what is finished."""
        return self.verifier if self.choose is None else self.choose

    @property
    def most_tied(self) -> int:
        """How many of a search's candidates that share the best value are to be compared."""
        compares = isinstance(self.ranker, Compares) and not isinstance(self.ranker, PoolVerifier)
        return MOST_TIED if compares else 0

    @property
    def record(self) -> float | None:
        """The noise level whose x0-prediction the verifier or the chooser asks for."""
        return record_level(self.verifier, self.choose)


def aggregate_of(verifier: Verifier) -> Aggregate | None:
    return verifier.aggregate if isinstance(verifier, PoolVerifier) else None
