"""The methods of training, a file each: the loss as its paper has it, and what a step of the training learns from."""

from typing import Final

from diffscale.train.methods.awm import Awm
from diffscale.train.methods.d3po import D3po
from diffscale.train.methods.ddpo import Ddpo
from diffscale.train.methods.dpo import Dpo
from diffscale.train.methods.group_dpo import GroupDpo
from diffscale.train.methods.iterpo import Iterpo
from diffscale.train.methods.method import Method
from diffscale.train.methods.nft import Nft
from diffscale.train.methods.raft import Raft
from diffscale.train.methods.sft import Sft
from diffscale.train.methods.sharpen import SharpenRlhf, SharpenSft
from diffscale.train.methods.spin import Spin

METHODS: Final[dict[str, type[Method]]] = {
    "sharpen-sft": SharpenSft,
    "sharpen-rlhf": SharpenRlhf,
    "sft": Sft,
    "dpo": Dpo,
    "ddpo": Ddpo,
    "d3po": D3po,
    "iterpo": Iterpo,
    "group-dpo": GroupDpo,
    "nft": Nft,
    "awm": Awm,
    "raft": Raft,
    "spin": Spin,
}
