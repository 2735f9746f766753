"""What teaches a small vision tower to see: which object is at each patch, told by a head that is thrown away.

From captions, choices or views alone so small a tower learns colours and little else in thousands of steps; so it is
trained on crowded pictures first, and the head goes on beside what else the network learns.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import ATTRIBUTES, CANVAS, RADIUS, Scene, draw_crowded_scene
from diffscale_shapes.train.loop import Step, autocast, fit

PATCH: Final = 8  # pixels
WIDTH: Final = 128  # of the vision towers
_PATCHES: Final = (CANVAS // PATCH) ** 2
_BATCH: Final = 64
_KINDS: Final = [len(values) + 1 for values in ATTRIBUTES.values()]
"""Logits of the head for each attribute of a patch: its values and none."""


class Sighted(nn.Module, ABC):
    """A network of pictures and texts, with the head that tells what is at each patch.

    A subclass says what it is trained on and by which loss.
    """

    tower = "vision_model"  # where the network has it
    name: str  # seeds the data
    vision_steps: int  # on crowded pictures, before all else
    head_weight: float  # of the head's loss beside `objective`

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.head = nn.Linear(WIDTH, sum(_KINDS))

    @abstractmethod
    def draw(self, rng: Random) -> tuple[list[Scene], Sequence[Tensor]]:
        """A batch of scenes, and the tokens of the texts that go with them."""

    @abstractmethod
    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """What the network makes of its tower's output and of tokens."""

    @abstractmethod
    def objective(self, *outputs: Tensor) -> Tensor:
        """The loss of what `embed` returned for a batch, in float32."""

    def look(self, pixels: Tensor) -> tuple[Any, Tensor]:
        """The tower's output for `pixels` [B, 3, 64, 64] in [-1, 1], and the head's logits [B, 64, sum(_KINDS)]."""
        seen = getattr(self.net, self.tower)(pixel_values=pixels)
        return seen, self.head(seen.last_hidden_state[:, -_PATCHES:])  # without the class token, where there is one

    def forward(self, pixels: Tensor, *tokens: Tensor) -> tuple[Tensor, ...]:
        """What `embed` returns, then the head's logits."""
        seen, patches = self.look(pixels)
        return *self.embed(seen, *tokens), patches


Eyes = TypeVar("Eyes", bound=Sighted)


def fit_sighted(
    net: Eyes, folder: Path, steps: int, every: int = 200, evaluate: Callable[[Eyes], dict[str, float]] | None = None
) -> Eyes:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    if not (folder / "checkpoint.pt").exists():
        _fit_vision(net, folder / "vision")
    fast = torch.compile(net)

    def loss(step: Step) -> Tensor:
        scenes, tokens = net.draw(step.rng)
        x = degrade(render_batch(scenes), step.generator)
        with autocast():
            *outputs, patches = fast(x, *tokens)
        objective = net.objective(*(each.float() for each in outputs))
        return objective + net.head_weight * _patch_loss(patches.float(), scenes)

    return fit(net, loss, f"{net.name} step", folder, steps, lr=1e-3, muon=True, every=every, evaluate=evaluate)


def _fit_vision(net: Sighted, folder: Path) -> None:
    fast = torch.compile(net.look)

    def loss(step: Step) -> Tensor:
        scenes = [draw_crowded_scene(step.rng) for _ in range(_BATCH)]
        x = degrade(render_batch(scenes), step.generator)
        with autocast():
            patches = fast(x)[1]
        return _patch_loss(patches.float(), scenes)

    mean = fit(net, loss, f"{net.name} vision step", folder, net.vision_steps, lr=1e-3, muon=True, every=200)
    net.load_state_dict(mean.state_dict())


def degrade(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, S, S] with noise and blur of a random strength each: generated pictures are not clean."""
    strength = torch.rand(len(x), 2, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, (strength[:, 0] * 1.5 - 0.5).clamp(0, 1))
    return x + 0.15 * (strength[:, 1] - 0.4).clamp(min=0) * torch.randn(x.shape, generator=generator)


def patch_labels(scenes: Sequence[Scene]) -> Tensor:
    """Which value of each attribute the object at each patch has, [B, 4, 64]; 0 where no bounding box reaches."""
    side = CANVAS // PATCH
    labels = torch.zeros(len(scenes), len(ATTRIBUTES), side, side, dtype=torch.long)
    for row, scene in zip(labels, scenes, strict=True):
        for obj in scene:
            values = [kinds.index(getattr(obj, attribute)) + 1 for attribute, kinds in ATTRIBUTES.items()]
            r = RADIUS[obj.size]
            # The patches whose centres lie in the bounding box.
            y, x = (slice((v - r + PATCH // 2) // PATCH, (v + r + PATCH // 2) // PATCH) for v in (obj.y, obj.x))
            row[:, y, x] = torch.tensor(values)[:, None, None]
    return labels.flatten(2)


def _patch_loss(logits: Tensor, scenes: Sequence[Scene]) -> Tensor:
    """Mean cross-entropy of the head's logits [B, 64, sum(_KINDS)] over patches and attributes."""
    pairs = zip(logits.split(_KINDS, dim=-1), patch_labels(scenes).unbind(1), strict=True)
    return torch.stack([F.cross_entropy(part.transpose(1, 2), label) for part, label in pairs]).mean()
