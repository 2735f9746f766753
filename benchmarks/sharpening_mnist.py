"""Does learning from groups of own samples work on a network that nobody here made? A flow on handwritten digits.

    python benchmarks/sharpening_mnist.py --weights ../shared/third_party/mnist [--methods group-dpo nft awm raft]
        [--rounds 20] [--seeds 3] [--samples 200] [--output docs/sharpening/mnist.md]

The network and the judge are those of examples/mnist (209 and 62 thousand parameters, weights by others, see there);
the reward is what the OCR of `diffscale[ocr]` reads in a picture, which took no part in making either. Each round has a
group of 16 samples for each of the ten digits, the methods learn from all weights with their losses as they are in
diffscale.train, and samples are made without guidance in 25 Euler steps, as they are judged.

What is told, over seeds: the share of samples that the judge (LeNet) reads as another digit, at 1x and for the best of
4 of the base by the reward; the mean reward; diversity, 1 less the mean cosine of two pictures of a digit in LeNet's
last hidden layer. All from the same noises, which training has not seen.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from torch import Tensor, nn

from diffscale import DenoiserSampler
from diffscale.engine import noise
from diffscale.metrics.distances import diversity
from diffscale.train import configs
from diffscale.train.data.batches import Batch, Order
from diffscale.train.methods import METHODS
from diffscale.train.methods.method import TrainContext
from diffscale.train.policy import Policy
from diffscale.train.rewards import Reward
from diffscale.train.times import Times
from diffscale.verifiers import load

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "mnist"))
from mnist import DIGITS, digit_sampler
from networks import DigitFlow, LeNet

CANDIDATES: Final = 4
SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "group-dpo": {"beta": 200.0, "learning_rate": 1e-4},
    "nft": {"learning_rate": 1e-4},
    "awm": {"learning_rate": 1e-4},
    "raft": {"learning_rate": 1e-4, "group_kept": 4},
}
SHARED: Final[dict[str, Any]] = {
    "group_size": 16, "num_inner_epochs": 4, "train_batch_size": len(DIGITS), "full": True, "reward": ["ocr"],
    "timestep_bias_strategy": "range", "timestep_bias_begin": 300, "timestep_bias_end": 1000,
    "timestep_bias_multiplier": 1000.0,
}  # fmt: skip


class DigitPolicy(Policy):
    """The flow on digits as what is trained: row i is digit i, and time / 1000 the noise level."""

    def __init__(self, network: DigitFlow, like: Tensor) -> None:
        self.network, self._now = network, network
        self._before = copy.deepcopy(network)
        self.like, self.times = like, Times(None, 1000, "sample")
        self.adapter, self._gamma = None, None

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"flow": self.network}

    def output(self, x: Tensor, time: Tensor, rows: Tensor) -> Tensor:
        return self._now(x, 1 - time.to(x) / self.times.count, rows)

    @contextmanager
    def reference(self) -> Iterator[None]:
        self._now = self._before
        try:
            with torch.no_grad():
                yield
        finally:
            self._now = self.network


class Digits:
    """The data: a batch is the ten digits, in their order."""

    def __init__(self, policy: DigitPolicy, sampler: DenoiserSampler) -> None:
        rows, names = list(range(len(DIGITS))), list[str](DIGITS)
        batch = Batch(rows, names, names, {}, None, None)
        self.batches = SimpleNamespace(order=Order(len(rows), len(rows)), batch_of=lambda number: batch)
        trainable = dict(policy.network.named_parameters())
        self.base = SimpleNamespace(policy=policy, own=sampler, trainable=trainable)

    def set_prompts(self, batch: Batch) -> None:
        """Leave rows as they are."""

    def set_own_prompts(self, prompts: Sequence[str]) -> None:
        """Leave rows as they are."""


def trained(weights: Path, method: str, rounds: int, seed: int) -> DenoiserSampler:
    """A sampler of the network after training."""
    sampler = digit_sampler(weights)
    network = sampler._network
    network.requires_grad_(True)
    one = torch.zeros(1, dtype=torch.int64)
    policy = DigitPolicy(network, sampler.prior(one, one).x[:0])
    given = {"pretrained_model_name_or_path": "mnist", "train_prompts": "digits", "output_dir": "none", "seed": seed}
    settings = configs.resolve(method, None, {**given, **SHARED, **SETTINGS[method]})
    policy.times = policy.times.biased(1000.0, settings.timestep_bias_begin, settings.timestep_bias_end)
    rewards = [Reward(load("ocr"))]
    learner = METHODS[method](TrainContext(settings, Digits(policy, sampler), rewards, rewards[0]))
    optimiser = torch.optim.AdamW(network.parameters(), settings.learning_rate)
    for step in track(range(rounds * settings.num_inner_epochs), f"{method}, seed {seed}"):
        loss, _ = learner.loss(learner.gather(step))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimiser.step()
    network.requires_grad_(False)
    return sampler


@torch.no_grad()
def pictures(sampler: DenoiserSampler, samples: int, seed: int) -> Tensor:
    """Pictures [digits, samples, 3, 28, 28] from noises that training does not use."""
    root = noise.fold(noise.root(seed), "judged")
    keys = torch.tensor([noise.fold(root, digit, i) for digit in range(len(DIGITS)) for i in range(samples)])
    rows = torch.arange(len(DIGITS)).repeat_interleave(samples)
    parts = torch.arange(len(keys)).split(500)
    made = [sampler.decode(sampler.run(sampler.prior(keys[part], rows[part])).x) for part in parts]
    return torch.cat(made).unflatten(0, (len(DIGITS), samples))


@torch.no_grad()
def read(judge: LeNet, images: Tensor) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Whether the judge reads another digit, [digits, samples], and its features [digits * samples, 84]."""
    seen: list[Tensor] = []
    hook = judge.fc.f6.register_forward_hook(lambda module, given, output: seen.append(output))
    said = judge(images.flatten(0, 1).mean(1, keepdim=True)).argmax(1)
    hook.remove()
    wrong = said.view(images.shape[:2]) != torch.arange(len(DIGITS))[:, None]
    return wrong.numpy(), seen[0].numpy()


def scores(reward: Any, images: Tensor) -> Tensor:
    """Rewards [digits, samples]."""
    said = [reward(each, [DIGITS[digit]] * len(each)) for digit, each in enumerate(images)]
    return torch.stack([each.double().flatten() for each in said])


def row(name: str, judge: LeNet, reward: Any, images: Sequence[Tensor], began: float) -> str:
    """A line of the table: means over seeds, with the standard error over seeds and samples."""
    wrong, spread, marks = [], [], []
    for each in images:
        missed, features = read(judge, each)
        wrong.append(missed)
        spread.append(diversity(features, [digit for digit in range(len(DIGITS)) for _ in range(each.shape[1])]))
        marks.append(float(scores(reward, each[:, :20]).mean()))
    share = np.array(wrong).mean((1, 2))
    error = (np.mean(wrong) * (1 - np.mean(wrong)) / np.size(wrong) + share.var() / len(share)) ** 0.5
    cells = f"{100 * share.mean():.2f} ± {100 * error:.2f} | {np.mean(marks):.3f} | {np.mean(spread):.3f}"
    return f"| {name} | {cells} | {time.process_time() - began:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--methods", nargs="+", default=[*SETTINGS], choices=[*SETTINGS])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--samples", type=int, default=200, help="of each digit and seed")
    parser.add_argument("--output", type=Path, default=Path("outputs/sharpening/mnist.md"))
    options = parser.parse_args()
    judge, reward, seeds = LeNet.load(options.weights), load("ocr"), range(options.seeds)
    base = digit_sampler(options.weights)
    lines = [
        f"A flow on MNIST digits, {options.rounds} rounds of 10 x 16 samples by OCR, {options.seeds} seeds, "
        f"{options.samples} samples a digit and seed: `python benchmarks/sharpening_mnist.py`.",
        "",
        "| | error by the judge, % | reward | diversity | CPU seconds |",
        "|---|---|---|---|---|",
    ]
    began = time.process_time()
    lines.append(row("base", judge, reward, [pictures(base, options.samples, seed) for seed in seeds], began))
    began, chosen = time.process_time(), []
    for seed in seeds:
        images = pictures(base, options.samples // 2 * CANDIDATES, seed)
        best = scores(reward, images).view(len(DIGITS), -1, CANDIDATES).argmax(2)
        pools = images.unflatten(1, (-1, CANDIDATES))
        chosen.append(pools[torch.arange(len(DIGITS))[:, None], torch.arange(best.shape[1]), best])
    lines.append(row(f"best of {CANDIDATES} of the base", judge, reward, chosen, began))
    for method in options.methods:
        began = time.process_time()
        samplers = [trained(options.weights, method, options.rounds, seed) for seed in seeds]
        found = [pictures(each, options.samples, seed) for seed, each in zip(seeds, samplers, strict=True)]
        lines.append(row(method, judge, reward, found, began))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
