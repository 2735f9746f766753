"""Advantage weighted matching: policy gradient whose likelihood is the denoising loss that models are trained by."""

import torch
from torch import Tensor

from diffscale.train.configs import AwmConfig
from diffscale.train.groups import MOST
from diffscale.train.methods.grouped import LaggedMethod, NoisedGroups


def awm_loss(errors: Tensor, lagging: Tensor, advantage: Tensor, clip_range: float) -> tuple[Tensor, Tensor]:
    """mean of max(-A r, -A clip(r, 1 - c, 1 + c)) with r = exp(error_old - error), and the ratios r [S].

    Xue et al. 2025 (arXiv 2509.25050). `errors`, `lagging`: weighted squared errors [S] of the trained
    network and of the one that sampled; `advantage`: float64 [S]. A `clip_range` of 0 clips nothing.
    """
    weight, ratio = advantage.to(errors), (lagging - errors).exp()
    each = -weight * ratio
    if clip_range:
        each = torch.maximum(each, -weight * ratio.clamp(1 - clip_range, 1 + clip_range))
    return each.mean(), ratio


class Awm(LaggedMethod):
    """Each pass on the groups of a batch of prompts; advantages are from -1 to 1, as in the authors' code."""

    settings: AwmConfig
    shared_noise = False

    def advantage_loss(self, groups: NoisedGroups, output: Tensor) -> tuple[Tensor, dict[str, float]]:
        settings = self.settings
        old = self.lagging_output(groups)
        errors, before = (self.policy.distances(each, groups.time, groups.target) for each in (output, old))
        loss, ratio = awm_loss(errors, before, groups.advantage / MOST, settings.clip_range)
        if settings.lag_kl_beta:
            loss = loss + settings.lag_kl_beta * (output - old).square().mean()
        return loss, {"ratio_std": float(ratio.detach().std(correction=0))}
