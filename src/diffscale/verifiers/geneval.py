"""GenEval (Ghosh et al. 2023, arXiv 2310.11513): are the objects there, as many, so coloured, so placed?

What differs from the benchmark: the detector's weights are those of transformers, not of mmdetection, and CLIP is
loaded by transformers, not by open_clip.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.engine.flops import uncounted
from diffscale.suites.benchmarks import Objects, Scene, geneval_scenes, of_prompt
from diffscale.types import PositiveShare, Verifier
from diffscale.verifiers.clip import MODEL as CLIP
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.instances import MODEL, Instance, InstanceDetector, objects_of

COLORS: Final = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white")
TEMPLATES: Final = ("a photo of a {color} {name}", "a photo of a {color}-colored {name}", "a photo of a {color} object")
BACKGROUND: Final = 153 / 255  # of what is not the object, in its crop
APART: Final = 0.1  # share of both sizes by which centres must differ before one thing is beside the other


@dataclass
class GenEval:
    """Verifier of GenEval's tasks: 1 where a picture shows all that its scene asks for, else 0.

    `scenes`: by prompt, from the user's `file`. `threshold`: detection score above which an object counts,
    `counting_threshold`: in the task counting. Not differentiable.
    """

    detector: InstanceDetector
    clip: Clip
    scenes: Mapping[str, Scene]
    file: str
    threshold: float = 0.3
    counting_threshold: float = 0.9
    name: str = "geneval"
    _colors: dict[str, Tensor] = field(default_factory=dict, repr=False)

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B], 0 or 1, of `images` [B, 3, H, W] in [0, 1] for their prompts, which are in the file.

        Raises DiffscaleError for other prompts.
        """
        if images.requires_grad and torch.is_grad_enabled():
            raise DiffscaleError(f"Verifier {self.name!r} has no gradient: choose a search that needs none.")
        scenes = [of_prompt(self.scenes, prompt, self.file) for prompt in prompts]
        return torch.tensor(
            [float(self.shows(image, scene)) for image, scene in zip(images, scenes, strict=True)], device=images.device
        )

    def category(self, prompt: str) -> str:
        """The task of a prompt, as GenEval names it."""
        return of_prompt(self.scenes, prompt, self.file).tag

    def shows(self, image: Tensor, scene: Scene) -> bool:
        """Whether `image` [3, H, W] in [0, 1] shows the scene."""
        found = self.detector.detect(image, self.counting_threshold if scene.tag == "counting" else self.threshold)
        matched: list[Sequence[Instance] | None] = []
        for wanted in scene.include:
            objects = objects_of(found, wanted.name)[: wanted.count]
            fits = (
                len(objects) == wanted.count
                and self._coloured(image, objects, wanted)
                and _placed(objects, wanted, matched)
            )
            matched.append(objects if fits else None)
        too_many = any(len(objects_of(found, each.name)) >= each.count for each in scene.exclude)
        return None not in matched and not too_many

    def _coloured(self, image: Tensor, objects: Sequence[Instance], wanted: Objects) -> bool:
        if wanted.color is None:
            return True
        if wanted.color not in COLORS:
            raise DiffscaleError(f"GenEval's colours are {', '.join(COLORS)}; {self.file} asks for {wanted.color!r}.")
        return all(self.color(image, each, wanted.name) == wanted.color for each in objects)

    @torch.no_grad()
    def color(self, image: Tensor, instance: Instance, name: str) -> str:
        """The colour of an object of class `name`, by CLIP's zero-shot classifier, on a grey ground where its pixels
        are known."""
        if instance.mask is not None:
            image = torch.where(instance.mask.to(image.device), image, BACKGROUND)
        x0, y0, x1, y1 = (round(edge) for edge in instance.box)
        x0, y0 = max(x0, 0), max(y0, 0)
        crop = image[:, y0 : max(y1, y0 + 1), x0 : max(x1, x0 + 1)]
        seen = F.normalize(self.clip.features(crop[None]), dim=-1)
        return COLORS[int((seen @ self._classifier(name).T).argmax())]

    def _classifier(self, name: str) -> Tensor:
        """Embeddings [colours, D] of length one, each the mean over the templates; made once for each class."""
        if name not in self._colors:
            texts = [text.format(color=color, name=name) for color in COLORS for text in TEMPLATES]
            with uncounted():
                features = F.normalize(self.clip.encode(texts), dim=-1)
            self._colors[name] = F.normalize(features.view(len(COLORS), len(TEMPLATES), -1).mean(1), dim=-1)
        return self._colors[name]


def geneval(
    file: str,
    detector: str = MODEL,
    clip: str = CLIP,
    threshold: PositiveShare = 0.3,
    counting_threshold: PositiveShare = 0.9,
    *,
    device: Any = "cpu",
) -> Verifier:
    """GenEval's verdict, 0 or 1, on prompts of your own copy of its evaluation_metadata.jsonl, given as `file`.

    `detector`: an object detector or instance segmentation network of COCO's classes, by Hub id or folder; `clip`: a
    CLIP, which tells colours. Raises DiffscaleError for a file that is none of GenEval's, for weights that cannot be
    loaded, and for a detector that was not trained on a class in the file.
    """
    scenes = geneval_scenes(file)
    loaded = InstanceDetector.load(detector, device)
    for name in sorted({each.name for scene in scenes.values() for each in (*scene.include, *scene.exclude)}):
        loaded.check(name)
    return GenEval(loaded, Clip.load(clip, device), scenes, file, threshold, counting_threshold)


def _check(file: str, **_: Any) -> None:
    geneval_scenes(file)


geneval.check = _check  # type: ignore[attr-defined]


def _placed(objects: Sequence[Instance], wanted: Objects, matched: Sequence[Sequence[Instance] | None]) -> bool:
    if wanted.position is None:
        return True
    relation, number = wanted.position
    others = matched[number]
    return others is not None and all(relation in relations(each, other) for each in objects for other in others)


def relations(one: Instance, other: Instance) -> set[str]:
    """How `one` lies relative to the `other`: by the offset of their centres, less a share of both sizes.

    A direction counts from half of the offset's length on, so that both `left of` and `above` may hold, or none.
    """
    found = set()
    pairs = ((0, "left of", "right of"), (1, "above", "below"))
    middle = [(one.box[i] + one.box[i + 2] - other.box[i] - other.box[i + 2]) / 2 for i in (0, 1)]
    length = (middle[0] ** 2 + middle[1] ** 2) ** 0.5
    for axis, before, after in pairs:
        sizes = abs(one.box[axis + 2] - one.box[axis]) + abs(other.box[axis + 2] - other.box[axis])
        apart = max(abs(middle[axis]) - APART * sizes, 0.0)
        if apart > 0.5 * length:
            found.add(before if middle[axis] < 0 else after)
    return found
