"""What verifiers say of pictures, kept by picture and by the verifier's weights, and what they choose from a pool."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import FunctionType, MethodType

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from diffscale._util.errors import AllCandidatesFailed
from diffscale._util.fingerprints import array_digest, json_digest, network_digest
from diffscale.bench.papers import trainings
from diffscale.bench.papers.samples import Samples, open_store
from diffscale.bench.series import PromptRepeat
from diffscale.engine import noise
from diffscale.engine.batching import MicroBatch
from diffscale.engine.scoring import safe_score
from diffscale.types import NeedsIntermediateX0, PoolVerifier, SetVerifier, Verifier
from diffscale.verifiers import load
from diffscale.verifiers.ensemble import Combined

_TABLES = "CREATE TABLE IF NOT EXISTS scores (verifier TEXT, picture TEXT, value REAL, PRIMARY KEY (verifier, picture))"


class Scores:
    """Verifiers by their texts, as they are for pictures of a model, and what they said before, in `folder`."""

    def __init__(self, folder: Path, device: str) -> None:
        self.device = device
        self._store = open_store(folder / "scores.sqlite", _TABLES)
        self._loaded: dict[tuple[str, str], Verifier] = {}
        self._digests: dict[int, str] = {}

    def verifier(self, text: str, model: str) -> Verifier:
        """Verifier `text` for pictures of `model`; raises DiffscaleError if it cannot be loaded."""
        key = text, trainings.base_of(model)
        if key not in self._loaded:
            self._loaded[key] = load(text, device=self.device, image_model=key[1])
        return self._loaded[key]

    def id(self, text: str, model: str) -> str:
        """Eight hexadecimal digits that change with the weights of the verifier's networks."""
        return self._digest(self.verifier(text, model))

    def _digest(self, verifier: Verifier) -> str:
        # Loaded verifiers are never let go, so that their addresses stay theirs.
        if id(verifier) not in self._digests:
            self._digests[id(verifier)] = verifier_digest(verifier)
        return self._digests[id(verifier)]

    def of_pictures(
        self, text: str, model: str, prompt: str, pictures: Tensor, recorded: Callable[[], Tensor] | None = None
    ) -> NDArray[np.float64]:
        """One value [n] of each of the pictures uint8 [n, 3, H, W] of a prompt, within this pool.

        `recorded`: gives their predictions, to a verifier that asks for them. -inf where one cannot be scored.
        """
        verifier = self.verifier(text, model)
        if isinstance(verifier, SetVerifier):
            raise TypeError("what a SetVerifier says depends on what was chosen before: see `choose`")
        if not isinstance(verifier, PoolVerifier):
            early = None
            if isinstance(verifier, NeedsIntermediateX0):
                if recorded is None:
                    raise TypeError(f"{text} needs recorded predictions")
                early = recorded()
            return self._cached(verifier, text, prompt, pictures, early)
        if isinstance(verifier, Combined):
            scores = np.stack([self._cached(each, each.name, prompt, pictures) for each in verifier.members], 1)
        else:
            scores = safe_score(verifier, pictures.float().to(self.device) / 255, [prompt] * len(pictures)).numpy()
        usable = np.isfinite(scores).all(1)
        values = np.full(len(scores), -np.inf)
        if usable.any():
            values[usable] = verifier.aggregate(torch.from_numpy(scores[usable])).numpy()
        return values

    def choose(self, samples: Samples, wanted: Sequence[PromptRepeat], n: int, text: str) -> list[int]:
        """The number of the best of the first `n` candidates of each that is `wanted`; of equals the first one.

        An ensemble ranks them among each other. What a SetVerifier chose counts for those after it: they come to it in
        an order by chance, repeat after repeat. Class after class, the first ones would have to stand for all classes,
        and with many candidates each would be the one that looks least like its own. Raises AllCandidatesFailed.
        """
        model = samples.call.model
        verifier = self.verifier(text, model)
        chosen: dict[str, int] = {}
        if isinstance(verifier, SetVerifier):
            verifier.begin()
        for each in _mixed(wanted, samples.call.seed) if isinstance(verifier, SetVerifier) else wanted:
            pictures = samples.pictures(each, range(n))
            if isinstance(verifier, SetVerifier):
                images = pictures.float() / 255
                values = verifier(images.to(self.device), [each.prompt] * n).numpy(force=True)  # type: ignore[operator]
            else:
                recorded = partial(samples.pictures, each, range(n), recorded=True)
                values = self.of_pictures(text, model, each.prompt, pictures, recorded)
            best = int(np.argmax(values))
            if not np.isfinite(values[best]):
                raise AllCandidatesFailed(
                    f"{text} gave none of the {n} candidates for {str(each.prompt)!r} a finite score: see the warnings "
                    "above, mend it and run again."
                )
            if isinstance(verifier, SetVerifier):
                verifier.choose(images[best], each.prompt)
            chosen[each.name] = best
        return [chosen[each.name] for each in wanted]

    @torch.no_grad()
    def _cached(
        self, verifier: Verifier, text: str, prompt: str, pictures: Tensor, early: Tensor | None = None
    ) -> NDArray[np.float64]:
        verifier_id = f"{text} {self._digest(verifier)}"
        given = [pictures] if early is None else [pictures, early]
        # The same pixels of another prompt have another score.
        condition = f"{getattr(prompt, 'class_id', None)} {prompt}"
        names = [array_digest(condition, *rows) for rows in zip(*given, strict=True)]
        query = f"SELECT picture, value FROM scores WHERE verifier = ? AND picture IN ({', '.join('?' * len(names))})"
        known = dict(self._store.read(query, (verifier_id, *names)))
        values = np.array([known.get(name, np.nan) for name in names])
        missing = np.flatnonzero(np.isnan(values))

        def score(part: slice) -> None:
            images = [each[missing[part]].float().to(self.device) / 255 for each in given]
            values[missing[part]] = safe_score(verifier, images[0], [prompt] * len(images[0]), *images[1:]).numpy()

        for _ in MicroBatch(64).map(score, len(missing)):
            pass
        # What could not be scored may be another time: an endpoint was down.
        fresh = [(verifier_id, names[i], values[i]) for i in missing if np.isfinite(values[i])]
        self._store.write("INSERT OR REPLACE INTO scores VALUES (?, ?, ?)", fresh)
        return values


def _mixed(wanted: Sequence[PromptRepeat], seed: int) -> list[PromptRepeat]:
    root = noise.root(seed)
    return sorted(wanted, key=lambda each: (each.repeat, noise.fold(root, each.condition, each.repeat, "order")))


def verifier_digest(verifier: Verifier) -> str:
    """Eight hexadecimal digits that change with the weights of the networks that `verifier` holds."""
    return json_digest([network_digest(network) for network in _networks(verifier, set())], 8)


def _networks(thing: object, seen: set[int]) -> Iterator[nn.Module]:
    """The networks in an object of ours, in its containers, and in what its functions close over."""
    if id(thing) in seen:
        return
    seen.add(id(thing))
    parts: Sequence[object] = ()
    match thing:
        case nn.Module():
            yield thing
        case dict():
            parts = list(thing.values())
        case list() | tuple():
            parts = thing
        case MethodType():
            parts = [thing.__self__]
        case FunctionType():
            parts = [cell.cell_contents for cell in thing.__closure__ or ()]
        case _ if type(thing).__module__.startswith("diffscale"):
            parts = list(getattr(thing, "__dict__", {}).values())
    for part in parts:
        yield from _networks(part, seen)
