"""Objects of known classes in a picture, by any detector or instance segmentation network of transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor
from transformers.models.auto import modeling_auto

from diffscale._util.errors import DiffscaleError, unknown
from diffscale._util.pixels import eight_bit
from diffscale.models.files import pretrained, pretrained_network

MODEL: Final = "facebook/mask2former-swin-small-coco-instance"
"""GenEval's network, Mask2Former with Swin-S on COCO, as its authors publish it for transformers; GenEval's own weights
are mmdetection's."""

MOST: Final = 16
"""Objects of one class that are looked at, the surest, as in GenEval."""

_SAME: Final = {
    **{"computermouse": "mouse", "tvremote": "remote", "computerkeyboard": "keyboard"},
    **{"motorbike": "motorcycle", "aeroplane": "airplane", "sofa": "couch", "tvmonitor": "tv"},
}
"""Classes of COCO that GenEval, or the labels of published networks, call otherwise; blanks are left out."""


@dataclass(frozen=True)
class Instance:
    """An object: `box` x0, y0, x1, y1 in pixels, `score` in [0, 1], and its pixels, bool [H, W], where known."""

    box: tuple[float, float, float, float]
    score: float
    mask: Tensor | None = None


@dataclass
class InstanceDetector:
    """A detector or an instance segmentation network with its preprocessing; `model`: its Hub id or folder."""

    net: Any
    processor: Any
    model: str

    @classmethod
    def load(cls, model: str = MODEL, device: Any = "cpu") -> InstanceDetector:
        """By Hub id or folder; raises DiffscaleError if it cannot be loaded, or finds no objects."""
        what = "object detector"
        kind = pretrained(transformers.AutoConfig, model, what).model_type
        if kind in modeling_auto.MODEL_FOR_OBJECT_DETECTION_MAPPING_NAMES:
            family: Any = transformers.AutoModelForObjectDetection
        elif kind in modeling_auto.MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING_NAMES:
            family = transformers.AutoModelForUniversalSegmentation
        else:
            raise DiffscaleError(f"{model} is a {kind}, which finds no objects: give a detector, such as {MODEL}.")
        net = pretrained_network(family, model, what, device)
        processor = pretrained(transformers.AutoImageProcessor, model, what, backend="pil")
        return cls(net, processor, model)

    def check(self, name: str) -> None:
        """Raise DiffscaleError for a class that the network was not trained on."""
        labels = list(self.net.config.id2label.values())
        if _plain(name) not in map(_plain, labels):
            raise unknown(f"class of {self.model}", name, labels)

    @torch.no_grad()
    def detect(self, image: Tensor, threshold: float) -> dict[str, list[Instance]]:
        """The objects in `image` [3, H, W] in [0, 1] whose score is above `threshold`, the surest first, by class.

        Classes are found by `objects_of`. Not differentiable: pictures are rounded to bytes, as files are.
        """
        pixels = eight_bit(image).permute(1, 2, 0).numpy()
        batch = self.processor(images=[pixels], input_data_format="channels_last", return_tensors="pt")
        tensors = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        output = self.net(**{name: value.to(self.net.device) for name, value in tensors.items()})
        size = [tuple(image.shape[-2:])]
        if hasattr(output, "masks_queries_logits"):
            found = self._segments(output, size, threshold)
        else:
            (boxes,) = self.processor.post_process_object_detection(output, threshold=threshold, target_sizes=size)
            every = zip(boxes["labels"].tolist(), boxes["boxes"].tolist(), boxes["scores"].tolist(), strict=True)
            found = [(label, Instance(tuple(box), score)) for label, box, score in every]
        objects: dict[str, list[Instance]] = {}
        for label, instance in sorted(found, key=lambda each: -each[1].score):
            same = objects.setdefault(_plain(self.net.config.id2label[label]), [])
            if instance.score > threshold and len(same) < MOST:
                same.append(instance)
        return objects

    def _segments(self, output: Any, size: list[tuple[int, ...]], threshold: float) -> list[tuple[int, Instance]]:
        (seen,) = self.processor.post_process_instance_segmentation(
            output, threshold=threshold, target_sizes=size, return_binary_maps=True
        )
        found = []
        masks = seen["segmentation"] if seen["segments_info"] else ()
        for mask, segment in zip(masks, seen["segments_info"], strict=True):
            inside = mask.bool().cpu()
            down, across = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
            box = (float(across[0]), float(down[0]), float(across[-1] + 1), float(down[-1] + 1))
            found.append((segment["label_id"], Instance(box, segment["score"], inside)))
        return found


def objects_of(found: dict[str, list[Instance]], name: str) -> list[Instance]:
    """The objects of a class, however it is called, in what was detected."""
    return found.get(_plain(name), [])


def _plain(name: str) -> str:
    text = "".join(name.lower().split())
    return _SAME.get(text, text)
