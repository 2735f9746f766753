"""Standard fine-tuning: the denoising loss on a data set."""

from torch import Tensor

from diffscale.engine import noise
from diffscale.train.methods.method import Method
from diffscale.train.policy import Policy


def sft_loss(policy: Policy, x0: Tensor, rows: Tensor, keys: Tensor) -> tuple[Tensor, dict[str, float]]:
    """E |network(x_t, t, c) - target|^2 over a random time and noise; scalar, and what to log.

    Ho et al. 2020 (arXiv 2006.11239, equation 14), in the model's own prediction type. `x0`: clean latents [B, ...] of
    the data; `rows` int64 [B]: their prompts; all draws are functions of `keys` int64 [B].
    """
    time = policy.times.draw(noise.fold_rows(keys, "time"))
    eps = policy.prior(noise.fold_rows(keys, "noise")).to(x0)
    x = policy.times.noised(x0, eps, time)
    loss = policy.errors(x, time, rows, policy.times.target(x0, eps, time)).mean()
    return loss, {"loss": float(loss.detach())}


class Sft(Method):
    """Each pass on a batch of the data."""

    def gather(self, number: int) -> tuple[Tensor, Tensor]:
        """Latents [B, ...], and keys [B]."""
        return self.context.data.latents(self.context.use_batch(number))[:, 0], self.context.keys(number)

    def loss(self, gathered: tuple[Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        latents, keys = gathered
        return sft_loss(self.policy, latents, self.context.rows, keys)
