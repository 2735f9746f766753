"""shapes-siglip: a SigLIP model trained on captions by the sigmoid loss (Zhai et al. 2023, equation 1).

Pairs within the batch are its only negatives, so it knows what is in a picture better than which attribute belongs to
which object: the blindness that hard negatives spare shapes-clip.
"""

from __future__ import annotations

import math
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel

from diffscale.shapes.captions import write_caption
from diffscale.shapes.scenes import CANVAS
from diffscale.shapes.suite import training_example
from diffscale.shapes.train.autoencoder import render_batch
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.seeing import KINDS, PATCH, degrade, patch_labels, patch_loss, train_vision
from diffscale.shapes.train.text import MAX_TOKENS, t5_tokenizer

STEPS: Final = 1_000
VISION_STEPS: Final = 500  # on crowded pictures, before
BATCH: Final = 64
WIDTH: Final = 128


def build() -> SiglipModel:
    """The network, untrained: 64x64 pictures in patches of 8, width 128, 4 + 2 layers."""
    tokenizer = t5_tokenizer()
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    net = SiglipModel(
        SiglipConfig(
            text_config={
                **shared,
                "vocab_size": len(tokenizer),
                "num_hidden_layers": 2,
                "max_position_embeddings": MAX_TOKENS,
                "bos_token_id": None,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
                "projection_size": WIDTH,
            },
            vision_config={**shared, "num_hidden_layers": 4, "image_size": CANVAS, "patch_size": PATCH},
        )
    )
    # As Zhai et al. begin (section 3.2): from 0 and 0 so few steps would not lead out of a collapse of all embeddings.
    nn.init.constant_(net.logit_scale, math.log(10))
    nn.init.constant_(net.logit_bias, -10.0)
    return net


def image_processor() -> SiglipImageProcessorPil:
    """What the folder says of preprocessing: 64x64, [0, 1] to [-1, 1]."""
    return SiglipImageProcessorPil(size={"height": CANVAS, "width": CANVAS}, image_mean=[0.5] * 3, image_std=[0.5] * 3)


class _Training(nn.Module):
    """SigLIP and the head of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.siglip = build()
        self.head = nn.Linear(WIDTH, KINDS)

    def patches(self, pixels: Tensor) -> Tensor:
        """The head's logits [B, 64, KINDS]."""
        return self.head(self.siglip.vision_model(pixel_values=pixels).last_hidden_state)  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of pictures and captions [B, 128], and `patches`."""
        seen = self.siglip.vision_model(pixel_values=pixels)
        text = self.siglip.text_model(input_ids=ids).pooler_output
        return seen.pooler_output, text, self.head(seen.last_hidden_state)


def train(folder: Path, steps: int = STEPS) -> SiglipModel:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = _Training()
    if not (folder / "checkpoint.pt").exists():
        net = train_vision(net, net.patches, "shapes-siglip", folder / "vision", VISION_STEPS)  # type: ignore[assignment]
    fast = torch.compile(net)
    tokenizer = t5_tokenizer()
    # 1 for a picture and its caption, -1 for every other pair.
    sign = 2 * torch.eye(BATCH) - 1

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-siglip step {step}")
        examples = [training_example(rng) for _ in range(BATCH)]
        captions = [write_caption(description, rng) for description, _ in examples]
        ids = tokenizer(captions, padding="max_length", max_length=MAX_TOKENS, truncation=True, return_tensors="pt")
        scenes = [scene for _, scene in examples]
        x = degrade(render_batch(scenes), torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            image, text, patches = fast(x, ids.input_ids)
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = net.siglip.logit_scale.exp() * image @ text.T + net.siglip.logit_bias
        contrast = -F.logsigmoid(sign * logits).sum(1).mean()
        return contrast + 0.5 * patch_loss(patches.float(), patch_labels(scenes))

    fitted = fit(net, loss, folder=folder, steps=steps, lr=1e-3, muon=True, every=200)
    return fitted.siglip  # type: ignore[return-value]
