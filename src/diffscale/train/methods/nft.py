"""DiffusionNFT: move the network towards good samples and away from bad ones, on the forward process."""

from torch import Tensor

from diffscale.train.configs import NftConfig
from diffscale.train.groups import MOST, Group
from diffscale.train.methods.grouped import LaggedMethod, NoisedGroups
from diffscale.train.policy import Policy


def nft_loss(policy: Policy, groups: NoisedGroups, output: Tensor, old: Tensor, beta: float) -> Tensor:
    """MOST / beta (r |x+ - x0|^2 / m+ + (1 - r) |x- - x0|^2 / m-), mean over samples, with r = (1 + A / MOST) / 2.

    Zheng et al. 2025 (arXiv 2509.16117). x+ and x- are the x0-predictions of the implicit networks
    v+- = v_old +- beta (v - v_old), of the `output` of the trained network and of the one that sampled (`old`), both
    [S, ...]; m+- are the mean distances |x+- - x0| without gradient, which weigh all times alike; A are advantages.
    """
    share = (0.5 + 0.5 * groups.advantage / MOST).clamp(0, 1).to(output)
    parts = []
    for side, weight in ((beta, share), (-beta, 1 - share)):
        away = policy.times.clean(groups.x, old + side * (output - old), groups.time) - groups.x0
        scale = away.detach().abs().flatten(1).mean(1).clamp(min=1e-5)
        parts.append(weight * away.square().flatten(1).mean(1) / scale)
    return MOST / beta * (parts[0] + parts[1]).mean()


class Nft(LaggedMethod):
    """Samples are made by the weights that lag behind, and each pass is on the groups of a batch of prompts."""

    settings: NftConfig
    shared_noise = False

    def sample_batch(self, number: int) -> list[Group]:
        with self.lagging.used():
            return super().sample_batch(number)

    def advantage_loss(self, groups: NoisedGroups, output: Tensor) -> tuple[Tensor, dict[str, float]]:
        old = self.lagging_output(groups)
        loss = nft_loss(self.policy, groups, output, old, self.settings.beta)
        return loss, {"moved": float((output - old).detach().square().mean())}
