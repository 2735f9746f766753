"""Pictures of candidates that can be the best of a search, are shown, or are its baseline: in a journal, or here."""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Final

from torch import Tensor
from torch.nn import functional as F

from diffscale._util.pixels import eight_bit
from diffscale.engine.journal import Journal

THUMBNAIL: Final = 256  # pixels a side


@dataclass
class KeptPictures:
    """Those of the search that `journal` knows by `name`; without one they are held in memory.

    Of each there are `image` (uint8) with its `latents`, and its `noise` where there is one, or a `thumbnail`, or both.
    """

    journal: Journal | None
    name: str
    _held: dict[int, dict[str, Tensor]] = field(default_factory=dict)

    def of(self, number: int) -> dict[str, Tensor]:
        """What is kept of a candidate."""
        if self.journal is None:
            return self._held.get(number, {})
        return self.journal.kept(self.name, number) or {}

    def keep(self, number: int, picture: dict[str, Tensor], full_size: Collection[int], shown: Collection[int]) -> None:
        """Keep `picture` of a candidate; those in memory are forgotten when they are not `full_size` or `shown` now."""
        if self.journal is not None:
            self.journal.keep(self.name, number, picture)
            return
        self._held[number] = picture
        for other, tensors in list(self._held.items()):
            if other not in shown:
                tensors.pop("thumbnail", None)
            if other not in full_size:
                self._held[other] = {name: each for name, each in tensors.items() if name == "thumbnail"}
            if not self._held[other]:
                del self._held[other]


def to_keep(image: Tensor, whole: dict[str, Tensor], shown: bool) -> dict[str, Tensor]:
    """What is kept of a candidate: `image` with the tensors of `whole` if there are any, `thumbnail` if it is
    `shown`."""
    image = image.detach().float()
    kept = {name: tensor.detach().cpu().clone() for name, tensor in whole.items()}
    if whole:
        kept["image"] = eight_bit(image)
    if shown:
        side = max(image.shape[1:])
        if side > THUMBNAIL:
            size = [max(1, round(s * THUMBNAIL / side)) for s in image.shape[1:]]
            image = F.interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        kept["thumbnail"] = eight_bit(image)
    return kept
