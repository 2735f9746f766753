"""shapes-siglip: a SigLIP model trained on captions by the sigmoid loss (Zhai et al. 2023, equation 1).

Pairs within the batch are its only negatives, so it knows what is in a picture better than which attribute belongs to
which object: the blindness that hard negatives spare shapes-clip.
"""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipModel

from diffscale.shapes.captions import write_caption
from diffscale.shapes.scenes import Scene
from diffscale.shapes.suite import training_example
from diffscale.shapes.train.seeing import Sighted, fit_sighted
from diffscale.shapes.train.shipped import untrained
from diffscale.shapes.train.text import t5_tokenizer, tokenize

STEPS: Final = 1_000
VISION_STEPS: Final = 500  # on crowded pictures, before
BATCH: Final = 64


class _Siglip(Sighted):
    net: SiglipModel

    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of pictures and of captions, [B, 128] each."""
        return seen.pooler_output, self.net.text_model(input_ids=tokens[0]).pooler_output


def train(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The sigmoid-loss model; the folder loads with SiglipModel.from_pretrained."""
    fit_siglip(checkpoints / "siglip", steps or STEPS).half().save_pretrained(folder)


def fit_siglip(folder: Path, steps: int = STEPS) -> SiglipModel:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    siglip = untrained(SiglipModel, "shapes-siglip")
    # As Zhai et al. begin (section 3.2): from 0 and 0 so few steps would not lead out of a collapse of all embeddings.
    nn.init.constant_(siglip.logit_scale, math.log(10))
    nn.init.constant_(siglip.logit_bias, -10.0)
    net = _Siglip(siglip)
    # 1 for a picture and its caption, -1 for every other pair.
    sign = 2 * torch.eye(BATCH) - 1

    def objective(image: Tensor, text: Tensor) -> Tensor:
        cosine = F.normalize(image, dim=-1)
        logits = net.net.logit_scale.exp() * cosine @ F.normalize(text, dim=-1).T + net.net.logit_bias
        return -F.logsigmoid(sign * logits).sum(1).mean()

    fitted = fit_sighted(
        net, _draw, objective, "shapes-siglip", folder, steps, vision_steps=VISION_STEPS, head_weight=0.5
    )
    return fitted.net


def _draw(rng: Random) -> tuple[list[Scene], list[Tensor]]:
    examples = [training_example(rng) for _ in range(BATCH)]
    captions = [write_caption(description, rng) for description, _ in examples]
    return [scene for _, scene in examples], [tokenize(t5_tokenizer(), captions).input_ids]
