"""Oracle Inception Score (Ma et al. 2025): the probability that InceptionV3 gives to the conditioning class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from diffscale._util.files import read_config
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import download, fetch, load_into, load_state, local
from diffscale.suites.imagenet import inception_order
from diffscale.types import Verifier
from diffscale.verifiers.classes import Output, class_ids, class_scores
from diffscale.verifiers.classifier import load_classifier
from diffscale.verifiers.inception_net import PUBLISHED, InceptionV3, build
from diffscale.verifiers.preprocess import resize_like_tensorflow

URL: Final = (
    "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
)
SHA256: Final = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
FILE: Final = "pt_inception-2015-12-05-6726825d.pth"


class Features(Protocol):
    """A classifier in FID's part: `order` has the output of class i, `name` says the network and its weights."""

    @property
    def name(self) -> str: ...

    @property
    def order(self) -> Tensor: ...

    def __call__(self, images: Tensor) -> Tensor:
        """PoolVerifier features [B, D] of `images` [B, 3, H, W] in [0, 1]."""

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, outputs]."""

    def probabilities(self, images: Tensor) -> Tensor:
        """Their softmax."""


@dataclass
class Inception:
    """An `InceptionV3` with its preprocessing, for FID, IS and the oracle.

    `order`: the output that class i has, int64 [classes]. `name` says the network and its weights. Pictures of any
    shape are stretched to `side` as in TensorFlow 1. Differentiable in the pictures.
    """

    net: InceptionV3
    side: int
    order: Tensor
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """PoolVerifier features [B, D] (2048 of the published network) of `images` [B, 3, H, W] in [0, 1]."""
        images = images.to(self.net.fc.weight.device).float()
        # The network was trained on bytes, minus 128, divided by 128.
        return self.net((resize_like_tensorflow(images, self.side, self.side) * 255 - 128) / 128)

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, outputs] of `images`, in the network's own order."""
        return self.net.fc(self(images))

    def probabilities(self, images: Tensor) -> Tensor:
        """Probabilities [B, outputs] of `images`, in the network's own order; rows add up to 1."""
        return self.logits(images).softmax(-1)


@dataclass
class OracleInception:
    """Verifier over an `Inception`: probability of the conditioning class, in [0, 1].

    The Inception Score of a set rises with it, so that it is an oracle where that is the judge. Differentiable in the
    pictures.
    """

    inception: Features
    output: Output = "probability"
    name: str = "inception"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their classes; higher is better."""
        order = self.inception.order
        ids = order[class_ids(prompts, len(order), self.name)]
        return class_scores(self.inception.logits(images), ids, self.output)


def load_inception(model: str | None = None, device: Any = "cpu", sha256: str | None = None) -> Features:
    """An InceptionV3 by file, folder, Hub id or name; by default the published network of FID.

    A folder with config.json is read from safetensors: as `save_inception` makes it, of any width, or any image
    classifier of transformers. Other files are pickles in the layout of pt_inception-2015-12-05, held to `sha256` or
    the published digest. Raises DiffscaleError for weights that cannot be loaded.
    """
    where = None if model is None else local(model)
    config = dict(PUBLISHED)
    if where is not None and (where / "config.json").is_file():
        config = read_config(where / "config.json")
        if "model_type" in config:
            return load_classifier(str(where), device)
        path = where / "model.safetensors"
    else:
        path = download(URL, SHA256) if model is None else fetch(model, FILE)
    net = build(config)
    load_into(net, load_state(path, sha256 or SHA256), path)
    net.to(device).eval().requires_grad_(False)
    plain = config["order"] == "plain"
    order = torch.arange(config["outputs"]) if plain else torch.tensor(inception_order())
    return Inception(net, config["side"], order, f"inception {network_digest(net)}")


def inception(
    model: str | None = None,
    output: Output = "probability",
    sha256: str | None = None,
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """Oracle Inception Score: probability of the class, in [0, 1]; `model` is a file, folder, Hub id or name.

    Raises DiffscaleError for weights that cannot be loaded.
    """
    if model is None and image_model.startswith("shapes-"):
        model = "shapes-inception"
    return OracleInception(load_inception(model, device, sha256), output)
