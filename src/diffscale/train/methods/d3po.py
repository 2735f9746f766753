"""D3PO: DPO over the steps of denoising, on pairs of samples from the same noise."""

from torch import Tensor
from torch.nn import functional as F

from diffscale.train.configs import D3poConfig
from diffscale.train.methods.on_policy import GatheredMoves, Moves, OnPolicyMethod, log_prob, rollout
from diffscale.train.policy import Policy

CLIP = 0.1


def preferences(first: Tensor, second: Tensor) -> Tensor:
    """+1 where the first sample has the higher reward, -1 where the second has, 0 where they are equal: [B]."""
    return (first - second).sign()


def d3po_loss(
    policy: Policy, first: Moves, second: Moves, preferred: Tensor, beta: float, clip: float = CLIP
) -> tuple[Tensor, dict[str, float]]:
    """-log sigmoid(beta p (log r_1 - log r_2)) at each step, r against the reference, clipped; scalar, what to log.

    D3PO (Yang et al. 2024, arXiv 2311.13231), as its authors' code has it. `first`, `second`: S moves each
    at the same times, of two rollouts of the same prompts and starting noise; `preferred`: p, [S], of `preferences` by
    their samples. r is clipped to 1 - clip ... 1 + clip, and has no gradient beyond.
    """
    won = []
    for moves in (first, second):
        now = log_prob(policy, moves)
        with policy.reference():
            before = log_prob(policy, moves)
        won.append((now - before).exp().clamp(1 - clip, 1 + clip).log())
    inside = beta * preferred.to(won[0]) * (won[0] - won[1])
    loss = -F.logsigmoid(inside).mean()
    return loss, {"loss": float(loss.detach()), "accuracy": float((inside > 0).double().mean())}


class D3po(OnPolicyMethod):
    """Pairs of samples from the same noise; the reward says which is preferred."""

    settings: D3poConfig

    def sample_batch(self, number: int) -> dict[str, Tensor]:
        """Two rollouts of batch `number`, and the rewards [B] of each."""
        batch, samples = self.context.use_batch(number), dict[str, Tensor]()
        start = self.context.keys(number, "start")
        for name in ("first", "second"):
            x0, moves = rollout(self.policy, self.context.rows, self.context.keys(number, name), start)
            samples |= self.by_sample(moves, f"{name}.")
            samples[f"{name}.reward"] = self.context.reward_scores(x0, batch.captions)
        return samples

    def compare(self, samples: dict[str, Tensor], captions: list[str]) -> dict[str, Tensor]:
        """Preferences."""
        return {"preferred": preferences(samples["first.reward"], samples["second.reward"])}

    def loss(self, gathered: GatheredMoves) -> tuple[Tensor, dict[str, float]]:
        first, second = self.moves_of(gathered, "first."), self.moves_of(gathered, "second.")
        loss, logs = d3po_loss(self.policy, first, second, gathered.samples["preferred"], self.settings.beta)
        return loss, {**logs, **self.reward_logs(gathered, "first.reward", "second.reward")}
