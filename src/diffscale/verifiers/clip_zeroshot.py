"""CLIP-ZeroShot (Ma et al. 2025): the prompt-engineered zero-shot classifier of CLIP (Radford et al. 2021)."""

from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale._util.files import read_lines
from diffscale.engine.flops import uncounted
from diffscale.models.shipped import local_path
from diffscale.suites.imagenet import TEMPLATES, names
from diffscale.types import Verifier
from diffscale.verifiers.classes import Output, class_ids, class_scores
from diffscale.verifiers.clip import MODEL, Clip

BATCH: Final = 256
"""Texts encoded at once."""


@dataclass
class ClipZeroShot(Clip):
    """Verifier over a `CLIPModel`: exp(logit_scale) cos of picture and class embedding, as `output` says.

    A class's embedding is the normalised mean of the normalised embeddings of its name in all `templates`. Log
    probabilities are at most 0, and mostly within [-12, 0] with 1000 classes. Differentiable in the pictures. Each
    class is embedded once; `logit`, which is what Ma et al. search with, embeds only the classes it is asked for.
    """

    classes: list[str] = field(kw_only=True)
    templates: list[str] = field(kw_only=True)
    output: Output = "logit"
    name: str = "clip_zeroshot"
    _classes: dict[int, Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their classes; higher is better."""
        ids = class_ids(prompts, len(self.classes), self.name)
        # The softmax needs all classes, a logit its own only.
        classes, columns = ids.unique(return_inverse=True)
        if self.output != "logit":
            classes, columns = torch.arange(len(self.classes)), ids
        logits = self.scale * F.normalize(self.features(images), dim=-1) @ self.embed(classes.tolist()).T
        return class_scores(logits, columns, self.output)

    def embed(self, ids: list[int]) -> Tensor:
        """Embeddings [len(ids), D] of classes, each of length one."""
        missing = [number for number in ids if number not in self._classes]
        at_once = max(1, BATCH // len(self.templates))
        for start in range(0, len(missing), at_once):
            chunk = missing[start : start + at_once]
            texts = [text.replace("{}", self.classes[number]) for number in chunk for text in self.templates]
            with uncounted():
                features = torch.cat([self.encode(texts[i : i + BATCH]) for i in range(0, len(texts), BATCH)])
            means = F.normalize(features, dim=-1).view(len(chunk), len(self.templates), -1).mean(1)
            self._classes.update(zip(chunk, F.normalize(means, dim=-1), strict=True))
        return torch.stack([self._classes[number] for number in ids])


def clip_zeroshot(
    model: str = MODEL,
    classes: str | None = None,
    templates: str | None = None,
    output: Output = "logit",
    *,
    device: Any = "cpu",
) -> Verifier:
    """CLIP's zero-shot classifier: logit of the class, 100 cos; `model` is a Hub id, folder or name.

    `classes`, `templates`: files with one class name, or one text with {} for it, a line, in the order of the classes;
    by default classes.txt and templates.txt of the model's folder, or CLIP's own 1000 names and 80 templates for
    ImageNet. The first score embeds all names in all templates. Raises DiffscaleError for weights or files that cannot
    be read.
    """
    folder = local_path(model)

    def lines(given: str | None, what: str, usual: list[str]) -> list[str]:
        if given is None and folder is not None and (folder / f"{what}.txt").is_file():
            given = str(folder / f"{what}.txt")
        return usual if given is None else read_lines(given, what)

    texts = lines(templates, "templates", list(TEMPLATES))
    for text in texts:
        if "{}" not in text:
            raise DiffscaleError(f"The template {text!r} must have {{}} where the name of the class goes.")
    return ClipZeroShot.load(model, device, classes=lines(classes, "classes", names()), templates=texts, output=output)
