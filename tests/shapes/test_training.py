"""The training loop resumes where it was killed, and never loses a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from diffscale.shapes.captions import WORDS
from diffscale.shapes.train.autoencoder import build
from diffscale.shapes.train.flux import TextToVelocity, encode_scenes, scene
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.text import clip_tokenizer, t5_tokenizer


def _train(folder: Path, steps: int, stop: int | None = None, poison: int | None = None) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    def loss(step: int) -> Tensor:
        if step == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=torch.Generator().manual_seed(step))
        return (net(x) - x.sum(1, keepdim=True)).square().mean() * (torch.nan if step == poison else 1)

    return fit(net, loss, folder=folder, steps=steps, lr=0.05, warmup=5, every=10)


def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path) -> None:
    whole = _train(tmp_path / "whole", 40)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", 40, stop=25)
    resumed = _train(tmp_path / "killed", 40)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_loss_that_is_not_finite_stops_and_names_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(FloatingPointError, match=r"step 15.*checkpoint\.pt"):
        _train(tmp_path, 40, poison=15)
    assert torch.load(tmp_path / "checkpoint.pt", weights_only=True)["step"] == 10


def test_every_word_is_one_token() -> None:
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        assert [word for word in WORDS if len(tokenizer.tokenize(word)) != 1] == []


def test_scenes_are_encoded_once_and_alike(tmp_path: Path) -> None:
    vae = build().eval()
    first, latents = encode_scenes(vae, tmp_path, 6)
    again, kept = encode_scenes(vae, tmp_path, 6)
    assert first == again
    assert first[3] == scene(3)[0]
    torch.testing.assert_close(latents, kept, atol=0, rtol=0)
    assert latents.shape == (6, 16, 32)


def test_the_velocity_depends_on_the_caption() -> None:
    torch.manual_seed(0)
    net = TextToVelocity().eval()
    nn.init.normal_(net.transformer.proj_out.weight)
    nn.init.normal_(net.transformer.norm_out.linear.weight, std=0.1)
    states, pooled = net.encode(["a red circle", "two stars left of a square"])
    x = torch.randn(1, 16, 32).expand(2, -1, -1)
    v = net(x, torch.tensor([0.5, 0.5]), torch.ones(2), states, pooled)
    assert v.shape == (2, 16, 32)
    assert not torch.allclose(v[0], v[1])
