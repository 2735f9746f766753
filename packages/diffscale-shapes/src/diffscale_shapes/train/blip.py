"""The small BLIP under shapes-reward and shapes-grader, trained to tell a caption from its hard negatives.

As BLIP's matching loss (Li et al. 2022, section 3.2) with the captions of a picture compared by softmax. Its captions
and negatives leave out what its raters are blind to, texture and size.
"""

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.files import read_config
from diffscale.verifiers.image_reward import ImageRewardNet
from diffscale_shapes import MODELS
from diffscale_shapes.captions import write_caption
from diffscale_shapes.negatives import hard_negatives
from diffscale_shapes.prompts import held_out, training_example
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import Scene
from diffscale_shapes.taste import REWARD_RATER
from diffscale_shapes.train.seeing import Sighted, fit_sighted
from diffscale_shapes.train.text import clip_tokenizer, tokenize

STEPS: Final = 1_200
VISION_STEPS: Final = 600  # on crowded pictures, before
BATCH: Final = 48
NEGATIVES: Final = 2


def build(model: str) -> ImageRewardNet:
    """The network of shapes-reward or of shapes-grader, untrained; its ratings are not scaled yet."""
    return ImageRewardNet(read_config(MODELS / model / "config.json") | {"mean": 0.0, "std": 1.0})


def blip_tokens(captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, int64 [B, 26] each."""
    batch = tokenize(clip_tokenizer(), captions)
    return batch.input_ids, batch.attention_mask


class _Blip(Sighted):
    net: ImageRewardNet
    tower, name, vision_steps, head_weight = "vision", "shapes-blip", VISION_STEPS, 0.5

    def draw(self, rng: Random) -> tuple[list[Scene], tuple[Tensor, Tensor]]:
        return _draw(rng, BATCH)

    def embed(self, seen: Any, *tokens: Tensor) -> tuple[Tensor, ...]:
        """Scores [B, 1 + NEGATIVES] of each picture's captions, ids and mask [B (1 + NEGATIVES), L]."""
        features = seen.last_hidden_state
        rated = self.net.rate(features.repeat_interleave(1 + NEGATIVES, 0), *tokens)
        return (rated.view(len(features), -1),)

    def objective(self, *outputs: Tensor) -> Tensor:
        return F.cross_entropy(outputs[0], torch.zeros(BATCH, dtype=torch.long))


def train(folder: Path) -> ImageRewardNet:
    """Train from nothing, or go on from the checkpoint in `folder`; returns the averaged network."""
    torch.manual_seed(0)
    return fit_sighted(_Blip(build("shapes-reward")), folder, STEPS, evaluate=_accuracy).net


def _draw(rng: Random, count: int) -> tuple[list[Scene], tuple[Tensor, Tensor]]:
    examples = [matching_example(rng) for _ in range(count)]
    return [scene for scene, _ in examples], blip_tokens([text for _, captions in examples for text in captions])


def matching_example(rng: Random) -> tuple[Scene, list[str]]:
    """A scene and its captions, the true one first."""
    while True:
        description, scene = training_example(rng)
        meant = REWARD_RATER.understands(description)
        wrong = [d for d in hard_negatives(meant, scene, rng) if d.key() not in held_out()][:NEGATIVES]
        # What is left of a description when texture and size go may be one that is held out.
        if meant.key() not in held_out() and len(wrong) == NEGATIVES:
            return scene, [write_caption(d, rng) for d in (meant, *wrong)]


def _accuracy(net: _Blip) -> dict[str, float]:
    """Share of fresh pictures whose true caption is scored above both hard negatives."""
    scenes, tokens = _draw(Random("shapes-blip evaluation"), 300)
    scores, _ = net(render_batch(scenes), *tokens)
    return {"accuracy": float((scores.argmax(1) == 0).float().mean())}
