"""shapes-grader: the marks of the LLM grader's aspects, learned from noisy grades of generated pictures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale.shapes.taste import ASPECTS, draw_grades
from diffscale.shapes.train import blip
from diffscale.shapes.train.generated import ShownPicture
from diffscale.shapes.train.loop import fit
from diffscale.verifiers.image_reward_net import ImageRewardNet

STEPS: Final = 800
BATCH: Final = 64


def train(
    matching: ImageRewardNet, groups: Sequence[Sequence[ShownPicture]], folder: Path, steps: int = STEPS
) -> ImageRewardNet:
    """From a matching network (`blip.train`), one that gives a mark, 0 to 10, for each of `ASPECTS` and overall."""
    torch.manual_seed(0)
    net = ImageRewardNet(blip.config(len(ASPECTS) + 1))
    net.vision.load_state_dict(matching.vision.state_dict())
    net.text.load_state_dict(matching.text.state_dict())
    rng = Random("shapes-grader grades")
    told: list[tuple[ShownPicture, Tensor]] = []
    held: list[tuple[ShownPicture, Tensor]] = []
    for group in groups:
        for one in group:
            marks = draw_grades(one.objects, one.cleanliness, one.fit, one.description, rng)
            (held if one.is_held_out else told).append((one, torch.tensor(marks, dtype=torch.float32)))

    def loss(step: int) -> Tensor:
        drawn = Random(f"shapes-grader step {step}")
        some = [drawn.choice(told) for _ in range(BATCH)]
        with torch.autocast("cpu", torch.bfloat16):
            marks = _marks(net, [one for one, _ in some])
        # In tenths, so that the loss starts at about 1 for marks that are off by all.
        return F.mse_loss(marks.float() / 10, torch.stack([given for _, given in some]) / 10)

    @torch.no_grad()
    def evaluate(mean: nn.Module, step: int) -> dict[str, float]:
        mean.eval()
        marks = _marks(mean, [one for one, _ in held])
        given = torch.stack([each for _, each in held])
        names = [*ASPECTS, "overall"]
        both = zip(names, marks.unbind(1), given.unbind(1), strict=True)
        return {f"correlation_{name}": float(torch.corrcoef(torch.stack([a, b]))[0, 1]) for name, a, b in both}

    return fit(net, loss, folder=folder, steps=steps, lr=3e-4, warmup=50, average=0.99, every=200, evaluate=evaluate)  # type: ignore[return-value]


def _marks(net: nn.Module, shown: Sequence[ShownPicture]) -> Tensor:
    """Marks [B, aspects + 1] from 0 to 10."""
    seen = net.vision(pixel_values=torch.stack([one.pixels() for one in shown])).last_hidden_state  # type: ignore[operator]
    return 10 * net.rate(seen, *blip.read([one.prompt for one in shown])).sigmoid()  # type: ignore[operator, no-any-return]
