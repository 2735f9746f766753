"""Learning a value model from a tape: what views of unfinished candidates tell of the scores that they end with.

One ridge regression for each look, on differences within a prompt, as candidates of one prompt are what searches rank.
"""

from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

import torch
from scipy.stats import rankdata
from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.searches.looks import Look
from diffscale.tape.tape import Tape
from diffscale.types import Stage
from diffscale.verifiers.valued import ValueModel

_PENALTIES: Final = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, 1e6)  # the last leaves the score alone
_FREE: Final = 1e-4  # the penalty on the score itself, so that without more it is what counts
_FOLDS: Final = 4  # a prompt of so many is kept for validation


@dataclass(frozen=True)
class Learned:
    """A look, and how its scores and its values agree with the end on prompts that were not learned from."""

    look: Look
    plain: float
    valued: float


def stages(tape: Tape) -> list[Stage]:
    """Those of the tape's looks, in the order of its columns."""
    predictions = [Stage.of_prediction(tape.levels[steps - 1]) for steps in tape.predictions]
    return predictions + [Stage.of_draft(kind.steps, tape.steps, kind.via) for kind in tape.drafts]


def is_held_out(prompt: str) -> bool:
    """Whether a prompt is kept for validation: so it is on whatever tape it comes."""
    return blake2b(prompt.encode(), digest_size=8).digest()[0] % _FOLDS == 0


def learn(tape: Tape, verifier: str) -> tuple[ValueModel, list[Learned]]:
    """The value model of a tape with views of `verifier`, and what it is worth on a quarter of the prompts.

    The penalty of each look is the one that agrees best with the end on these prompts, from which the weights that it
    is tried with are not learned; then they are learned from all. Raises DiffscaleError for a tape without views of the
    verifier, without looks, or with too few prompts.
    """
    check_name("verifier of the tape", verifier, tape.scores)
    if verifier not in tape.views:
        raise DiffscaleError(f"The tape has no views of {verifier}: record one with `diffscale tape record --views`.")
    held_out = torch.tensor([is_held_out(prompt) for prompt in tape.prompts])
    if tape.width < 2 or tape.candidates < 2 or not held_out.any() or held_out.all():
        raise DiffscaleError(
            "A value model needs a tape of predictions or drafts of two candidates or more of many prompts, of which "
            f"some are kept for validation: record more than these {len(tape.prompts)} prompts."
        )
    finals, fits, told = tape.finals(verifier), [], []
    looks = [Look(steps, on_the_way=True) for steps in tape.predictions]
    looks += [Look(kind.steps, kind.via) for kind in tape.drafts]
    for column, look in enumerate(looks):
        views = tape.views[verifier][:, :, column].double()
        usable = views.isfinite().all(-1) & finals.isfinite()
        fit = _Regression(views, finals, usable)
        moments = fit.moments(~held_out)
        tried = {penalty: _solved(moments, penalty) for penalty in _PENALTIES}
        agreement = {penalty: fit.agreement(held_out, weights) for penalty, weights in tried.items()}
        best = max(reversed(_PENALTIES), key=agreement.__getitem__)  # the largest of equals
        plain = torch.zeros(views.shape[-1], dtype=torch.float64)
        plain[-1] = 1
        fits.append(fit.whole(best))
        told.append(Learned(look, fit.agreement(held_out, plain), agreement[best]))
    weights, bias = (torch.stack(each).float() for each in zip(*fits, strict=True))
    about = {name: value for name, value in tape.about.items() if name != "prompts"}
    about |= {"prompts": len(tape.prompts), "candidates": tape.candidates, "seed": tape.seed}
    return ValueModel(verifier, stages(tape), weights, bias, about), told


@dataclass(frozen=True)
class _Regression:
    """Of `finals` [P, N] on `views` [P, N, F], within prompts, where `usable` [P, N]."""

    views: Tensor
    finals: Tensor
    usable: Tensor

    def moments(self, prompts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of the chosen `prompts` (bool [P]): the correlations of columns [F, F], their covariances with the end [F]
        and their standard deviations [F]."""
        x, y = (self._centred(each)[self.usable & prompts[:, None]] for each in (self.views, self.finals))
        scale = x.std(0, correction=0).clamp(min=1e-6)
        x, rows = x / scale, max(1, len(x))
        return x.T @ x / rows, x.T @ y / rows, scale

    def whole(self, penalty: float) -> tuple[Tensor, Tensor]:
        """Weights and bias, learned from all prompts."""
        weights = _solved(self.moments(torch.ones(len(self.views), dtype=torch.bool)), penalty)
        return weights, (self.finals[self.usable] - self.views[self.usable] @ weights).mean()

    def agreement(self, prompts: Tensor, weights: Tensor) -> float:
        """The mean over `prompts` of Spearman's rank correlation of values and final scores."""
        found: list[float] = []
        for row in prompts.nonzero().flatten().tolist():
            kept = self.usable[row]
            pair = [self.views[row, kept] @ weights, self.finals[row, kept]]
            ranks = torch.stack([torch.from_numpy(rankdata(each.numpy())) for each in pair])
            if len(ranks[0]) > 1 and (ranks.std(1) > 0).all():
                found.append(float(ranks.corrcoef()[0, 1]))
        return sum(found) / max(1, len(found))

    def _centred(self, values: Tensor) -> Tensor:
        """`values` [P, N, ...] less their means over the usable ones of a prompt."""
        kept = self.usable.view(*self.usable.shape, *[1] * (values.ndim - 2))
        usable = torch.where(kept, values, 0.0)
        return usable - usable.sum(1, keepdim=True) / kept.sum(1, keepdim=True).clamp(min=1)


def _solved(moments: tuple[Tensor, Tensor, Tensor], penalty: float) -> Tensor:
    """The weights [F] of a ridge regression, whose `penalty` is on columns of standard deviation 1."""
    among, with_the_end, scale = moments
    penalties = torch.full_like(scale, penalty)
    penalties[-1] = _FREE
    return torch.linalg.solve(among + penalties.diag(), with_the_end) / scale


def foretold(tape: Tape, model: ValueModel) -> Tensor:
    """The scores of `model.verifier` on the tape, [P, N, C], those of looks in the place of which are values.

    Raises DiffscaleError for a tape without views of the verifier, or with such of another network.
    """
    scores = tape.finals(model.verifier)[..., None]
    views: Any = tape.views.get(model.verifier)
    if views is None or views.shape[-1] != model.weights.shape[1]:
        raise DiffscaleError(
            f"The tape has no views of {model.verifier} that this value model takes: record it with --views."
        )
    each = [model.at(stage) for stage in stages(tape)]
    values = [views[:, :, i].double() @ weights.double() + bias.double() for i, (weights, bias) in enumerate(each)]
    values = [torch.where(value.isfinite(), value, -torch.inf) for value in values]
    return torch.cat([torch.stack(values, -1), scores], -1) if values else scores
