"""shapes-clip: a CLIP model trained contrastively on captions and their hard negatives.

The loss is CLIP's (Radford et al. 2021, section 2.3) with one hard negative caption for each picture added to the
candidates of the image-to-text direction, as in NegCLIP (Yuksekgonul et al. 2023).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

from diffscale.shapes.captions import say
from diffscale.shapes.negatives import hard_negatives
from diffscale.shapes.scenes import CATEGORIES, draw_scene
from diffscale.shapes.suite import held_out, suite, training_example
from diffscale.shapes.train.autoencoder import pictures
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.text import CLIP_TOKENS, clip_tokenizer

STEPS: Final = 6_000
BATCH: Final = 64


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
            vision_config={**shared, "num_hidden_layers": 4, "image_size": 64, "patch_size": 8},
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


def tokens(captions: Sequence[str]) -> Tensor:
    """Token ids [B, 26] as `shapes-clip` takes them."""
    batch = clip_tokenizer()(
        list(captions), padding="max_length", max_length=CLIP_TOKENS, truncation=True, return_tensors="pt"
    )
    return batch.input_ids


def weathered(x: Tensor, generator: torch.Generator) -> Tensor:
    """Pictures [B, 3, 64, 64] with noise and blur of a random strength each: generated pictures are not clean."""
    strength = torch.rand(len(x), 2, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    x = torch.lerp(x, blurred, (strength[:, 0] * 1.5 - 0.5).clamp(0, 1))
    return x + 0.15 * (strength[:, 1] - 0.4).clamp(min=0) * torch.randn(x.shape, generator=generator)


def train(folder: Path, steps: int = STEPS, every: int = 500) -> CLIPModel:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    net = build()
    encode = torch.compile(_Encode(net))

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-clip step {step}")
        true, wrong, scenes = [], [], []
        for _ in range(BATCH):
            description, scene = training_example(rng)
            scenes.append(scene)
            true.append(say(description, rng))
            near = [d for d in hard_negatives(description, scene, rng) if d.key() not in held_out()]
            wrong.append(say((near or [description])[0], rng))
        x = weathered(pictures(scenes), torch.Generator().manual_seed(step))
        with torch.autocast("cpu", torch.bfloat16):
            image, text = encode(x, tokens([*true, *wrong]))
        image, text = F.normalize(image.float(), dim=-1), F.normalize(text.float(), dim=-1)
        logits = net.logit_scale.exp().clamp(max=100) * image @ text.T
        label = torch.arange(BATCH)
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits[:, :BATCH].T, label)) / 2

    return fit(net, loss, folder=folder, steps=steps, lr=1e-3, evaluate=lambda mean, _: accuracy(mean), every=every)  # type: ignore[return-value]


class _Encode(nn.Module):
    """Both projections in one graph for torch.compile."""

    def __init__(self, net: CLIPModel) -> None:
        super().__init__()
        self.net = net

    def forward(self, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        image = self.net.visual_projection(self.net.vision_model(pixel_values=pixels).pooler_output)
        text = self.net.text_projection(self.net.text_model(input_ids=ids).pooler_output)
        return image, text


@torch.no_grad()
def accuracy(net: nn.Module) -> dict[str, float]:
    """Share of pairs in which the true caption scores above one hard negative, per category of the suite.

    For each of the 300 prompts: one fresh scene and every hard negative of it.
    """
    encode = _Encode(net).eval()  # type: ignore[arg-type]
    right: dict[str, list[bool]] = {category: [] for category in CATEGORIES}
    rng = Random("shapes-clip evaluation")
    for prompt in suite("shapes"):
        scene = draw_scene(prompt.description, rng)
        wrong = hard_negatives(prompt.description, scene, rng)
        image, text = encode(pictures([scene]), tokens([prompt.text, *(say(d, rng) for d in wrong)]))
        scores = F.cosine_similarity(image, text)
        right[prompt.description.category] += (scores[0] > scores[1:]).tolist()
    return {category: sum(values) / len(values) for category, values in right.items()}
