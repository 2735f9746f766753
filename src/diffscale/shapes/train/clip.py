"""shapes-clip: a CLIP model trained contrastively on captions and their hard negatives.

The loss is CLIP's (Radford et al. 2021, section 2.3) with hard negative captions of each picture added to the
candidates of the image-to-text direction, as in NegCLIP (Yuksekgonul et al. 2023). From captions alone so small a
vision tower learns colours and little else in thousands of steps; so a head that is thrown away tells, patch by patch,
what object is there, first on crowded pictures and then beside the contrast.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffscale.shapes.captions import write_caption
from diffscale.shapes.negatives import hard_negatives
from diffscale.shapes.scenes import CANVAS, CATEGORIES, draw_scene
from diffscale.shapes.suite import held_out, suite, training_example
from diffscale.shapes.train.autoencoder import render_batch
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.seeing import KINDS, PATCH, degrade, patch_labels, patch_loss, train_vision
from diffscale.shapes.train.text import CLIP_TOKENS, clip_tokenizer

STEPS: Final = 2_000
VISION_STEPS: Final = 800  # on crowded pictures, before
BATCH: Final = 64
NEGATIVES: Final = 3  # hard negatives for each picture


def build() -> CLIPModel:
    """The network, untrained: 64x64 pictures in patches of 8, width 128, 4 + 3 layers."""
    tokenizer = clip_tokenizer()
    shared = {"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 4, "projection_dim": 128}
    return CLIPModel(
        CLIPConfig(
            text_config={
                **shared,
                "vocab_size": len(tokenizer),
                "num_hidden_layers": 3,
                "max_position_embeddings": CLIP_TOKENS,
                "bos_token_id": tokenizer.bos_token_id,
                "eos_token_id": tokenizer.eos_token_id,
                "pad_token_id": tokenizer.pad_token_id,
            },
            vision_config={**shared, "num_hidden_layers": 4, "image_size": CANVAS, "patch_size": PATCH},
            projection_dim=128,
        )
    )


def image_processor() -> CLIPImageProcessorPil:
    """What the folder says of preprocessing: 64x64, [0, 1] to [-1, 1]."""
    return CLIPImageProcessorPil(
        size={"shortest_edge": 64},
        crop_size={"height": 64, "width": 64},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )


_tokenizer = cache(clip_tokenizer)


def tokens(captions: Sequence[str]) -> Tensor:
    """Token ids [B, 26] as `shapes-clip` takes them."""
    batch = _tokenizer()(
        list(captions), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids


class _Training(nn.Module):
    """CLIP and the head of the patches, in one graph for torch.compile."""

    def __init__(self) -> None:
        super().__init__()
        self.clip = build()
        self.head = nn.Linear(self.clip.config.vision_config.hidden_size, KINDS)

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings of pictures [B, 128] and captions [C, 128], and the head's logits [B, 64, KINDS]."""
        seen = self.clip.vision_model(pixel_values=pixels)
        text = self.clip.text_projection(self.clip.text_model(input_ids=ids).pooler_output)
        return self.clip.visual_projection(seen.pooler_output), text, self.head(seen.last_hidden_state[:, 1:])

    def patches(self, pixels: Tensor) -> Tensor:
        """The head's logits [B, 64, KINDS] alone."""
        return self.head(self.clip.vision_model(pixel_values=pixels).last_hidden_state[:, 1:])  # type: ignore[no-any-return]


def train(folder: Path, steps: int = STEPS, every: int = 500) -> CLIPModel:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = _Training()
    if not (folder / "checkpoint.pt").exists():
        net = train_vision(net, net.patches, "shapes-clip", folder / "vision", VISION_STEPS)  # type: ignore[assignment]
    fast = torch.compile(net)

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-clip step {step}")
        examples = [training_example(rng) for _ in range(BATCH)]
        scenes = [scene for _, scene in examples]
        captions = [write_caption(description, rng) for description, _ in examples]
        for description, scene in examples:
            near = [d for d in hard_negatives(description, scene, rng) if d.key() not in held_out()]
            wrong = [write_caption(d, rng) for d in near[:NEGATIVES]]
            captions += wrong + [""] * (NEGATIVES - len(wrong))  # one graph for every batch
        x = degrade(render_batch(scenes), torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            image, text, patches = fast(x, tokens(captions))
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = net.clip.logit_scale.exp().clamp(max=100) * image @ text.T
        label = torch.arange(BATCH)
        contrast = F.cross_entropy(logits, label) + F.cross_entropy(logits[:, :BATCH].T, label)
        return contrast / 2 + patch_loss(patches.float(), patch_labels(scenes))

    return fit(
        net,
        loss,
        folder=folder,
        steps=steps,
        lr=1e-3,
        muon=True,
        every=every,
        evaluate=lambda mean, _: accuracy(mean.clip),
    ).clip  # type: ignore[arg-type, return-value]


@torch.no_grad()
def accuracy(net: CLIPModel) -> dict[str, float]:
    """Share of pairs in which the true caption scores above one hard negative, per category of the suite.

    For each of the 300 prompts: one fresh scene and every hard negative of it.
    """
    net.eval()
    right: dict[str, list[bool]] = {category: [] for category in CATEGORIES}
    rng = Random("shapes-clip evaluation")
    for prompt in suite("shapes"):
        scene = draw_scene(prompt.description, rng)
        wrong = hard_negatives(prompt.description, scene, rng)
        scores = net(
            pixel_values=render_batch([scene]), input_ids=tokens([prompt.text, *(write_caption(d, rng) for d in wrong)])
        ).logits_per_image[0]
        right[prompt.description.category] += (scores[0] > scores[1:]).tolist()
    return {category: sum(values) / len(values) for category, values in right.items()}
