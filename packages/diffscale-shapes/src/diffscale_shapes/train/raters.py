"""What networks learn from made-up raters, who see pictures that shapes-flux made of training captions.

shapes-reward and shapes-pick learn from noisy choices between two pictures of a prompt. The loss is that of Bradley and
Terry, as in ImageReward (Xu et al. 2023, section 2.2) and PickScore (Kirstain et al. 2023, section 3): the choice is
told from the difference of two scores. The choices are also a data set in the layout of Pick-a-Pic, for DPO.

shapes-grader and shapes-aesthetic learn from noisy marks of single pictures. The grader gives a mark for each of the
LLM grader's aspects. The aesthetic predictor is the LAION head on shapes-clip; its ratings follow `taste.beauty`, whole
numbers from 1 to 10 with noise, and it sees only features that were trained to match captions, so it is blind to much
of the layout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel

from diffscale.models.files import save_network
from diffscale.verifiers.aesthetic import Head
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.image_reward import ImageRewardNet
from diffscale_shapes import MODELS
from diffscale_shapes.data import evaluation_keys, write_folder
from diffscale_shapes.taste import ASPECTS, PICK_RATER, REWARD_RATER, Rater, beauty, draw_grades
from diffscale_shapes.train import blip
from diffscale_shapes.train.contrastive import clip_ids
from diffscale_shapes.train.generated import Groups, ShownPicture, generate_pictures, stack_pixels
from diffscale_shapes.train.loop import Net, Step, autocast, fit

_CHOICES: Final = 32  # pairs in a batch
_GRADED: Final = 64  # pictures in a batch, as below
_RATED: Final = 256
_HEAD: Final = (128, 256, 32, 1)
_NOISE: Final = 1.5  # standard deviation of a rating


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


def each_once(pairs: Sequence[Pair]) -> list[ShownPicture]:
    """The pictures of the pairs; a picture is in several."""
    return list(dict.fromkeys(one for pair in pairs for one in (pair.chosen, pair.other)))


def train_reward(checkpoints: Path, folder: Path, steps: int) -> None:
    """A small BLIP and head, trained on from matching to choices; scores come out standardised, as published."""
    groups = generate_pictures(checkpoints / "generated")

    def score(net: ImageRewardNet, shown: Sequence[ShownPicture]) -> Tensor:
        return net(stack_pixels(shown), *blip.blip_tokens([one.prompt for one in shown]))  # type: ignore[no-any-return]

    net = blip.train(checkpoints / "blip")
    net = _fit_choices(net, score, groups, REWARD_RATER, checkpoints / "reward", steps)
    with torch.no_grad():
        scores = score(net, [one for one in chain(*groups) if one.is_held_out])
    save_network(net.half(), net.config | {"mean": float(scores.mean()), "std": float(scores.std())}, folder)


def train_pick(checkpoints: Path, folder: Path, steps: int) -> None:
    """shapes-clip, trained on, from choices between generated pictures."""
    groups = generate_pictures(checkpoints / "generated")

    def score(net: CLIPModel, shown: Sequence[ShownPicture]) -> Tensor:
        seen = net.visual_projection(net.vision_model(pixel_values=stack_pixels(shown)).pooler_output)
        ids = clip_ids([one.prompt for one in shown])
        text = net.text_projection(net.text_model(input_ids=ids).pooler_output)
        return net.logit_scale.exp() * F.cosine_similarity(seen, text)

    net = CLIPModel.from_pretrained(MODELS / "shapes-clip")
    _fit_choices(net, score, groups, PICK_RATER, checkpoints / "pick", steps).save_pretrained(folder)


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
            apart = differences(net, [step.rng.choice(train_pairs) for _ in range(_CHOICES)])
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
    fitted = partial(fit, lr=1e-4, warmup=50, decay=0.5, average=0.99, every=200, evaluate=evaluate)
    return fitted(net, loss, f"{folder.name} step", folder, steps)


def train_grader(checkpoints: Path, folder: Path, steps: int) -> None:
    """From the matching BLIP one that gives a mark, 0 to 10, for each of `ASPECTS` and overall."""
    groups, matching = generate_pictures(checkpoints / "generated"), blip.train(checkpoints / "blip")
    torch.manual_seed(0)
    net = blip.build("shapes-grader")
    net.vision.load_state_dict(matching.vision.state_dict())
    net.text.load_state_dict(matching.text.state_dict())
    rng = Random("shapes-grader grades")
    graded: tuple[list[tuple[ShownPicture, Tensor]], ...] = [], []
    for one in chain(*groups):
        marks = draw_grades(one.objects, one.cleanliness, one.fit, one.description, rng)
        graded[one.is_held_out].append((one, torch.tensor(marks, dtype=torch.float32)))

    def loss(step: Step) -> Tensor:
        shown, given = zip(*(step.rng.choice(graded[False]) for _ in range(_GRADED)), strict=True)
        with autocast():
            marks = _marks(net, shown)
        # In tenths, so that the loss starts at about 1 for marks that are off by all.
        return F.mse_loss(marks.float() / 10, torch.stack(given) / 10)

    def evaluate(mean: ImageRewardNet) -> dict[str, float]:
        shown, given = zip(*graded[True], strict=True)
        both = zip([*ASPECTS, "overall"], _marks(mean, shown).unbind(1), torch.stack(given).unbind(1), strict=True)
        return {f"correlation_{name}": _correlation(a, b) for name, a, b in both}

    fitted = partial(fit, lr=3e-4, warmup=50, average=0.99, every=200, evaluate=evaluate)
    net = fitted(net, loss, "shapes-grader step", checkpoints / "grader", steps)
    save_network(net.half(), net.config, folder)


def _marks(net: ImageRewardNet, shown: Sequence[ShownPicture]) -> Tensor:
    """Marks [B, aspects + 1] from 0 to 10."""
    seen = net.vision(pixel_values=stack_pixels(shown)).last_hidden_state
    return 10 * net.rate(seen, *blip.blip_tokens([one.prompt for one in shown])).sigmoid()


def train_aesthetic(checkpoints: Path, folder: Path, steps: int) -> None:
    """The head on shapes-clip, from ratings of all but the held-out pictures."""
    shown = list(chain(*generate_pictures(checkpoints / "generated")))
    torch.manual_seed(0)
    clip = Clip.load("shapes-clip")
    with torch.no_grad():
        features = [clip.features((stack_pixels(shown[i : i + 256]) + 1) / 2) for i in range(0, len(shown), 256)]
    embeddings = F.normalize(torch.cat(features), dim=-1)
    rng = Random("shapes-aesthetic ratings")
    ratings = torch.tensor([draw_rating(one, rng) for one in shown])
    held_out = torch.tensor([one.is_held_out for one in shown])
    seen, given = embeddings[~held_out], ratings[~held_out]

    def loss(step: Step) -> Tensor:
        rows = torch.randint(len(seen), (_RATED,), generator=step.generator)
        return F.mse_loss(head(seen[rows])[:, 0], given[rows])

    def evaluate(mean: Head) -> dict[str, float]:
        truth = torch.tensor([beauty(one.objects) for one in shown if one.is_held_out])
        return {"correlation_with_rule": _correlation(mean(embeddings[held_out])[:, 0], truth)}

    head = Head(_HEAD)
    mean = fit(head, loss, "shapes-aesthetic step", checkpoints / "aesthetic", steps, lr=1e-3, evaluate=evaluate)
    save_network(mean, {"clip": "shapes-clip"}, folder)


def draw_rating(shown: ShownPicture, rng: Random) -> float:
    """What one rater says of a picture: a whole number from 1 to 10."""
    return float(min(max(round(beauty(shown.objects) + rng.gauss(0, _NOISE)), 1), 10))


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


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
        names = {shown: f"{i:05d}.png" for i, shown in enumerate(each_once(pairs))}
        for shown, name in names.items():
            Image.fromarray(shown.picture.permute(1, 2, 0).numpy()).save(fresh / name)
        for pair in pairs:
            chosen_first = rng.randrange(2)
            first, second = (pair.chosen, pair.other) if chosen_first else (pair.other, pair.chosen)
            files = {"jpg_0_file_name": names[first], "jpg_1_file_name": names[second]}
            labels = {"label_0": float(chosen_first), "label_1": float(1 - chosen_first)}
            yield {**files, **labels, "caption": pair.chosen.prompt}

    return write_folder(folder, rows)
