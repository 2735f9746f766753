"""shapes-reward and shapes-pick: trained on noisy choices between two generated pictures of a prompt.

The loss is that of Bradley and Terry, as in ImageReward (Xu et al. 2023, section 2.2) and PickScore (Kirstain et al.
2023, section 3): the choice is told from the difference of two scores. The choices of made-up raters are also a data
set in the layout of Pick-a-Pic, for DPO.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from diffscale.models.files import save_network
from diffscale.shapes.data import evaluation_keys, write_folder
from diffscale.shapes.taste import PICK_RATER, REWARD_RATER, Rater
from diffscale.shapes.train import blip
from diffscale.shapes.train.contrastive import clip_ids
from diffscale.shapes.train.generated import Groups, ShownPicture, generate_pictures, stack_pixels
from diffscale.shapes.train.loop import Net, Step, autocast, fit
from diffscale.shapes.world import MODELS
from diffscale.verifiers.image_reward import ImageRewardNet

STEPS: Final = 600
BATCH: Final = 32  # pairs


@dataclass(frozen=True)
class Pair:
    """Two pictures of one prompt, the chosen one first, and by how much its utility is larger."""

    chosen: ShownPicture
    other: ShownPicture
    margin: float


def draw_pairs(groups: Groups, rater: Rater, rng: Random) -> tuple[list[Pair], list[Pair]]:
    """Every two pictures of a prompt, chosen by `rater`, to train on and (of held-out meanings) to measure on."""
    pairs: tuple[list[Pair], list[Pair]] = [], []
    for group in groups:
        for a, b in combinations(group, 2):
            u, v = (rater.utility(one.objects, one.cleanliness, one.description) for one in (a, b))
            first = rater.chooses_first(u, v, rng)
            pairs[a.is_held_out].append(Pair(a, b, u - v) if first else Pair(b, a, v - u))
    return pairs


def train_reward(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small BLIP and head, from choices between generated pictures; `steps` are those on the choices."""
    groups = generate_pictures(checkpoints / "generated")
    net = fit_reward(blip.train(checkpoints / "blip"), groups, checkpoints / "reward", steps or STEPS)
    save_network(net.half(), net.config, folder)


def fit_reward(net: ImageRewardNet, groups: Groups, folder: Path, steps: int = STEPS) -> ImageRewardNet:
    """Go on training a matching network (`blip.train`) on choices; scores come out standardised, as published."""

    def score(net: ImageRewardNet, shown: Sequence[ShownPicture]) -> Tensor:
        return net(stack_pixels(shown), *blip.blip_tokens([one.prompt for one in shown]))  # type: ignore[no-any-return]

    net = _fit_choices(net, score, groups, REWARD_RATER, folder, steps)
    with torch.no_grad():
        scores = score(net, [one for group in groups for one in group if one.is_held_out])
    net.config |= {"mean": float(scores.mean()), "std": float(scores.std())}
    return net


def train_pick(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """shapes-clip, trained on, from choices between generated pictures."""
    groups = generate_pictures(checkpoints / "generated")
    fit_pick(groups, checkpoints / "pick", steps or STEPS).save_pretrained(folder)


def fit_pick(groups: Groups, folder: Path, steps: int = STEPS) -> CLIPModel:
    """Go on training shapes-clip on choices."""

    def score(net: CLIPModel, shown: Sequence[ShownPicture]) -> Tensor:
        seen = net.visual_projection(net.vision_model(pixel_values=stack_pixels(shown)).pooler_output)
        ids = clip_ids([one.prompt for one in shown])
        text = net.text_projection(net.text_model(input_ids=ids).pooler_output)
        return net.logit_scale.exp() * F.cosine_similarity(seen, text)

    return _fit_choices(CLIPModel.from_pretrained(MODELS / "shapes-clip"), score, groups, PICK_RATER, folder, steps)


def _fit_choices(
    net: Net,
    score: Callable[[Net, Sequence[ShownPicture]], Tensor],
    groups: Groups,
    rater: Rater,
    folder: Path,
    steps: int,
) -> Net:
    train_pairs, test_pairs = draw_pairs(groups, rater, Random(f"{folder.name} choices"))

    def differences(net: Net, pairs: Sequence[Pair]) -> Tensor:
        scores = score(net, [pair.chosen for pair in pairs] + [pair.other for pair in pairs])
        chosen, other = scores.float().chunk(2)
        return chosen - other

    def loss(step: Step) -> Tensor:
        with autocast():
            apart = differences(net, [step.rng.choice(train_pairs) for _ in range(BATCH)])
        return -F.logsigmoid(apart).mean()

    def evaluate(mean: Net) -> dict[str, float]:
        apart = differences(mean, test_pairs)
        better = torch.tensor([pair.margin > 0 for pair in test_pairs])
        return {
            "agrees_with_choices": float((apart > 0).float().mean()),
            "agrees_with_rule": float(((apart > 0) == better).float().mean()),
            "choices_follow_rule": float(better.float().mean()),
        }

    net.requires_grad_(True)
    seed = f"{folder.name} step"
    return fit(
        net, loss, seed, folder, steps, lr=1e-4, warmup=50, decay=0.5, average=0.99, every=200, evaluate=evaluate
    )


def write_pairs(groups: Groups, folder: Path, rater: Rater = PICK_RATER) -> int:
    """Write the choices of `rater` between pictures of a prompt (see `generated`) to `folder`; how many they are.

    `metadata.jsonl` has, a line a pair, `jpg_0_file_name`, `jpg_1_file_name`, `label_0` (1 if the first was chosen),
    `label_1` and `caption`; which picture comes first is chance. Held-out meanings and those of evaluation prompts are
    left out. Raises DiffscaleError as `write_folder`.
    """
    rng = Random("shapes preference pairs")
    free = [group for group in groups if group and group[0].description.key() not in evaluation_keys()]
    pairs, _ = draw_pairs(free, rater, rng)

    def rows(fresh: Path) -> Iterator[dict[str, Any]]:
        names: dict[int, str] = {}
        for pair in pairs:
            for shown in (pair.chosen, pair.other):
                if id(shown) not in names:
                    names[id(shown)] = f"{len(names):05d}.png"
                    Image.fromarray(shown.picture.permute(1, 2, 0).numpy()).save(fresh / names[id(shown)])
            chosen_first = rng.randrange(2)
            first, second = (pair.chosen, pair.other) if chosen_first else (pair.other, pair.chosen)
            files = {"jpg_0_file_name": names[id(first)], "jpg_1_file_name": names[id(second)]}
            labels = {"label_0": float(chosen_first), "label_1": float(1 - chosen_first)}
            yield {**files, **labels, "caption": pair.chosen.prompt}

    return write_folder(folder, rows)
