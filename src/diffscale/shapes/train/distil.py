"""Guidance distillation of shapes-flux: one row through the network for what classifier-free guidance takes two for.

The student is told the guidance scale g by its guidance embedding and learns the teacher's guided velocity
v_uncond + g (v_cond - v_uncond) (Meng et al. 2023, section 3.1), as FLUX.1-dev was made. The text encoders stay.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale.shapes.scenes import Description
from diffscale.shapes.train.flux import BATCH, TextToVelocity, caption
from diffscale.shapes.train.loop import fit

STEPS: Final = 1_000
SCALES: Final = (1.0, 4.0)  # guidance scales are drawn uniformly from here


def distil(
    teacher: TextToVelocity,
    descriptions: list[Description],
    latents: Tensor,  # packed latents [scenes, 16, 32] of the descriptions' scenes
    folder: Path,
    steps: int = STEPS,
    every: int = 500,
) -> TextToVelocity:
    """Train the transformer of a copy of `teacher`, or go on from the checkpoint in `folder`; returns that copy."""
    student = TextToVelocity()
    student.load_state_dict(teacher.state_dict())
    teacher.requires_grad_(False).train()  # the compiled path; neither has dropout

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-flux distillation {step}")
        generator = torch.Generator().manual_seed(step)
        rows = [rng.randrange(len(descriptions)) for _ in range(BATCH)]
        t = torch.rand(BATCH, generator=generator)
        x = torch.lerp(latents[rows], torch.randn(latents[rows].shape, generator=generator), t[:, None, None])
        g = torch.empty(BATCH).uniform_(*SCALES, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            target, states, pooled = guided(teacher, x, t, g, [caption(descriptions[i], rng) for i in rows])
            v = student(x, t, g, states, pooled)
        return F.mse_loss(v.float(), target)

    student.transformer = fit(  # type: ignore[assignment]
        student.transformer, loss, folder=folder, steps=steps, lr=3e-4, muon=True, warmup=100, every=every
    )
    return student


@torch.no_grad()
def guided(net: TextToVelocity, x: Tensor, t: Tensor, g: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """The guided velocity [B, 16, 32] at `x`, `t` [B] and scales `g` [B], and what the captions are encoded as."""
    rows = len(captions)
    states, pooled = net.encode(captions + [""] * rows)
    both = net(x.repeat(2, 1, 1), t.repeat(2), torch.ones(2 * rows), states, pooled).float()
    with_caption, without = both.chunk(2)
    return torch.lerp(without, with_caption, g[:, None, None]), states[:rows], pooled[:rows]
