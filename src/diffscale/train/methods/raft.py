"""Best-of-N distillation: fine-tuning on the best samples of the model's own (RAFT, Dong et al. 2023)."""

from torch import Tensor

from diffscale.train.configs import RaftConfig
from diffscale.train.methods.grouped import GroupMethod, NoisedGroups


class Raft(GroupMethod):
    """The denoising loss on the best of each group; see arXiv 2304.06767."""

    settings: RaftConfig
    shared_noise = False

    def group_loss(self, groups: NoisedGroups) -> tuple[Tensor, dict[str, float]]:
        return self.policy.errors(groups.x, groups.time, groups.rows, groups.target).mean(), {}
