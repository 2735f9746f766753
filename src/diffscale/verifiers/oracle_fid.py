"""Oracle FID (paper A, Ma et al. 2025, section 3.1): each slot of a batch takes the picture that lowers its FID most.

The Frechet distance is that of the set chosen so far, with a candidate added, to the reference statistics, so the slots
are filled one after another. With few pictures the distance is far from that of many; what counts is its order.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.metrics.frechet import root
from diffscale.metrics.statistics import load_reference
from diffscale.models.shipped import local_path
from diffscale.types import Verifier
from diffscale.verifiers.classes import Classifier
from diffscale.verifiers.inception import SHA256, load_inception


@dataclass
class OracleFid:
    """Verifier and `SetVerifier`: minus the Frechet distance of the chosen and the picture to the reference, at most 0.

    `inception` makes features [B, D]; `mean` [D] and `root` [D, R] are the reference's, root root^T its covariance,
    float64. Not differentiable. Conditions are not looked at.
    """

    inception: Classifier
    mean: Tensor
    root: Tensor
    name: str = "oracle_fid"
    _chosen: list[Tensor] = field(default_factory=list, repr=False)

    def begin(self) -> None:
        """Nothing is chosen yet."""
        self._chosen.clear()

    def choose(self, image: Tensor, prompt: str) -> None:
        """`image` [3, H, W] in [0, 1] joins the set."""
        self._chosen.append(self._features(image[None])[0])

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score float64 [B] of `images` [B, 3, H, W] in [0, 1]; higher is better."""
        features = self._features(images)
        chosen = torch.stack([*self._chosen, torch.zeros(features.shape[1], dtype=torch.float64)])
        return torch.stack([-self._distance(torch.cat([chosen[:-1], one[None]])) for one in features])

    @torch.no_grad()
    def _features(self, images: Tensor) -> Tensor:
        return self.inception(images).cpu().double()

    def _distance(self, features: Tensor) -> Tensor:
        """Frechet distance of `features` [n, D] to the reference.

        tr (A B)^1/2 is the sum of the singular values of X L / (n - 1)^1/2, X the centred features and L the root: of
        a matrix with min(n, D) of them, where the covariances themselves are D x D.
        """
        mean = features.mean(0)
        centred = (features - mean) / max(len(features) - 1, 1) ** 0.5
        cross = torch.linalg.svdvals(centred @ self.root).sum()
        traces = centred.square().sum() + self.root.square().sum()
        return (mean - self.mean).square().sum() + traces - 2 * cross


def oracle_fid(
    reference: str | None = None, model: str | None = None, sha256: str = SHA256, *, device: Any = "cpu"
) -> Verifier:
    """Minus the FID of all slots filled so far with the picture, at most 0; slots are filled one after another.

    `reference`: statistics as `diffscale evaluate --save-reference` writes them, made with the same Inception; by
    default reference.safetensors in the folder of `model`. `model`, `sha256`: as for `inception`. Raises DiffscaleError
    for weights or statistics that cannot be loaded.
    """
    beside = None if model is None else local_path(model)
    if reference is None and beside is not None and (beside / "reference.safetensors").is_file():
        reference = str(beside / "reference.safetensors")
    if reference is None:
        raise DiffscaleError("oracle_fid needs the statistics of real pictures: give reference=FILE.")
    inception = load_inception(model, sha256, device=device)
    statistics = load_reference(Path(reference).expanduser(), inception.name)
    return OracleFid(inception, torch.from_numpy(statistics.mean), torch.from_numpy(root(statistics.covariance)))
