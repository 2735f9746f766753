"""How rewards learn from a ranked gallery."""

import math

import pytest
import torch

from diffscale.train.methods.iterpo import Gallery, ranking_loss, refine


class Weighed:
    """A reward of brightness that weighs colours."""

    name = "weighed"

    def __init__(self, weights=(1.0, 0.0, 0.0)):
        self.of = torch.nn.Parameter(torch.tensor(weights), requires_grad=False)

    def weights(self):
        return [self.of]

    def __call__(self, images, prompts):
        return images.mean((2, 3)) @ self.of


def pictures(*levels):
    """Of one colour each, [G, 3, 2, 2], as bytes."""
    return (torch.tensor(levels)[:, :, None, None].expand(-1, -1, 2, 2) * 255).to(torch.uint8)


def test_the_loss_of_a_ranking_by_hand():
    better, worse = torch.full((2, 3, 4, 4), 0.75), torch.full((2, 3, 4, 4), 0.25)
    assert float(ranking_loss(Weighed(), better, worse, ["a", "b"])) == pytest.approx(math.log1p(math.exp(-0.5)))


def test_pairs_are_all_that_differ_in_rank_within_a_prompt():
    one = pictures([0.0, 0, 0], [0.0, 0, 0])
    gallery = Gallery(["a", "b"], one[None], torch.tensor([[1.0, 5.0]]).double())
    assert len(gallery.pairs()) == 0
    ranks = torch.tensor([[1.0, 5.0], [2.0, 5.0], [0.0, 7.0]]).double()
    gallery = Gallery(["a", "b"], torch.stack([one] * 3), ranks)
    assert sorted(map(tuple, gallery.pairs().tolist())) == [(0, 0, 2), (0, 1, 0), (0, 1, 2), (1, 2, 0), (1, 2, 1)]


def test_a_reward_learns_what_the_ranking_knows_and_rests_afterwards():
    # Red is what it likes, and green what is ranked.
    generator = torch.Generator().manual_seed(0)
    levels = torch.rand(4, 16, 3, generator=generator)
    shown = (levels[..., None, None].expand(-1, -1, -1, 2, 2) * 255).to(torch.uint8)
    gallery = Gallery([f"{i}" for i in range(16)], shown, levels[..., 1].double())
    reward, again = Weighed(), Weighed()
    for one in (reward, again):
        refine(one, gallery, key=3, epochs=20, rate=0.05)
    assert torch.equal(reward.of, again.of)
    assert reward.of[1] > 1 and reward.of[1] > 3 * reward.of[[0, 2]].abs().max()
    assert not reward.of.requires_grad and reward.of.grad is None
