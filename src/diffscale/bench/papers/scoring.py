"""What verifiers say of pictures, kept by picture and by the verifier's weights."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffscale._util.fingerprints import network_digest
from diffscale.bench.papers import trained
from diffscale.bench.papers.store import Store, name_of
from diffscale.engine.batching import MicroBatch
from diffscale.engine.scoring import safe_score
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Verifier
from diffscale.verifiers import load
from diffscale.verifiers.ensemble import Combined


class Scoring:
    """Verifiers by their texts, for pictures of `image_model`, and what they said before, in `folder`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        self.store = Store(folder / "scores.sqlite")
        self._loaded: dict[tuple[str, str], Verifier] = {}
        self._digests: dict[int, str] = {}

    def verifier(self, text: str, model: str) -> Verifier:
        """Verifier `text` as it is for pictures of `model`; raises DiffscaleError if it cannot be loaded."""
        key = text, Path(trained.base_of(model)).name
        if key not in self._loaded:
            self._loaded[key] = load(text, device=self.device, image_model=key[1])
        return self._loaded[key]

    def id(self, text: str, model: str) -> str:
        """Changes with the verifier's weights."""
        return self._digest(self.verifier(text, model))

    def _digest(self, verifier: Verifier) -> str:
        # Loaded verifiers are never let go, so that their addresses stay theirs.
        if id(verifier) not in self._digests:
            self._digests[id(verifier)] = weights_digest(verifier)
        return self._digests[id(verifier)]

    def scores(
        self,
        text: str,
        model: str,
        prompt: str,
        pictures: Tensor,
        recorded: Callable[[], Tensor] | None = None,
    ) -> NDArray[np.float64]:
        """Scores float64 [n], or [n, K] of an ensemble, of pictures uint8 [n, 3, H, W] of one prompt.

        `recorded`: gives their predictions, to a verifier that asks for them. -inf where one cannot be scored.
        """
        verifier = self.verifier(text, model)
        if isinstance(verifier, SetVerifier):
            raise TypeError("what a choosing verifier says depends on what was chosen: see `choosing.pick`")
        if isinstance(verifier, Combined):
            each = [self._kept(member, member.name, prompt, pictures, None) for member in verifier.members]
            return np.stack(each, 1)
        if isinstance(verifier, PoolVerifier):
            return safe_score(verifier, pictures.float().to(self.device) / 255, [prompt] * len(pictures)).numpy()
        early = None
        if isinstance(verifier, NeedsIntermediateX0):
            if recorded is None:
                raise TypeError(f"{text} needs recorded predictions")
            early = recorded()
        return self._kept(verifier, text, prompt, pictures, early)

    def aggregate(self, text: str, model: str, scores: NDArray[np.float64]) -> NDArray[np.float64]:
        """One value [n] of each row of what `scores` gave, within this pool; what was dropped is -inf."""
        verifier = self.verifier(text, model)
        if not isinstance(verifier, PoolVerifier):
            return scores
        usable = np.isfinite(scores).all(1)
        values = np.full(len(scores), -np.inf)
        if usable.any():
            values[usable] = verifier.aggregate(torch.from_numpy(scores[usable])).numpy()
        return values

    @torch.no_grad()
    def _kept(
        self, verifier: Verifier, text: str, prompt: str, pictures: Tensor, early: Tensor | None
    ) -> NDArray[np.float64]:
        weights = self._digest(verifier)
        condition = getattr(prompt, "class_id", None), str(prompt)
        # The same pixels of another prompt have another score.
        names = [
            name_of(picture, condition, *([] if early is None else [early[i]])) for i, picture in enumerate(pictures)
        ]
        values = self.store.scores(f"{text} {weights}", names)
        missing = np.flatnonzero(np.isnan(values))

        def score(part: slice) -> None:
            rows = torch.from_numpy(missing[part])
            given = [each[rows].float().to(self.device) / 255 for each in (pictures, early) if each is not None]
            values[missing[part]] = safe_score(verifier, given[0], [prompt] * len(rows), *given[1:]).numpy()

        for _ in MicroBatch(64).map(score, len(missing)):
            pass
        # What could not be scored may be another time: an endpoint was down.
        usable = [i for i in missing if np.isfinite(values[i])]
        self.store.score(f"{text} {weights}", [names[i] for i in usable], values[usable].tolist())
        return values


def weights_digest(verifier: Verifier) -> str:
    """Eight hexadecimal digits that change with the weights of the networks that `verifier` holds."""
    prints = [network_digest(net) for net in _networks(verifier, set())]
    return hashlib.sha256(" ".join(prints).encode()).hexdigest()[:8]


def _networks(thing: object, seen: set[int]) -> Iterator[nn.Module]:
    if id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, nn.Module):
        yield thing
    elif isinstance(thing, dict | list | tuple):
        for part in thing.values() if isinstance(thing, dict) else thing:
            yield from _networks(part, seen)
    elif isinstance(thing, MethodType):
        yield from _networks(thing.__self__, seen)
    elif isinstance(thing, FunctionType):
        for cell in thing.__closure__ or ():
            yield from _networks(cell.cell_contents, seen)
    elif type(thing).__module__.startswith("diffscale"):
        for part in vars(thing).values() if hasattr(thing, "__dict__") else ():
            yield from _networks(part, seen)
