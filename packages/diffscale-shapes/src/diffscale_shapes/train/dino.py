"""shapes-dino: a DINOv2-class backbone trained without labels, and a linear head on it.

The self-distillation of DINO (Caron et al. 2021, algorithm 1): a student that sees small views of a picture tells what
an average of its past selves makes of large ones, teacher outputs centred and sharpened; with DINOv2's KoLeo
regulariser (Oquab et al. 2023, section 4), which spreads features. The masked-patch loss of DINOv2 is left out. The
head is logistic regression on frozen features, as DINOv2's published one-layer heads.
"""

import copy
from functools import partial
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Dinov2ForImageClassification, Dinov2Model

from diffscale_shapes.prompts import training_example
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import CANVAS, CLASSES, Scene, draw_class_scene, draw_crowded_scene
from diffscale_shapes.train.inception import class_accuracy, draw_classes
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.seeing import WIDTH, degrade
from diffscale_shapes.train.shipped import untrained

BATCH: Final = 64
SMALL_VIEWS: Final = 4
PROTOTYPES: Final = 1024
HEAD_PICTURES: Final = 3_000
_TEACHER_MOMENTUM: Final = 0.99
_CENTRE_MOMENTUM: Final = 0.9
_STUDENT_TEMPERATURE: Final = 0.1
_TEACHER_TEMPERATURE: Final = 0.05
_KOLEO: Final = 0.1


class _Network(nn.Module):
    """Backbone and projection to prototypes."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = untrained(Dinov2Model, "shapes-dino")
        self.project = nn.Sequential(nn.Linear(WIDTH, 256), nn.GELU(), nn.Linear(256, 64))
        self.prototypes = nn.Parameter(F.normalize(torch.randn(PROTOTYPES, 64), dim=-1))

    def forward(self, views: Tensor) -> tuple[Tensor, Tensor]:
        """Features [B, 128] and logits [B, PROTOTYPES], cosines, of views [B, 3, S, S]."""
        features = self.backbone(pixel_values=views).pooler_output
        return features, F.normalize(self.project(features), dim=-1) @ F.normalize(self.prototypes, dim=-1).T


class _Distillation(nn.Module):
    """Student, teacher and centre, one module so that a checkpoint holds all three."""

    def __init__(self) -> None:
        super().__init__()
        self.student = _Network()
        # It never has a gradient, and yet is not frozen: `fit` averages what could be trained.
        self.teacher = copy.deepcopy(self.student)
        self.centre: Tensor
        self.register_buffer("centre", torch.zeros(PROTOTYPES))

    @torch.no_grad()
    def follow(self, step: int) -> None:
        """Move the teacher towards the student."""
        for slow, fast in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            slow.lerp_(fast, 1 - min(_TEACHER_MOMENTUM, (1 + step) / (10 + step)))

    @torch.no_grad()
    def targets(self, views: Tensor) -> Tensor:
        """The teacher's distribution over prototypes for views [B, ...], centred and sharpened; moves the centre."""
        with autocast():
            logits: Tensor = self.teacher(views)[1].float()
        targets = ((logits - self.centre) / _TEACHER_TEMPERATURE).softmax(-1)
        self.centre.lerp_(logits.mean(0), 1 - _CENTRE_MOMENTUM)
        return targets


def train(checkpoints: Path, folder: Path, steps: int) -> None:
    """The self-supervised backbone and its head; the folder loads with Dinov2ForImageClassification."""
    torch.manual_seed(0)
    net = _Distillation()
    net.teacher.eval()

    def loss(step: Step) -> Tensor:
        net.follow(step.number)
        x = render_batch(_draw_scenes(step.rng))
        large = torch.cat([_view(x, CANVAS, (0.7, 1.0), step.generator) for _ in range(2)])
        small = torch.cat([_view(x, CANVAS // 2, (0.35, 0.8), step.generator) for _ in range(SMALL_VIEWS)])
        targets = net.targets(large).view(2, BATCH, -1)
        with autocast():
            features, seen_large = net.student(large)
            _, seen_small = net.student(small)
        views = torch.cat([seen_large, seen_small]).float().div(_STUDENT_TEMPERATURE).log_softmax(-1)
        views = views.view(2 + SMALL_VIEWS, BATCH, -1)
        pairs = [(a, b) for a in range(2) for b in range(2 + SMALL_VIEWS) if a != b]
        distilled = torch.stack([-(targets[a] * views[b]).sum(-1).mean() for a, b in pairs]).mean()
        return distilled + _KOLEO * _koleo(features.float()[:BATCH])

    def accuracy(mean: _Distillation) -> dict[str, float]:
        return {"linear_accuracy": class_accuracy(_with_head(mean.teacher.backbone))}

    fitted = partial(fit, lr=1e-3, muon=True, weight_decay=0.04, every=250, evaluate=accuracy)
    mean = fitted(net, loss, "shapes-dino step", checkpoints / "dino", steps)
    _with_head(mean.teacher.backbone).half().save_pretrained(folder)


def _draw_scenes(rng: Random) -> list[Scene]:
    kinds = (
        lambda: draw_class_scene(rng.randrange(len(CLASSES)), rng),
        lambda: training_example(rng)[1],
        lambda: draw_crowded_scene(rng),
    )
    return [kinds[i % 3]() for i in range(BATCH)]


def _view(x: Tensor, side: int, area: tuple[float, float], generator: torch.Generator) -> Tensor:
    """A random square part of each picture, `area` its share, at `side` pixels, mirrored or not, weathered."""
    rows = len(x)
    share = torch.empty(rows).uniform_(*area, generator=generator).sqrt()
    shift = torch.empty(rows, 2).uniform_(-1, 1, generator=generator) * (1 - share[:, None])
    flip = torch.where(torch.rand(rows, generator=generator) < 0.5, -1.0, 1.0)
    place = torch.zeros(rows, 2, 3)
    place[:, 0, 0], place[:, 1, 1], place[:, :, 2] = share * flip, share, shift
    grid = F.affine_grid(place, [rows, 3, side, side], align_corners=False)
    return degrade(F.grid_sample(x, grid, padding_mode="border", align_corners=False), generator)


def _koleo(features: Tensor) -> Tensor:
    """Minus the mean log distance of each unit feature to its nearest neighbour in the batch."""
    unit = F.normalize(features, dim=-1)
    near = (unit @ unit.T).fill_diagonal_(-1).argmax(1)
    return -(F.pairwise_distance(unit, unit[near]) + 1e-6).log().mean()


@torch.enable_grad()  # type: ignore[no-untyped-call]
def _with_head(backbone: Dinov2Model) -> Dinov2ForImageClassification:
    """The classifier, its linear head fitted on frozen features of `HEAD_PICTURES` labelled pictures."""
    net = untrained(Dinov2ForImageClassification, "shapes-dino")
    net.dinov2.load_state_dict(backbone.state_dict())
    net.eval().requires_grad_(False)
    x, labels = draw_classes(Random("shapes-dino head"), torch.Generator().manual_seed(1), HEAD_PICTURES)
    # What the head reads, [B, 256]: the class token and the mean of the patches.
    head, net.classifier = net.classifier, nn.Identity()
    features = torch.cat([net(pixel_values=part).logits for part in x.split(250)])
    net.classifier = head.requires_grad_(True)
    head.weight.data.zero_()
    head.bias.data.zero_()
    optimiser = torch.optim.LBFGS(head.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimiser.zero_grad()
        value = F.cross_entropy(head(features), labels) + 1e-4 * head.weight.square().sum()
        value.backward()
        return value

    optimiser.step(closure)  # type: ignore[no-untyped-call, arg-type]
    return net.requires_grad_(False)
