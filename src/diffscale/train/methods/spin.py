"""Self-play fine-tuning: prefer the pictures of a data set to the model's own samples of their prompts."""

from torch import Tensor

from diffscale.train.configs import SpinConfig
from diffscale.train.lagging import LaggingWeights
from diffscale.train.methods.dpo import diffusion_dpo_loss
from diffscale.train.methods.method import LaggingRoundMethod, TrainContext


class Spin(LaggingRoundMethod):
    """Each pass on a batch of pictures, and of samples that the weights at the beginning of its round made.

    SPIN-Diffusion (Yuan et al. 2024, arXiv 2402.10210): a round is an iteration, whose reference are those same
    weights, and where the model's samples are like the data nothing is left to learn. It takes no reward.
    """

    settings: SpinConfig

    def __init__(self, context: TrainContext) -> None:
        super().__init__(context)
        self.lagging = LaggingWeights(context.data.base.trainable, rate=0.0, most=0.0)
        self._told: dict[str, float] = {}

    def gather(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Latents [B, ...] of the data's pictures and of own samples, and keys [B]; a new round samples first."""
        context, settings = self.context, self.settings
        round_, _, place = settings.place_in_round(number)
        self._told = {}
        first = round_ * settings.batches_per_round
        if round_ != self.round:
            self.round = round_
            self.lagging.update(round_)
            self.samples = {}
            for each in range(settings.batches_per_round):
                captions = context.data.batches.batch_of(first + each).captions
                own = context.own_samples(captions, context.keys(first + each, "own"))
                self.samples[f"{each}.own"] = own.cpu()
            processes = context.data.batches.order.processes
            sampled = settings.batches_per_round * settings.train_batch_size * processes
            self._told = {"nfe": float(sampled * context.data.base.own.steps)}
        pictures = context.data.latents(context.use_batch(first + place))[:, 0]
        return pictures, self.samples[f"{place}.own"].to(pictures), context.keys(number)

    def loss(self, gathered: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, dict[str, float]]:
        pictures, own, keys = gathered
        rows, beta = self.context.rows, self.settings.beta
        loss, logs = diffusion_dpo_loss(self.policy, pictures, own, rows, keys, beta, self.lagging.used)
        return loss, logs | self._told
