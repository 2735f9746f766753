"""Random search as a choice from the pool."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffscale._util.errors import AllCandidatesFailed
from diffscale.bench.papers.calls import Slot
from diffscale.bench.papers.pool import Pool
from diffscale.bench.papers.scoring import Scoring
from diffscale.engine import noise
from diffscale.types import NeedsIntermediateX0, SetVerifier


def pick(pool: Pool, slots: Sequence[Slot], n: int, verifier: str, scoring: Scoring) -> list[int]:
    """The number of the best of the first `n` candidates of every slot; of equals the first one.

    An ensemble ranks them among each other. What a SetVerifier verifier chose for a slot counts for the next one: slots
    come to it in an order by chance, repeat after repeat. Class after class, the first ones would have to stand for all
    classes, and with many candidates each would be the one that looks least like its own.
    """
    model = pool.call.model
    judge = scoring.verifier(verifier, model)
    if isinstance(judge, SetVerifier):
        judge.begin()
    chosen: dict[str, int] = {}
    for slot in _mixed(slots, pool.call.seed) if isinstance(judge, SetVerifier) else slots:
        pictures = pool.pictures(slot, range(n))
        if isinstance(judge, SetVerifier):
            images = pictures.float() / 255
            values = judge(images.to(scoring.device), [slot.prompt] * n).numpy(force=True)  # type: ignore[operator]
        else:
            recorded = _recorded(pool, slot, n) if isinstance(judge, NeedsIntermediateX0) else None
            scores = scoring.scores(verifier, model, slot.prompt, pictures, recorded)
            values = scoring.aggregate(verifier, model, scores)
        best = int(np.argmax(values))
        if not np.isfinite(values[best]):
            raise AllCandidatesFailed(
                f"{verifier} gave none of the {n} candidates for {str(slot.prompt)!r} a finite score: see the warnings "
                "above, mend it and run again."
            )
        if isinstance(judge, SetVerifier):
            judge.choose(images[best], slot.prompt)
        chosen[slot.name] = best
    return [chosen[slot.name] for slot in slots]


def _mixed(slots: Sequence[Slot], seed: int) -> list[Slot]:
    root = noise.root(seed)
    return sorted(slots, key=lambda slot: (slot.repeat, noise.fold(root, slot.condition, slot.repeat, "order")))


def _recorded(pool: Pool, slot: Slot, n: int):  # type: ignore[no-untyped-def]
    return lambda: pool.pictures(slot, range(n), recorded=True)
