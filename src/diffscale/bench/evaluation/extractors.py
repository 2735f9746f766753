"""Feature extractors by name: the seam between networks and the metrics that compare pictures.

An extractor is anything that fits `Extractor` (or `Classifier`, if it also tells classes). To add one, write a factory
`name(model: str = ..., *, device="cpu") -> Extractor`, whose signature is its configuration, and name it in
`EXTRACTORS`; the metrics find it by the names in `evaluate.COMPARED` (`is` asks for `inception`), users by
`--features`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor, nn

from diffscale._util.fingerprints import network_digest
from diffscale.registry.arguments import parse
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.defaults import build
from diffscale.verifiers.dino import load_dino
from diffscale.verifiers.inception import load_inception


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


@dataclass(frozen=True)
class Named:
    """An extractor by its name and function."""

    name: str
    function: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.function(images)


def clip(model: str = "openai/clip-vit-large-patch14-336", *, device: Any = "cpu") -> Extractor:
    """Picture embeddings of a CLIP by Hub id, folder or name; by default that of CMMD, ViT-L/14 at 336 pixels.

    They are projected, not normalised; the short edge of pictures is resized, the middle cut out.
    """
    network = Clip.load(model, device)
    towers = nn.ModuleList([network.net.vision_model, network.net.visual_projection])
    return Named(f"clip {network_digest(towers)}", network.features)


EXTRACTORS: Final[dict[str, Callable[..., Extractor]]] = {"clip": clip, "dino": load_dino, "inception": load_inception}
"""Factories by name, which is the kind of `verifiers.defaults.counterpart` too."""


def load(text: str, *, device: Any = "cpu", image_model: str = "") -> Extractor:
    """The extractor that "name", "name:model=ID" or "name model=ID" says, on `device`.

    `image_model`: the model whose pictures it will see; those of Shapes have networks of their own. Raises UnknownName
    for an unknown name, DiffscaleError for bad arguments or weights.
    """
    name, arguments = split(text)
    extractor: Extractor = build(EXTRACTORS[name], arguments, name, device=device, image_model=image_model)
    return extractor


def split(text: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an extractor as `load` takes it; raises as it does."""
    return parse(re.sub(r"^(\w+):", r"\1 ", text), "features", EXTRACTORS)
