"""shapes-clip and shapes-siglip: models of pictures and captions, trained contrastively.

The loss of shapes-clip is CLIP's (Radford et al. 2021, section 2.3) with hard negative captions of each picture added
to the candidates of the image-to-text direction, as in NegCLIP (Yuksekgonul et al. 2023). That of shapes-siglip is the
sigmoid loss (Zhai et al. 2023, equation 1): pairs within the batch are its only negatives, so it knows what is in a
picture better than which attribute belongs to which object, the blindness that hard negatives spare shapes-clip.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer, SiglipModel, T5Tokenizer

from diffscale_shapes.captions import write_caption
from diffscale_shapes.negatives import hard_negatives
from diffscale_shapes.prompts import held_out, suite, training_example
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import CATEGORIES, Scene, draw_scene
from diffscale_shapes.train.seeing import Sighted, fit_sighted
from diffscale_shapes.train.shipped import untrained
from diffscale_shapes.train.text import clip_tokenizer, t5_tokenizer, tokenize

BATCH: Final = 64
NEGATIVES: Final = 3  # hard negatives for each picture


def clip_ids(captions: Sequence[str]) -> Tensor:
    """Token ids [B, 26] as `shapes-clip` takes them."""
    return tokenize(clip_tokenizer(), captions).input_ids  # type: ignore[no-any-return]


class _Clip(Sighted):
    net: CLIPModel
    name, vision_steps, head_weight = "shapes-clip", 800, 1.0

    def draw(self, rng: Random) -> tuple[list[Scene], list[Tensor]]:
        return _draw(rng, clip_tokenizer(), NEGATIVES)

    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of pictures [B, 128] and of captions [C, 128]."""
        text = self.net.text_projection(self.net.text_model(input_ids=tokens[0]).pooler_output)
        return self.net.visual_projection(seen.pooler_output), text

    def objective(self, *outputs: Tensor) -> Tensor:
        image, text = (F.normalize(each, dim=-1) for each in outputs)
        logits = self.net.logit_scale.exp().clamp(max=100) * image @ text.T
        label = torch.arange(BATCH)
        return (F.cross_entropy(logits, label) + F.cross_entropy(logits[:, :BATCH].T, label)) / 2


def train_clip(checkpoints: Path, folder: Path, steps: int) -> None:
    """The contrastive model; the folder loads with CLIPModel.from_pretrained."""
    torch.manual_seed(0)
    net = _Clip(untrained(CLIPModel, "shapes-clip"))
    mean = fit_sighted(net, checkpoints / "clip", steps, every=500, evaluate=lambda mean: accuracy(mean.net))
    mean.net.save_pretrained(folder)


def _draw(rng: Random, tokenizer: CLIPTokenizer | T5Tokenizer, negatives: int) -> tuple[list[Scene], list[Tensor]]:
    """Scenes, and the tokens of their captions, then of hard negatives of each."""
    examples = [training_example(rng) for _ in range(BATCH)]
    captions = [write_caption(description, rng) for description, _ in examples]
    for description, scene in examples if negatives else []:
        near = [d for d in hard_negatives(description, scene, rng) if d.key() not in held_out()]
        wrong = [write_caption(d, rng) for d in near[:negatives]]
        captions += wrong + [""] * (negatives - len(wrong))  # one graph for every batch
    return [scene for _, scene in examples], [tokenize(tokenizer, captions).input_ids]


def accuracy(net: CLIPModel) -> dict[str, float]:
    """Share of pairs in which the true caption scores above one hard negative, per category of the suite.

    For each of the 300 prompts: one fresh scene and every hard negative of it.
    """
    right: dict[str, list[bool]] = {category: [] for category in CATEGORIES}
    rng = Random("shapes-clip evaluation")
    for prompt in suite("shapes"):
        scene = draw_scene(prompt.description, rng)
        captions = [write_caption(d, rng) for d in hard_negatives(prompt.description, scene, rng)]
        ids = clip_ids([prompt.text, *captions])
        scores = net(pixel_values=render_batch([scene]), input_ids=ids).logits_per_image[0]
        right[prompt.description.category] += (scores[0] > scores[1:]).tolist()
    return {category: sum(values) / len(values) for category, values in right.items()}


class _Siglip(Sighted):
    net: SiglipModel
    name, vision_steps, head_weight = "shapes-siglip", 500, 0.5

    def draw(self, rng: Random) -> tuple[list[Scene], list[Tensor]]:
        return _draw(rng, t5_tokenizer(), 0)

    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Embeddings of pictures and of captions, [B, 128] each."""
        return seen.pooler_output, self.net.text_model(input_ids=tokens[0]).pooler_output

    def objective(self, *outputs: Tensor) -> Tensor:
        image, text = (F.normalize(each, dim=-1) for each in outputs)
        logits = self.net.logit_scale.exp() * image @ text.T + self.net.logit_bias
        # 1 for a picture and its caption, -1 for every other pair.
        sign = 2 * torch.eye(BATCH) - 1
        return -F.logsigmoid(sign * logits).sum(1).mean()


def train_siglip(checkpoints: Path, folder: Path, steps: int) -> None:
    """The sigmoid-loss model; the folder loads with SiglipModel.from_pretrained."""
    torch.manual_seed(0)
    siglip = untrained(SiglipModel, "shapes-siglip")
    # As Zhai et al. begin (section 3.2): from 0 and 0 so few steps would not lead out of a collapse of all embeddings.
    nn.init.constant_(siglip.logit_scale, math.log(10))
    nn.init.constant_(siglip.logit_bias, -10.0)
    fit_sighted(_Siglip(siglip), checkpoints / "siglip", steps).net.half().save_pretrained(folder)
