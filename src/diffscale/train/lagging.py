"""The trained weights as they were some rounds ago: what samples are made by and changes measured against."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_PREFIX = "lagging."


class LaggingWeights:
    """A moving average of `parameters`, which follows them by `update`, and can take their place.

    At update number i, from 0, its decay is min(`rate` i, `most`), as in the authors' code of DiffusionNFT (Zheng et
    al. 2025, arXiv 2509.16117) and of DGPO (Luo et al. 2025, arXiv 2510.08425). So it begins as a copy,
    and with a rate of 0 it is the weights at the last update.
    """

    def __init__(self, parameters: Mapping[str, nn.Parameter], rate: float, most: float) -> None:
        self._parameters, self._rate, self._most = dict(parameters), rate, most
        self._average = {name: each.detach().clone() for name, each in self._parameters.items()}

    @torch.no_grad()
    def update(self, number: int) -> None:
        """Follow the weights, for the `number`th time, from 0."""
        decay = min(self._rate * number, self._most)
        for name, each in self._parameters.items():
            self._average[name].lerp_(each.detach(), 1 - decay)

    @contextmanager
    def used(self) -> Iterator[None]:
        """Have the network compute with these weights until the block ends; no graph is kept."""
        self._swap()
        try:
            with torch.no_grad():
                yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, each in self._parameters.items():
            each.data, self._average[name] = self._average[name], each.data
        # Autocast keeps the weights that it has cast, and would go on with those.
        torch.clear_autocast_cache()

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a checkpoint keeps."""
        return {_PREFIX + name: each for name, each in self._average.items()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave, among whatever `state` has; raises KeyError for other weights."""
        for name, each in self._average.items():
            each.copy_(state[_PREFIX + name])
