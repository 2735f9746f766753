"""Calling a verifier so that one bad candidate costs one candidate."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError, Unsuited, raised
from diffscale.engine.batching import out_of_memory
from diffscale.types import Compares, JudgesUnfinished, NeedsIntermediateX0, PoolVerifier, SetVerifier, Stage, Verifier

_NOT_FINITE: Final = "decoding gave no finite picture"


class DroppedCandidate(UserWarning):
    """A candidate could not be scored and takes no further part."""


class UndecidedPair(UserWarning):
    """Two pictures could not be compared and count as equally good."""


def record_level(*verifiers: Verifier | None) -> float | None:
    """The noise level whose x0-predictions these verifiers ask for; None where none does.

    Raises DiffscaleError where they ask for those of different levels.
    """
    given = [each for each in verifiers if each is not None]
    asking = [(each.name, each.record_level) for each in given if isinstance(each, NeedsIntermediateX0)]
    if len({level for _, level in asking}) > 1:
        told = " and ".join(f"{name!r} asks for {level}" for name, level in asking)
        raise DiffscaleError(f"One noise level is recorded on the way to a picture, but {told}: give both the same.")
    return asking[0][1] if asking else None


@dataclass(frozen=True)
class Recording:
    """The x0-predictions at noise level `level` that are recorded on the way to a picture, for the verifier `by`.

    `steers`: whether that is the one that is searched with, which then cannot score anything unfinished.
    """

    level: float
    by: str
    steers: bool


def recording_of(verifier: Verifier, choose: Verifier | None) -> Recording | None:
    """What the two ask for to be recorded, None if nothing; raises DiffscaleError as `record_level`."""
    level, steers = record_level(verifier, choose), isinstance(verifier, NeedsIntermediateX0)
    by = verifier if steers or choose is None else choose
    return None if level is None else Recording(level, by.name, steers)


def check_chooser(verifier: Verifier, choose: Verifier | None) -> None:
    """Raise DiffscaleError for a verifier that cannot `choose` among what is finished of a search by `verifier`."""
    if isinstance(choose, SetVerifier):
        raise DiffscaleError(
            f"Verifier {choose.name!r} scores by what was chosen before, so it cannot make the final choice: choose by "
            "another one, or search with it."
        )
    record_level(verifier, choose)


def at_stage(verifier: Verifier, stage: Stage) -> Verifier:
    """What judges pictures of that stage in the place of `verifier`: itself, unless it judges by what they become."""
    return verifier.unfinished(stage) if isinstance(verifier, JudgesUnfinished) else verifier


def call_verifier(verifier: Verifier, images: Tensor, prompts: list[str], *recorded: Tensor) -> Any:
    """What the verifier gives of copies of the pictures, so that one which changes its input spoils nobody's."""
    return verifier(images.clone(), list(prompts), *(each.clone() for each in recorded))


def finite_pictures(images: Tensor, *recorded: Tensor) -> Tensor:
    """Which of B pictures or videos, and of those recorded on their way, are finite throughout: bool [B]."""
    each = torch.stack([given.isfinite().flatten(1).all(1) for given in (images, *recorded)])
    return each.all(0).cpu()


def safe_score(verifier: Verifier, images: Tensor, prompts: list[str], *recorded: Tensor) -> Tensor:
    """Scores float64 [b], or [b, K] of an ensemble, on the CPU; -inf, with a warning, for what cannot be scored.

    `images`: [b, 3, H, W], or frames of videos [b, F, 3, H, W]. `recorded`: the pictures of recorded x0-predictions,
    alike, for a verifier that is a NeedsIntermediateX0. The verifier sees no picture that is not finite, which it
    might take for a black one.

    Raises DiffscaleError for a verifier that does not keep to its shape; out of memory passes through.
    """
    finite = finite_pictures(images, *recorded)
    if not finite.all():
        _warn_of_rows(~finite, prompts, _NOT_FINITE)
        return score_rows(finite, verifier, images, prompts, *recorded)
    try:
        return usable_scores(verifier, score_images(verifier, images, prompts, *recorded), prompts)
    except DiffscaleError:
        raise
    except Exception as error:
        if out_of_memory(error):
            raise
        if len(images) == 1:
            _warn(f"verifier {verifier.name!r} raised {raised(error)}", prompts[0])
            return dropped_scores(verifier, 1)
    # One of the batch made the verifier raise: find out which, and keep the others.
    each = ([given[i : i + 1] for given in (images, *recorded)] for i in range(len(prompts)))
    return torch.cat(
        [safe_score(verifier, one[0], [prompt], *one[1:]) for one, prompt in zip(each, prompts, strict=True)]
    )


def safe_compare(verifier: Compares, first: Tensor, second: Tensor, prompts: list[str]) -> Tensor:
    """Probabilities float64 [b] on the CPU that `first` [b, 3, H, W] is better than `second`; see `Compares.compare`.

    0.5, with a warning, for pairs that cannot be compared, whatever is wrong: the search is over, and what it found is
    not to be lost. Raises the DiffscaleErrors of the verifier but Unsuited; out of memory passes through.
    """
    try:
        raw = _numbers(verifier.compare(first.clone(), second.clone(), list(prompts)))
        if tuple(raw.shape) not in ((len(prompts),), (len(prompts), 1)):
            raise ValueError(f"it gave shape {tuple(raw.shape)} for {len(prompts)} pairs")
    except Exception as error:
        if out_of_memory(error) or (isinstance(error, DiffscaleError) and not isinstance(error, Unsuited)):
            raise
        if len(prompts) == 1:
            _warn_of_pair(f"verifier {verifier.name!r} raised {raised(error)}", prompts[0])
            return torch.full((1,), 0.5, dtype=torch.float64)
        each = ((first[i : i + 1], second[i : i + 1], [prompt]) for i, prompt in enumerate(prompts))
        return torch.cat([safe_compare(verifier, *one) for one in each])
    found = raw.detach().cpu().double().reshape(-1).clone()
    for at in (~((found >= 0) & (found <= 1))).nonzero().flatten().tolist():
        _warn_of_pair(f"verifier {verifier.name!r} gave {found[at].item()}", prompts[at])
        found[at] = 0.5
    return found


def score_unflagged(
    flagged: Tensor, verifier: Verifier, images: Tensor, prompts: list[str], *recorded: Tensor
) -> Tensor:
    """As `safe_score`, but -inf, with a warning, for pictures `flagged` [b] by a safety checker, which are not shown to
    the verifier."""
    if not flagged.any():
        return safe_score(verifier, images, prompts, *recorded)
    warn_of_flagged(flagged, prompts)
    return score_rows(~flagged, verifier, images, prompts, *recorded)


def warn_of_flagged(flagged: Tensor, prompts: list[str]) -> None:
    """A DroppedCandidate for each picture `flagged` [b] by a safety checker."""
    _warn_of_rows(flagged, prompts, "the pipeline's safety checker flagged its picture")


def score_rows(usable: Tensor, verifier: Verifier, images: Tensor, prompts: list[str], *recorded: Tensor) -> Tensor:
    """As `safe_score` for the rows that are `usable` [b]; -inf for the others."""
    scores = dropped_scores(verifier, len(images))
    if usable.any():
        rows = usable.to(images.device)
        left = [prompt for prompt, use in zip(prompts, usable.tolist(), strict=True) if use]
        scores[usable] = safe_score(verifier, images[rows], left, *(each[rows] for each in recorded))
    return scores


def dropped_scores(verifier: Verifier, count: int) -> Tensor:
    """The scores of candidates that are dropped: -inf float64 [count], or [count, K] of an ensemble."""
    size = (count, len(verifier.components)) if isinstance(verifier, PoolVerifier) else (count,)
    return torch.full(size, -math.inf, dtype=torch.float64)


def score_images(verifier: Verifier, images: Tensor, prompts: list[str], *recorded: Tensor) -> Tensor:
    """What the verifier gives: [b] or [b, K]; of a video, the mean over its frames, each judged as a picture.

    Raises DiffscaleError if it has another shape, or chooses among pictures and is given videos.
    """
    if images.ndim == 4:
        return shaped_scores(verifier, call_verifier(verifier, images, prompts, *recorded), prompts)
    if isinstance(verifier, SetVerifier):
        raise DiffscaleError(f"Verifier {verifier.name!r} chooses among pictures and cannot score videos; use another.")
    frames = images.shape[1]
    each = [prompt for prompt in prompts for _ in range(frames)]
    pictures = [given.flatten(0, 1) for given in (images, *recorded)]
    raw = shaped_scores(verifier, call_verifier(verifier, pictures[0], each, *pictures[1:]), each)
    return raw.view(len(prompts), frames, *raw.shape[1:]).mean(1)


def frame_strip(images: Tensor) -> Tensor:
    """Pictures [b, 3, H, W] as they are; of videos [b, F, 3, H, W] their frames side by side, [b, 3, H, F W]."""
    return images if images.ndim == 4 else images.permute(0, 2, 3, 1, 4).flatten(3)


def shaped_scores(verifier: Verifier, given: Any, prompts: list[str]) -> Tensor:
    """The verifier's answer, a tensor, an array or a list of numbers, as [b] or [b, K].

    Raises DiffscaleError if it is nothing of this, has another shape, or is complex.
    """
    if isinstance(verifier, PoolVerifier):
        wanted: tuple[tuple[int, ...], ...] = ((len(prompts), len(verifier.components)),)
    else:
        wanted = (len(prompts),), (len(prompts), 1)
    raw = _tensor(verifier, given, wanted[0])
    if tuple(raw.shape) not in wanted:
        raise DiffscaleError(
            f"Verifier {verifier.name!r} must return scores of shape {wanted[0]}, but returned shape "
            f"{tuple(raw.shape)}."
        )
    return raw.reshape(wanted[0])


def _tensor(verifier: Verifier, given: Any, wanted: tuple[int, ...]) -> Tensor:
    try:
        return _numbers(given)
    except (TypeError, ValueError) as error:
        raise DiffscaleError(
            f"Verifier {verifier.name!r} must return scores of shape {wanted}, as a tensor, an array or a list of "
            f"numbers, but returned {_described(given)}."
        ) from error


def _numbers(given: Any) -> Tensor:
    """What a verifier gave as a tensor; raises TypeError or ValueError for what holds something else than numbers."""
    if given is None:
        raise TypeError("it gave None")  # which NumPy takes for a NaN
    if given.is_complex() if isinstance(given, Tensor) else np.iscomplexobj(given):
        raise TypeError("it gave complex numbers")  # whose imaginary part would be cut off
    if isinstance(given, Tensor):
        return given
    # Copied, since torch takes no array that is read-only or runs backwards.
    return torch.from_numpy(np.array(given, dtype=np.float64, order="C"))


def _described(given: Any) -> str:
    """What a verifier gave that is no scores, in a few words."""
    name = type(given).__name__
    return "None: let it return them" if given is None else f"a {name} that holds something else"


def usable_scores(verifier: Verifier, raw: Tensor, prompts: list[str], finite: Tensor | None = None) -> Tensor:
    """Scores float64 on the CPU, -inf with a warning where they, or one of their components, are not finite.

    `finite`: bool [b], which pictures could be looked at, see `finite_pictures`; None: all.
    """
    # To the CPU first: not every device has float64.
    scores = raw.detach().cpu().double().clone()
    wrong = ~scores.isfinite().view(len(scores), -1).all(1)
    if finite is not None:
        _warn_of_rows(~finite, prompts, _NOT_FINITE)
        scores[~finite], wrong = -math.inf, wrong & finite
    for at in wrong.nonzero().flatten().tolist():
        _warn(f"verifier {verifier.name!r} gave {scores[at].tolist()}", prompts[at])
        scores[at] = -math.inf
    return scores


def _warn_of_rows(dropped: Tensor, prompts: list[str], why: str) -> None:
    for row in dropped.nonzero().flatten().tolist():
        _warn(why, prompts[row])


def _warn_of_pair(what: str, prompt: str) -> None:
    warnings.warn(f"Two candidates of {prompt!r} count as equal: {what}.", UndecidedPair, stacklevel=2)


def _warn(what: str, prompt: str) -> None:
    warnings.warn(f"Dropped a candidate of {prompt!r}: {what}.", DroppedCandidate, stacklevel=2)
