"""Group preference optimisation: prefer the better samples of a group to the worse ones."""

import torch
from torch import Tensor

from diffscale.train.configs import GroupDpoConfig
from diffscale.train.methods.dpo import dpo_loss
from diffscale.train.methods.grouped import LaggedMethod, NoisedGroups


def pair_numbers(groups: NoisedGroups) -> tuple[Tensor, Tensor]:
    """The numbers of the chosen and of the other sample of each pair, int64 [P] each.

    The best of a group is set against its worst, the second best against the second worst, and so on; a middle one is
    in no pair.
    """
    best, worst = [], []
    for number in groups.group.unique().tolist():
        members = (groups.group == number).nonzero().flatten()
        half = len(members) // 2
        best.append(members[:half])
        worst.append(members.flip(0)[:half])
    return torch.cat(best), torch.cat(worst)


def dgpo_loss(groups: NoisedGroups, errors: Tensor, before: Tensor, beta: float) -> Tensor:
    """sum_i s A_i |v_i - u_i|^2, s = sigmoid(beta sum_i A_i d_i) without gradient, mean over groups.

    DGPO (Luo et al. 2025, arXiv 2510.08425). `errors`, `before`: squared errors [S] of the trained network and of the
    reference, d_i their difference; sums are over the samples of a group, A_i their advantages.
    """
    advantage = groups.advantage.to(errors)
    weight = torch.sigmoid(beta * groups.sums(advantage * (errors.detach() - before)))
    return (weight * groups.sums(advantage * errors)).mean()


def held(errors: Tensor, lagging: Tensor, advantage: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """`errors` [S] without gradient where they changed enough, and where that is, bool [S].

    With exp(-error) for the likelihood of a sample, that is where its ratio to the one under the `lagging` weights is
    above 1 + `clip_range` for a positive advantage, or below 1 - `clip_range` for a negative one: PPO's clipping, as in
    the authors' code of DGPO.
    """
    ratio = (lagging - errors.detach()).exp()
    enough = torch.where(advantage.to(ratio) > 0, ratio > 1 + clip_range, ratio < 1 - clip_range)
    return torch.where(enough, errors.detach(), errors), enough


class GroupDpo(LaggedMethod):
    """Each pass on the groups of a batch of prompts."""

    settings: GroupDpoConfig

    def advantage_loss(self, groups: NoisedGroups, output: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings, policy = self.settings, self.policy
        given = groups.x, groups.time, groups.rows, groups.target
        with policy.reference() if settings.reference == "frozen" else self.lagging.used():
            before = policy.errors(*given)
        errors = policy.distances(output, groups.time, groups.target)
        change = (errors - before).detach()
        logs = {"moved": float(change.abs().mean())}
        if settings.clip_range:
            with self.lagging.used():
                lagging = policy.errors(*given)
            errors, enough = held(errors, lagging, groups.advantage, settings.clip_range)
            logs["clipped"] = float(enough.double().mean())
        if settings.preference == "pairs":
            best, worst = (each.to(errors.device) for each in pair_numbers(groups))
            loss = dpo_loss((errors[best], errors[worst]), (before[best], before[worst]), settings.beta)
            logs["accuracy"] = float((change[best] < change[worst]).double().mean())
        else:
            loss = dgpo_loss(groups, errors, before, settings.beta)
        return loss, logs
