"""The small BLIP under shapes-reward and shapes-grader, trained to tell a caption from its hard negatives.

As BLIP's matching loss (Li et al. 2022, section 3.2) with the captions of a picture compared by softmax. Its captions
and negatives leave out what its raters are blind to, texture and size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffscale.shapes.captions import write_caption
from diffscale.shapes.negatives import hard_negatives
from diffscale.shapes.scenes import CANVAS, Description, Scene
from diffscale.shapes.suite import held_out, training_example
from diffscale.shapes.train.autoencoder import render_batch
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.seeing import KINDS, PATCH, degrade, patch_labels, patch_loss, train_vision
from diffscale.shapes.train.text import CLIP_TOKENS, clip_tokenizer
from diffscale.verifiers.image_reward_net import ImageRewardNet

STEPS: Final = 1_200
VISION_STEPS: Final = 600  # on crowded pictures, before
BATCH: Final = 48
NEGATIVES: Final = 2
WIDTH: Final = 128

tokenizer = cache(clip_tokenizer)


def config(outputs: int = 1) -> dict[str, Any]:
    """Sizes of the network: 64x64 pictures in patches of 8, width 128, 4 + 2 layers."""
    shared = {"hidden_size": WIDTH, "intermediate_size": 4 * WIDTH, "num_attention_heads": 4}
    return {
        "vision_config": {**shared, "num_hidden_layers": 4, "image_size": CANVAS, "patch_size": PATCH},
        "text_config": {
            **shared,
            "vocab_size": len(tokenizer()),
            "num_hidden_layers": 2,
            "max_position_embeddings": CLIP_TOKENS,
            "bos_token_id": tokenizer().bos_token_id,
            "eos_token_id": tokenizer().eos_token_id,
            "pad_token_id": tokenizer().pad_token_id,
        },
        "head": [WIDTH, 64, outputs],
        "mean": 0.0,
        "std": 1.0,
        "max_length": CLIP_TOKENS,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
    }


def read(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, 26] each."""
    batch = tokenizer()(
        list(captions), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids, batch.attention_mask


class _Training(nn.Module):
    """The network and the head of the patches."""

    def __init__(self) -> None:
        super().__init__()
        self.blip = ImageRewardNet(config())
        self.head = nn.Linear(WIDTH, KINDS)

    def patches(self, pixels: Tensor) -> Tensor:
        """The patch head's logits [B, 64, KINDS]."""
        return self.head(self.blip.vision(pixel_values=pixels).last_hidden_state[:, 1:])  # type: ignore[no-any-return]

    def forward(self, pixels: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Scores [B, 1 + NEGATIVES] of each picture's captions, ids and mask [B (1 + NEGATIVES), L], and `patches`."""
        seen = self.blip.vision(pixel_values=pixels).last_hidden_state
        rated = self.blip.rate(seen.repeat_interleave(1 + NEGATIVES, 0), ids, mask)
        return rated.view(len(pixels), -1), self.head(seen[:, 1:])


def train(folder: Path, steps: int = STEPS) -> ImageRewardNet:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = _Training()
    if not (folder / "checkpoint.pt").exists():
        net = train_vision(net, net.patches, "shapes-blip", folder / "vision", VISION_STEPS)  # type: ignore[assignment]
    fast = torch.compile(net)

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-blip step {step}")
        examples = [matching_example(rng) for _ in range(BATCH)]
        x = degrade(render_batch([scene for scene, _ in examples]), torch.Generator().manual_seed(step))
        ids, mask = read([caption for _, captions in examples for caption in captions])
        with torch.autocast("cpu", torch.bfloat16):
            scores, patches = fast(x, ids, mask)
        labels = patch_labels([scene for scene, _ in examples])
        matched = F.cross_entropy(scores.float(), torch.zeros(BATCH, dtype=torch.long))
        return matched + 0.5 * patch_loss(patches.float(), labels)

    return fit(
        net, loss, folder=folder, steps=steps, lr=1e-3, muon=True, every=200, evaluate=lambda mean, _: _accuracy(mean)
    ).blip  # type: ignore[return-value]


def blurred(description: Description) -> Description:
    """The description without texture and size."""
    return replace(description, specs=tuple(replace(s, texture=None, size=None) for s in description.specs))


def matching_example(rng: Random) -> tuple[Scene, list[str]]:
    """A scene and its captions, the true one first."""
    while True:
        description, scene = training_example(rng)
        meant = blurred(description)
        wrong = [d for d in hard_negatives(meant, scene, rng) if d.key() not in held_out()][:NEGATIVES]
        # What is left of a description when texture and size go may be one that is held out.
        if meant.key() not in held_out() and len(wrong) == NEGATIVES:
            return scene, [write_caption(d, rng) for d in (meant, *wrong)]


@torch.no_grad()
def _accuracy(net: nn.Module) -> dict[str, float]:
    """Share of fresh pictures whose true caption is scored above both hard negatives."""
    net.eval()
    rng = Random("shapes-blip evaluation")
    examples = [matching_example(rng) for _ in range(300)]
    ids, mask = read([caption for _, captions in examples for caption in captions])
    scores, _ = net(render_batch([scene for scene, _ in examples]), ids, mask)
    return {"accuracy": float((scores.argmax(1) == 0).float().mean())}
