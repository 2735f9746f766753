"""shapes-grader and shapes-aesthetic: trained on noisy marks that raters give to single generated pictures.

The grader gives a mark for each of the LLM grader's aspects. The aesthetic predictor is the LAION head on shapes-clip;
its ratings follow `taste.beauty`, whole numbers from 1 to 10 with noise, and it sees only features that were trained
to match captions, so it is blind to much of the layout.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Final

import torch
from torch import Tensor
from torch.nn import functional as F

from diffscale.models.files import save_network
from diffscale.shapes.taste import ASPECTS, beauty, draw_grades
from diffscale.shapes.train import blip
from diffscale.shapes.train.generated import Groups, ShownPicture, generate_pictures, stack_pixels
from diffscale.shapes.train.loop import Step, autocast, fit
from diffscale.verifiers.aesthetic import Head
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.image_reward import ImageRewardNet

GRADER_STEPS: Final = 800
AESTHETIC_STEPS: Final = 2_000
_GRADER_BATCH: Final = 64
_AESTHETIC_BATCH: Final = 256
_HEAD: Final = (128, 256, 32, 1)
_NOISE: Final = 1.5  # standard deviation of a rating


def train_grader(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """A small BLIP with a head of marks, from grades of generated pictures; `steps` are those on the grades."""
    groups = generate_pictures(checkpoints / "generated")
    net = fit_grader(blip.train(checkpoints / "blip"), groups, checkpoints / "grader", steps or GRADER_STEPS)
    save_network(net.half(), net.config, folder)


def fit_grader(matching: ImageRewardNet, groups: Groups, folder: Path, steps: int = GRADER_STEPS) -> ImageRewardNet:
    """From a matching network (`blip.train`), one that gives a mark, 0 to 10, for each of `ASPECTS` and overall."""
    torch.manual_seed(0)
    net = blip.build("shapes-grader")
    net.vision.load_state_dict(matching.vision.state_dict())
    net.text.load_state_dict(matching.text.state_dict())
    rng = Random("shapes-grader grades")
    graded: tuple[list[tuple[ShownPicture, Tensor]], ...] = [], []
    for one in (one for group in groups for one in group):
        marks = draw_grades(one.objects, one.cleanliness, one.fit, one.description, rng)
        graded[one.is_held_out].append((one, torch.tensor(marks, dtype=torch.float32)))

    def loss(step: Step) -> Tensor:
        shown, given = zip(*(step.rng.choice(graded[False]) for _ in range(_GRADER_BATCH)), strict=True)
        with autocast():
            marks = _marks(net, shown)
        # In tenths, so that the loss starts at about 1 for marks that are off by all.
        return F.mse_loss(marks.float() / 10, torch.stack(given) / 10)

    def evaluate(mean: ImageRewardNet) -> dict[str, float]:
        shown, given = zip(*graded[True], strict=True)
        both = zip([*ASPECTS, "overall"], _marks(mean, shown).unbind(1), torch.stack(given).unbind(1), strict=True)
        return {f"correlation_{name}": _correlation(a, b) for name, a, b in both}

    seed = "shapes-grader step"
    return fit(net, loss, seed, folder, steps, lr=3e-4, warmup=50, average=0.99, every=200, evaluate=evaluate)


def _marks(net: ImageRewardNet, shown: Sequence[ShownPicture]) -> Tensor:
    """Marks [B, aspects + 1] from 0 to 10."""
    seen = net.vision(pixel_values=stack_pixels(shown)).last_hidden_state
    return 10 * net.rate(seen, *blip.blip_tokens([one.prompt for one in shown])).sigmoid()


def train_aesthetic(checkpoints: Path, folder: Path, steps: int | None = None) -> None:
    """The head on shapes-clip, from ratings of generated pictures."""
    groups = generate_pictures(checkpoints / "generated")
    head = fit_aesthetic(groups, checkpoints / "aesthetic", steps or AESTHETIC_STEPS)
    save_network(head, {"clip": "shapes-clip"}, folder)


def fit_aesthetic(groups: Groups, folder: Path, steps: int = AESTHETIC_STEPS) -> Head:
    """Train the head on all but the held-out pictures."""
    torch.manual_seed(0)
    clip = Clip.load("shapes-clip")
    shown = [one for group in groups for one in group]
    with torch.no_grad():
        features = [clip.features((stack_pixels(shown[i : i + 256]) + 1) / 2) for i in range(0, len(shown), 256)]
    embeddings = F.normalize(torch.cat(features), dim=-1)
    rng = Random("shapes-aesthetic ratings")
    ratings = torch.tensor([draw_rating(one, rng) for one in shown])
    held_out = torch.tensor([one.is_held_out for one in shown])
    seen, given = embeddings[~held_out], ratings[~held_out]

    def loss(step: Step) -> Tensor:
        rows = torch.randint(len(seen), (_AESTHETIC_BATCH,), generator=step.generator)
        return F.mse_loss(head(seen[rows])[:, 0], given[rows])

    def evaluate(mean: Head) -> dict[str, float]:
        truth = torch.tensor([beauty(one.objects) for one in shown if one.is_held_out])
        return {"correlation_with_rule": _correlation(mean(embeddings[held_out])[:, 0], truth)}

    head = Head(_HEAD)
    return fit(head, loss, "shapes-aesthetic step", folder, steps, lr=1e-3, evaluate=evaluate)


def draw_rating(shown: ShownPicture, rng: Random) -> float:
    """What one rater says of a picture: a whole number from 1 to 10."""
    return float(min(max(round(beauty(shown.objects) + rng.gauss(0, _NOISE)), 1), 10))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])
