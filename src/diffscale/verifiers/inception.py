"""Oracle Inception Score (Ma et al. 2025): the probability that InceptionV3 gives to the conditioning class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from transformers import AutoModelForImageClassification

from diffscale._util.files import checked
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import download, fetch, load_into, load_state, pretrained_network, saved_config
from diffscale.suites.imagenet import inception_order
from diffscale.types import Verifier
from diffscale.verifiers.classes import Classifier, ClassVerifier, Output
from diffscale.verifiers.defaults import default_model
from diffscale.verifiers.inception_net import PUBLISHED, InceptionConfig, InceptionV3
from diffscale.verifiers.preprocess import Preprocessing, resize_like_tensorflow

FILE: Final = "pt_inception-2015-12-05-6726825d.pth"
URL: Final = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{FILE}"
SHA256: Final = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


@dataclass
class Inception(Classifier):
    """An `InceptionV3`, for FID, IS and the oracle.

    Pictures of any shape are stretched to `side` as in TensorFlow 1. Its pooled features have 2048 numbers in the
    published network.
    """

    side: int

    def __call__(self, images: Tensor) -> Tensor:
        images = images.to(self.net.fc.weight.device, torch.float32)
        # The network was trained on bytes, minus 128, divided by 128.
        return self.net((resize_like_tensorflow(images, self.side, self.side) * 255 - 128) / 128)

    def logits(self, images: Tensor) -> Tensor:
        return self.net.fc(self(images))


@dataclass
class PretrainedClassifier(Classifier):
    """Any image classifier of transformers in the place of InceptionV3, as shapes-inception is.

    Pictures of any shape are stretched. Its features are pooled, as the last layer reads them.
    """

    preprocessing: Preprocessing

    def __call__(self, images: Tensor) -> Tensor:
        out = getattr(self.net, self.net.base_model_prefix)(pixel_values=self._pixels(images))
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        return self.net(pixel_values=self._pixels(images)).logits

    def _pixels(self, images: Tensor) -> Tensor:
        return self.preprocessing.stretch(images.to(self.net.device, torch.float32))


def load_inception(model: str | None = None, device: Any = "cpu", sha256: str | None = None) -> Classifier:
    """An InceptionV3 by file, folder, Hub id or name; by default the published network of FID.

    A folder with config.json is read from safetensors: an InceptionV3 of any width, see `InceptionConfig`, or
    any image classifier of transformers. Other files are pickles in the layout of pt_inception-2015-12-05, held to
    `sha256` or the published digest. Raises DiffscaleError for weights that cannot be loaded.
    """
    saved = None if model is None else saved_config(model)
    if model is not None and saved is not None and "model_type" in saved:
        net = pretrained_network(AutoModelForImageClassification, model, "image classifier", device)
        preprocessing = Preprocessing.load(model, "image classifier")
        classes = torch.arange(net.config.num_labels)
        return PretrainedClassifier(net, classes, f"inception {network_digest(net)}", preprocessing)
    path = download(URL, SHA256) if model is None else fetch(model, FILE if saved is None else "model.safetensors")
    config = PUBLISHED if saved is None else checked(InceptionConfig, saved, path.with_name("config.json"))
    net = InceptionV3(config.width, config.outputs)
    load_into(net, load_state(path, sha256 or SHA256), path)
    net.to(device).eval().requires_grad_(False)
    order = torch.arange(config.outputs) if config.order == "plain" else torch.tensor(inception_order())
    return Inception(net, order, f"inception {network_digest(net)}", config.side)


def inception(
    model: str | None = None,
    output: Output = "probability",
    sha256: str | None = None,
    *,
    device: Any = "cpu",
    image_model: str = "",
) -> Verifier:
    """Oracle Inception Score: probability of the class, in [0, 1]; `model` is a file, folder, Hub id or name.

    The Inception Score of a set rises with it, so that it is an oracle where that is the judge. Raises DiffscaleError
    for weights that cannot be loaded.
    """
    model = model or default_model(image_model, "inception", None)
    return ClassVerifier(load_inception(model, device, sha256), output, "inception")
