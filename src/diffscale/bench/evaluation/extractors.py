"""Feature extractors by name: the seam between networks and the metrics that compare pictures.

An extractor is anything that fits `Extractor` (or `Classifier`, if it also tells classes). To add one, write a factory
`name(model: str | None = None, *, device="cpu", image_model="") -> Extractor`, whose signature is its configuration,
and name it in `EXTRACTORS`; the metrics find it by the names in `evaluate.COMPARED` (`is` asks for `inception`), users
by `--features`. A factory imports its network when it is called, so that no other one is loaded for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor, nn

from diffscale._util.fingerprints import network_digest
from diffscale.registry import parse


class Extractor(Protocol):
    """Makes features of pictures.

    `name` says network and weights (see `fingerprints.network_digest`): features are kept under it, and compare where
    it is the same. Features are kept in float32, as networks make them; every metric computes on them in float64.
    """

    @property
    def name(self) -> str: ...

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1], of any size and on any device."""


@runtime_checkable
class Classifier(Extractor, Protocol):
    """An extractor that also tells classes, as the Inception Score needs."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, classes] of `images` as `__call__` takes them."""


class Logits:
    """The logits of a classifier, as features of their own name."""

    def __init__(self, classifier: Classifier) -> None:
        self.name, self._classifier = f"{classifier.name} logits", classifier

    def __call__(self, images: Tensor) -> Tensor:
        return self._classifier.logits(images)


@dataclass(frozen=True)
class ClipFeatures:
    """CLIP's picture embeddings, projected, not normalised; the short edge is resized, the middle cut out."""

    net: Any
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        return self.net.features(images)


def clip(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Extractor:
    """Picture embeddings of a CLIP by Hub id, folder or name; by default that of CMMD, ViT-L/14 at 336 pixels."""
    from diffscale.verifiers.clip import Clip
    from diffscale.verifiers.defaults import default_model

    network = Clip.load(model or default_model(image_model, "clip", "openai/clip-vit-large-patch14-336"), device)
    towers = nn.ModuleList([network.net.vision_model, network.net.visual_projection])
    return ClipFeatures(network, f"clip {network_digest(towers)}")


def dino(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Extractor:
    """Class tokens of a DINOv2 by Hub id, folder or name; by default that of FD-DINOv2, ViT-L/14."""
    from diffscale.verifiers.defaults import default_model
    from diffscale.verifiers.dino import MODEL, load_dino

    return load_dino(model or default_model(image_model, "dino", MODEL), device)


def inception(model: str | None = None, *, device: Any = "cpu", image_model: str = "") -> Extractor:
    """Pooled features and classes of the InceptionV3 of FID, or of an image classifier by folder or name."""
    from diffscale.verifiers.defaults import default_model
    from diffscale.verifiers.inception import load_inception

    return load_inception(model or default_model(image_model, "inception", None), device)


EXTRACTORS: Final[dict[str, Callable[..., Extractor]]] = {"clip": clip, "dino": dino, "inception": inception}


def load(text: str, *, device: Any = "cpu", image_model: str = "") -> Extractor:
    """The extractor that "name", "name:model=ID" or "name model=ID" says, on `device`.

    `image_model`: the model whose pictures it will see; those of Shapes have networks of their own. Raises UnknownName
    for an unknown name, DiffscaleError for bad arguments or weights.
    """
    name, arguments = split(text)
    return EXTRACTORS[name](**arguments, device=device, image_model=image_model)


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an extractor as `load` takes it; raises as it does."""
    return parse(re.sub(r"^(\w+):", r"\1 ", text), "features", EXTRACTORS)
