"""shapes-reward and shapes-pick: trained on noisy choices between two generated pictures of a prompt.

The loss is that of Bradley and Terry, as in ImageReward (Xu et al. 2023, section 2.2) and PickScore (Kirstain et al.
2023, section 3): the choice is told from the difference of two scores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel

from diffscale.shapes.taste import PICK_RATER, REWARD_RATER, Rater
from diffscale.shapes.train import blip
from diffscale.shapes.train.clip import tokens
from diffscale.shapes.train.generated import ShownPicture
from diffscale.shapes.train.loop import fit
from diffscale.verifiers.image_reward_net import ImageRewardNet

STEPS: Final = 600
BATCH: Final = 32  # pairs


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, the chosen one first, and by how much its utility is larger."""

    chosen: ShownPicture
    other: ShownPicture
    margin: float


def draw_pairs(groups: Sequence[Sequence[ShownPicture]], rater: Rater, rng: Random) -> tuple[list[Pair], list[Pair]]:
    """Every two pictures of a prompt, chosen by `rater`, to train on and (of held meanings) to measure on."""
    found: tuple[list[Pair], list[Pair]] = [], []
    for group in groups:
        for a, b in combinations(group, 2):
            u, v = (rater.utility(one.objects, one.cleanliness, one.description) for one in (a, b))
            first = rater.chooses_first(u, v, rng)
            found[a.is_held_out].append(Pair(a, b, u - v) if first else Pair(b, a, v - u))
    return found


def train_reward(
    net: ImageRewardNet, groups: Sequence[Sequence[ShownPicture]], folder: Path, steps: int = STEPS
) -> ImageRewardNet:
    """Go on training a matching network (`blip.train`) on choices; scores come out standardised, as published."""

    def score(net: nn.Module, pixels: Tensor, prompts: list[str]) -> Tensor:
        return net(pixels, *blip.read(prompts))  # type: ignore[no-any-return]

    net = _train(net, score, groups, REWARD_RATER, folder, steps)  # type: ignore[assignment]
    held = [one for group in groups for one in group if one.is_held_out]
    with torch.no_grad():
        scores = score(net, torch.stack([one.pixels() for one in held]), [one.prompt for one in held])
    net.config |= {"mean": float(scores.mean()), "std": float(scores.std())}
    return net


def train_pick(net: CLIPModel, groups: Sequence[Sequence[ShownPicture]], folder: Path, steps: int = STEPS) -> CLIPModel:
    """Go on training a CLIP on choices."""

    def score(net: nn.Module, pixels: Tensor, prompts: list[str]) -> Tensor:
        ids = tokens(prompts)
        seen = net.visual_projection(net.vision_model(pixel_values=pixels).pooler_output)  # type: ignore[operator]
        read = net.text_projection(net.text_model(input_ids=ids).pooler_output)  # type: ignore[operator]
        return net.logit_scale.exp() * F.cosine_similarity(seen, read)  # type: ignore[operator, no-any-return]

    return _train(net, score, groups, PICK_RATER, folder, steps)  # type: ignore[return-value]


def _train(
    net: nn.Module,
    score: Callable[[nn.Module, Tensor, list[str]], Tensor],
    groups: Sequence[Sequence[ShownPicture]],
    rater: Rater,
    folder: Path,
    steps: int,
) -> nn.Module:
    told, held = draw_pairs(groups, rater, Random(f"{folder.name} choices"))

    def differences(net: nn.Module, some: Sequence[Pair]) -> Tensor:
        shown = [pair.chosen for pair in some] + [pair.other for pair in some]
        scores = score(net, torch.stack([one.pixels() for one in shown]), [one.prompt for one in shown])
        chosen, other = scores.float().chunk(2)
        return chosen - other

    def loss(step: int) -> Tensor:
        rng = Random(f"{folder.name} step {step}")
        with torch.autocast("cpu", torch.bfloat16):
            apart = differences(net, [rng.choice(told) for _ in range(BATCH)])
        return -F.logsigmoid(apart).mean()

    @torch.no_grad()
    def evaluate(mean: nn.Module, step: int) -> dict[str, float]:
        mean.eval()
        apart = differences(mean, held)
        better = torch.tensor([pair.margin > 0 for pair in held])
        return {
            "agrees_with_choices": float((apart > 0).float().mean()),
            "agrees_with_rule": float(((apart > 0) == better).float().mean()),
            "choices_follow_rule": float(better.float().mean()),
        }

    net.requires_grad_(True)
    return fit(
        net, loss, folder=folder, steps=steps, lr=1e-4, warmup=50, decay=0.5, average=0.99, every=200, evaluate=evaluate
    )
