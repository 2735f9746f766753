"""Self-play fine-tuning: what its pairs are, and what they are compared with, round after round."""

from types import SimpleNamespace

import pytest
import torch
from policies import ToyPolicy
from test_losses import gradient

from diffscale.train import configs
from diffscale.train.methods.dpo import diffusion_dpo_loss
from diffscale.train.methods.spin import Spin

KEYS, BETA = torch.tensor([11, 12]), 40.0


def latents(seed: int) -> torch.Tensor:
    return torch.randn(2, 2, 2, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def learner(policy: ToyPolicy, sampled: list[int]) -> Spin:
    """Rounds of two batches that are gone over twice; batch i has pictures of seed i and own samples of seed i + 50."""
    least = {"pretrained_model_name_or_path": "base", "train_data_dir": "a", "train_batch_size": 2, "beta": BETA}
    settings = configs.resolve("spin", None, least | {"samples_per_round": 4, "num_inner_epochs": 2})
    own = SimpleNamespace(steps=20)
    data = SimpleNamespace(
        base=SimpleNamespace(policy=policy, trainable=dict(policy.network.items()), own=own),
        batches=SimpleNamespace(
            batch_of=lambda number: SimpleNamespace(captions=["a", "b"], number=number),
            order=SimpleNamespace(processes=1),
        ),
        latents=lambda batch: latents(batch)[:, None],
    )

    def own_samples(captions, keys):
        sampled.append(int(keys[0]))
        return latents(int(keys[0]) + 50)

    def keys(number, what="pass"):
        return torch.tensor([number, number]) if what == "own" else KEYS + number

    context = SimpleNamespace(
        settings=settings, data=data, rows=torch.arange(2), use_batch=lambda number: number, keys=keys,
        own_samples=own_samples,
    )  # fmt: skip
    return Spin(context)


def test_pictures_are_preferred_to_samples_of_the_weights_that_began_the_round() -> None:
    policy, sampled = ToyPolicy(), list[int]()
    spin = learner(policy, sampled)
    for number in range(8):
        if number in (0, 4):  # what the network is at the beginning of a round is what it is compared with
            policy.before = {name: each.detach().clone() for name, each in policy.network.items()}
        gathered = spin.gather(number)
        batch = number // 4 * 2 + number % 2
        loss, logs = spin.loss(gathered)
        rows = torch.arange(2)
        wanted = diffusion_dpo_loss(policy, latents(batch), latents(batch + 50), rows, KEYS + number, BETA)[0]
        assert float(loss.detach()) == pytest.approx(float(wanted.detach()), rel=1e-12)
        assert torch.allclose(gradient(policy, loss), gradient(policy, wanted), rtol=1e-12)
        assert ("nfe" in logs) == (number in (0, 4)) and logs.get("nfe", 80) == 4 * 20
        policy.change(0.02)
    assert sampled == [0, 1, 2, 3]


def test_a_model_whose_samples_are_its_data_has_nothing_to_learn() -> None:
    policy = ToyPolicy()
    spin = learner(policy, [])
    pictures, _, keys = spin.gather(0)
    assert float(gradient(policy, spin.loss((pictures, pictures, keys))[0]).abs().max()) < 1e-12
