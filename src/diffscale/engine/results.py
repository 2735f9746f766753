"""What a search gives back: candidates, thumbnails and the result; and who is told of candidates on the way."""

from dataclasses import dataclass, field, replace
from typing import Protocol

from torch import Tensor

from diffscale.engine.leaderboard import candidate_value
from diffscale.engine.ledger import Ledger
from diffscale.types import Verifier


@dataclass(frozen=True)
class Candidate:
    """One finished picture: `image` float32 [3, H, W] in [0, 1], in 256 steps as files hold it, and `latents`; on CPU.

    Of a video, `image` is a strip of the frames that were scored, side by side; `latents` are the whole video's.
    `key` replays it where the search drew its noise and did not intervene on the way:
    `sampler.run(sampler.prior(key, row))`. `noise` [...]: what it was sampled from, by which it can be sampled again in
    other steps; None where the search did not sample it in one go. `nfe`: what the search had spent when it was done.
    `number`: how many candidates were finished before it. `components`: float64 [K], the verifier's own scores; `score`
    is their value among all candidates of the search. `ranking`: float64 [R], what the final choice is made by: the
    chooser's own scores, without a chooser the verifier's; `value` is their value among all candidates, by which the
    best is the best. `wording`: what the model was asked: the prompt, or a `types.Wording` of it. `micro_batches`:
    (step, rows) wherever it went on, from that step of the grid, in a micro-batch of so many rows: sums are rounded
    alike only in one of the same size. Only where it began with the noise of its `key` is the first step 0.
    """

    image: Tensor
    latents: Tensor
    key: int
    score: float
    nfe: int
    number: int
    components: Tensor
    value: float
    ranking: Tensor
    wording: str
    noise: Tensor | None = None
    micro_batches: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        """One line, without the numbers of its tensors."""
        return _in_a_line(self)


@dataclass(frozen=True)
class Thumbnail:
    """A candidate as a contact sheet shows it. `image`: uint8 [3, h, w], at most `kept_pictures.THUMBNAIL` a side.

    All else is as in Candidate.
    """

    image: Tensor
    score: float
    value: float
    number: int
    key: int
    nfe: int
    micro_batches: tuple[tuple[int, int], ...] = ()

    def __repr__(self) -> str:
        """One line, without the numbers of its picture."""
        return _in_a_line(self)


def _in_a_line(shown: Candidate | Thumbnail) -> str:
    return f"{type(shown).__name__}(number={shown.number}, score={shown.score:.6g}, nfe={shown.nfe}, key={shown.key})"


@dataclass(frozen=True)
class Result:
    """What a search found. `baseline` is its first candidate.

    `candidates`: how many were finished. `best`, `best_candidates` (the best `keep_best` of them in full size, best
    first, fewer if no more got a score) and `gallery` (the best of them as thumbnails, alike) are by `Candidate.value`;
    all else is the same whoever chooses: `trace` has (NFE, best score of the verifier so far), a point wherever that
    improved and one at the end, so with a chooser it may end above `best.score`; `traces` the same points for each of
    an ensemble's components, of the candidate whose score was best. `pool`: float64 [candidates, K], what the verifier
    gave each; -inf where it was dropped. `ranking`: float64 [candidates, R], what each was ranked by: the chooser's
    scores, without a chooser the pool; -inf where it could not be chosen. `dropped`: how many rows got no usable score,
    by the verifier or the chooser. `prompt`: what was searched for, of a class-conditional model the ClassLabel.
    `dtype`: what the model computed in, such as "float32", where `search` loaded it or was given it; empty where
    samplers of one's own are run. `compared`: where several candidates shared the best value and who ranks them can
    compare pictures, their numbers pair by pair and the probability that the first is better, by which they stand in
    the order that they have in `best_candidates` and in `gallery`. `decisions`: what the search settled on by itself,
    and why, in sentences. `wordings`: what the model was asked for each candidate, by its number, as
    `Candidate.wording`. `rounds`: (candidates finished, NFE spent, seconds) so far, wherever a request had finished
    some.
    """

    best: Candidate
    baseline: Candidate
    best_candidates: list[Candidate]
    gallery: list[Thumbnail]
    trace: list[tuple[int, float]]
    traces: dict[str, list[tuple[int, float]]]
    pool: Tensor
    ranking: Tensor
    ledger: Ledger
    candidates: int
    dropped: int
    prompt: str
    dtype: str = ""
    compared: list[tuple[int, int, float]] = field(default_factory=list)
    decisions: list[str] = field(default_factory=list)
    wordings: list[str] = field(default_factory=list)
    rounds: list[tuple[int, int, float]] = field(default_factory=list)

    def __repr__(self) -> str:
        """One line, without the numbers of its tensors."""
        return (
            f"Result(prompt={str(self.prompt)!r}, candidates={self.candidates}, nfe={self.ledger.nfe}, "
            f"best={self.best}, baseline={self.baseline})"
        )


def among(result: Result, candidate: Candidate, verifier: Verifier, choose: Verifier | None) -> Candidate:
    """`candidate`, which another search by the same two found, with its score and value among those of `result`."""
    score = candidate_value(result.pool, candidate.components, verifier)
    value = score if choose is None else candidate_value(result.ranking, candidate.ranking, choose)
    return replace(candidate, score=score, value=value)


class Observer(Protocol):
    """Told of every micro-batch of finished candidates, as it is scored; not of what a journal replays."""

    def __call__(self, search: int, keys: Tensor, scores: Tensor, images: Tensor, nfe: list[int]) -> None:
        """`search`: index of the task; `keys` int64 [b]; `scores` float64 [b], -inf if dropped; `images` float32
        [b, 3, H, W]; `nfe`: what the search had spent at each candidate."""
