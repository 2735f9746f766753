"""The verifiers of a tape by name, and ensembles of them, and what these say of all that the tape holds."""

from functools import partial
from typing import Final, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from diffscale.registry.arguments import parse
from diffscale.registry.choice import choose
from diffscale.tape.sampler import TapeVerifier
from diffscale.tape.tape import Tape
from diffscale.tape.value import foretold
from diffscale.types import PoolVerifier, Verifier
from diffscale.verifiers.ensemble import Combined, Ensemble, Weighted, ensemble, members, weighted
from diffscale.verifiers.valued import read_for, valued

_FACTORIES: Final = {"ensemble": ensemble, "weighted": weighted}
_VALUED: Final = "valued"
_KINDS: Final = {"ensemble": Ensemble, "weighted": Weighted}


def verifier_of(tape: Tape, text: str) -> Verifier:
    """The verifier that the tape calls `text`, one with a value model, or the `ensemble` or `weighted` mean of some.

    Raises DiffscaleError for one that the tape does not hold, and for a value model of what it has no views of.
    """
    if text.partition(" ")[0] not in _KINDS:
        return _single(tape, text)
    name, arguments = parse(text, "verifier", _FACTORIES)
    return _KINDS[name](name, *members(**arguments, load=partial(_single, tape)))


def _single(tape: Tape, text: str) -> TapeVerifier:
    if text.partition(" ")[0] != _VALUED:
        return TapeVerifier(tape, text)
    model = read_for(**choose(text, "verifier", {_VALUED: valued}, ("images", "prompts")).arguments)
    return TapeVerifier(tape, model.verifier, foretold(tape, model))


def _singles(verifier: Verifier) -> list[TapeVerifier]:
    each = verifier.members if isinstance(verifier, Combined) else [verifier]
    return cast(list[TapeVerifier], each)


def recorded_names(tape: Tape, text: str) -> list[str]:
    """What the tape calls that verifier, or the members of that ensemble; raises as `verifier_of` does."""
    return [each.name for each in _singles(verifier_of(tape, text))]


def scores_of(tape: Tape, text: str) -> Tensor:
    """Its scores of all columns, float64 [P, N, C]; an ensemble's are those within the N of a prompt and a column.

    Raises as `verifier_of` does.
    """
    verifier = verifier_of(tape, text)
    each = torch.stack([single.scores for single in _singles(verifier)], -1)
    if not isinstance(verifier, PoolVerifier):
        return each[..., 0]
    pools = each.transpose(1, 2).flatten(0, 1)  # [P C, N, K]
    values = torch.stack([verifier.aggregate(pool) for pool in pools])
    return values.view(len(tape.prompts), tape.width, -1).transpose(1, 2)


def finals(tape: Tape, text: str) -> NDArray[np.float64]:
    """Its scores of the finished samples, float64 [P, N]; see `scores_of`."""
    return np.asarray(scores_of(tape, text)[..., -1])
