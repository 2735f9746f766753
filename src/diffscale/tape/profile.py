"""What a tape tells of a model and a verifier, so that a search can choose by it: a profile, and its file."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import write_json
from diffscale.searches.looks import Agreement, Look
from diffscale.searches.profiles import FORMAT, Profile
from diffscale.tape.tape import Tape
from diffscale.tape.verifiers import recorded_names, scores_of


def measured(tape: Tape, verifier: str) -> Profile:
    """How the tape's looks agree with its finished samples by `verifier`, and the seconds of a row.

    The agreement is the mean over prompts of Spearman's rank correlations of a prompt's candidates, over those prompts
    where both differ among the candidates; 0 where they never do. An ensemble's seconds are those of all its members.
    Raises DiffscaleError for a tape without looks, with one candidate, or without that verifier.
    """
    looks = [Look(steps, on_the_way=True) for steps in tape.predictions]
    looks += [Look(kind.steps, kind.via) for kind in tape.drafts]
    if not looks or tape.candidates < 2:
        raise DiffscaleError(
            "A profile needs a tape of two candidates or more, with predictions or drafts: record one."
        )
    matrix = _mean_correlations(scores_of(tape, verifier).numpy())
    names = recorded_names(tape, verifier)
    seconds = {
        "step": tape.seconds.get("step", 0.0),
        "decode": tape.seconds.get("decode", 0.0),
        "verify": sum(tape.seconds.get(name, 0.0) for name in names),
    }
    shares = tuple(look.steps / tape.steps for look in looks)
    return Profile(Agreement(tuple(looks), shares, tuple(map(tuple, matrix.tolist()))), tape.steps, seconds)


def _mean_correlations(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean [C, C] over prompts of the rank correlations of `scores` [P, N, C], rounded to 4 digits."""
    ranks = rankdata(scores, axis=1)
    away = ranks - ranks.mean(1, keepdims=True)
    spread = np.sqrt((away**2).mean(1))
    flat = spread == 0
    unit = away / np.where(flat, 1.0, spread)[:, None]
    both = ~flat[:, :, None] & ~flat[:, None, :]
    each = np.einsum("pnc,pnd->pcd", unit, unit) / scores.shape[1]
    mean = each.sum(0) / np.maximum(both.sum(0), 1)
    upper = np.triu(mean.clip(-1, 1).round(4), 1)
    return np.asarray(upper + upper.T + np.eye(len(mean)))


def write_profile(profile: Profile, path: Path, about: dict[str, Any]) -> None:
    """Write `profile` to the JSON file `path`, which `searches.profiles.read_profile` reads; `about`: whence it is."""
    content = {
        "format": FORMAT,
        "steps": profile.steps,
        "looks": [vars(look) for look in profile.agreement.looks],
        "matrix": profile.agreement.matrix,
        "seconds": profile.seconds,
        "about": about,
    }
    write_json(path, content)
