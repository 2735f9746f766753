"""Classifiers as verifiers: the class that a condition means, and what a classifier says of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale.models.files import pretrained_network
from diffscale.verifiers.preprocess import Preprocessing

Output = Literal["log_probability", "probability", "logit"]
"""Of the conditioning class: log of the softmax, at most 0; the softmax, in [0, 1]; or the logit before it."""


@dataclass
class Classifier:
    """A network that tells classes, with its preprocessing: features and logits of pictures.

    `order`: the output that class i has, int64 [classes]. `name` says the network and its weights. Differentiable in
    the pictures.
    """

    net: Any
    order: Tensor
    name: str

    def __call__(self, images: Tensor) -> Tensor:
        """Features [B, D] of `images` [B, 3, H, W] in [0, 1]."""
        raise NotImplementedError

    def logits(self, images: Tensor) -> Tensor:
        """Logits [B, outputs] of `images`, in the network's own order."""
        raise NotImplementedError


@dataclass
class PretrainedClassifier(Classifier):
    """An image classifier of transformers, or such a network without the last layer, whose `order` is empty then.

    Pictures of any shape are stretched. Features are pooled, as the last layer reads them.
    """

    preprocessing: Preprocessing

    @classmethod
    def load(cls, family: Any, model: str, what: str, device: Any, name: str) -> Self:
        """From a Hub id, folder or shipped name; `what`: as for `pretrained`; `name`: what weights are told by."""
        net = pretrained_network(family, model, what, device)
        classes = torch.arange(getattr(net, "num_labels", 0))  # which only classifiers have
        return cls(net, classes, f"{name} {network_digest(net)}", Preprocessing.load(model, what))

    def __call__(self, images: Tensor) -> Tensor:
        pixels = self.preprocessing.stretch(images.to(self.net.device, torch.float32))
        out = getattr(self.net, self.net.base_model_prefix, self.net)(pixel_values=pixels)
        pooled = getattr(out, "pooler_output", None)
        return (out.last_hidden_state[:, 0] if pooled is None else pooled).flatten(1)

    def logits(self, images: Tensor) -> Tensor:
        return self.net(pixel_values=self.preprocessing.stretch(images.to(self.net.device, torch.float32))).logits


@dataclass
class ClassVerifier:
    """Verifier over a `Classifier`: what it says of the conditioning class. Differentiable in the pictures.

    Probabilities lie in [0, 1]. Log probabilities are at most 0, and mostly within [-12, 0] with 1000 classes.
    """

    classifier: Classifier
    output: Output
    name: str

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their classes; higher is better."""
        order = self.classifier.order
        ids = order[class_ids(prompts, len(order), self.name)]
        return class_scores(self.classifier.logits(images), ids, self.output)


def class_ids(conditions: Sequence[str], count: int, verifier: str) -> Tensor:
    """The `class_id` of each condition, int64 [B], in [0, count).

    A condition is a string with an attribute `class_id`, as class-conditional models have it. Raises DiffscaleError for
    a plain text and for a class that a classifier of `count` classes does not have.
    """
    ids = [getattr(condition, "class_id", None) for condition in conditions]
    for condition, number in zip(conditions, ids, strict=True):
        if number is None:
            raise DiffscaleError(
                f"Verifier {verifier!r} needs a class, but {str(condition)!r} is a plain text: use it with a "
                "class-conditional model, or choose a verifier of texts, such as clip."
            )
        if not 0 <= number < count:
            raise DiffscaleError(
                f"Verifier {verifier!r} has the classes 0 to {count - 1}, but {str(condition)!r} is class {number}: "
                "give a classifier of the classes that the model was trained on."
            )
    return torch.tensor(ids, dtype=torch.long)


def class_scores(logits: Tensor, ids: Tensor, output: Output) -> Tensor:
    """The score [B] of class `ids[i]` in row i of `logits` [B, classes]."""
    if output != "logit":
        logits = logits.log_softmax(-1)
    picked = logits.gather(1, ids.to(logits.device)[:, None])[:, 0]
    return picked.exp() if output == "probability" else picked
