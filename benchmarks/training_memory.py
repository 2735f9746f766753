"""How much GPU memory does each recipe of `diffscale train` take? An estimate on networks without weights.

    python benchmarks/training_memory.py [--output FILE]

Networks of the published sizes are built on torch's meta device, with the LoRA of the recipe, and called as a pass of
the training calls them. Weights are counted one by one. Of activations, what autograd keeps for the way back is
counted by `saved_tensors_hooks`, each storage once, under a copy of CUDA's autocast to bfloat16 and an attention that
keeps queries, keys, values and its output alone, as FlashAttention does. With gradient checkpointing a pass keeps the
inputs of all blocks, and all of one block while it goes back through it: the largest is added.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import real_sizes
import torch
from diffusers import SD3Transformer2DModel
from diffusers.training_utils import cast_training_params
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from diffscale.train import configs
from diffscale.train.base import add_lora

GB = 1e9
HALF, FLOAT = 2, 4
COPIES = 6  # of trained numbers, in float32: weights, gradients, two of AdamW, the weights that lag behind, the average
LOW = {F.linear, F.conv2d, torch.matmul, torch.bmm, torch.baddbmm}
WIDE = {F.layer_norm, F.group_norm, torch.softmax, F.softmax, Tensor.softmax}


def sd35_medium() -> nn.Module:
    """Stable Diffusion 3.5 Medium's transformer: 2.2 billion parameters."""
    return SD3Transformer2DModel(
        sample_size=128, num_layers=24, attention_head_dim=64, num_attention_heads=24, joint_attention_dim=4096,
        caption_projection_dim=1536, pooled_projection_dim=2048, pos_embed_max_size=384, qk_norm="rms_norm",
        dual_attention_layers=tuple(range(13)),
    )  # fmt: skip


def sdxl_call(rows: int, side: int) -> dict[str, Any]:
    return {
        "sample": latents(rows, 4, side // 8, side // 8),
        "encoder_hidden_states": latents(rows, 77, 2048),
        "added_cond_kwargs": {"text_embeds": latents(rows, 1280), "time_ids": latents(rows, 6)},
    }


def sd35_call(rows: int, side: int) -> dict[str, Any]:
    return {
        "hidden_states": latents(rows, 16, side // 8, side // 8),
        "encoder_hidden_states": latents(rows, 77 + 256, 4096),
        "pooled_projections": latents(rows, 2048),
    }


def flux_call(rows: int, side: int) -> dict[str, Any]:
    tokens = (side // 16) ** 2
    return {
        "hidden_states": latents(rows, tokens, 64),
        "encoder_hidden_states": latents(rows, 512, 4096),
        "pooled_projections": latents(rows, 768),
        "guidance": latents(rows),
        "img_ids": latents(tokens, 3),
        "txt_ids": latents(512, 3),
    }


def latents(*shape: int) -> Tensor:
    return torch.empty(shape, dtype=torch.bfloat16)


NETWORKS: dict[str, tuple[Callable[[], Any], Callable[[int, int], dict[str, Any]]]] = {
    "sdxl": (lambda: real_sizes.sdxl(False)[0].unet, sdxl_call),
    "sd3.5-medium": (sd35_medium, sd35_call),
    "flux.1-dev": (lambda: real_sizes.flux(False)[0].transformer, flux_call),
}


class Autocast(TorchFunctionMode):
    """What CUDA's autocast does to types, on any device, and attention that keeps no matrix."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            given = dict(zip(("query", "key", "value"), args, strict=False)) | kwargs
            return Attention.apply(given["query"], given["key"], given["value"])
        if func in LOW or func in WIDE:
            dtype = torch.bfloat16 if func in LOW else torch.float32
            args = [cast(each, dtype) for each in args]
            kwargs = {name: cast(each, dtype) for name, each in kwargs.items()}
        return func(*args, **kwargs)


def cast(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


class Attention(torch.autograd.Function):
    """Shapes of FlashAttention, and what it keeps."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        query, key, value = (each.to(torch.bfloat16) for each in (query, key, value))
        out = torch.empty_like(query)
        ctx.save_for_backward(query, key, value, out, query.new_empty(query.shape[:-1], dtype=torch.float32))
        return out


class Kept:
    """The storages that are kept, each once, but those of `weights`."""

    def __init__(self, weights: Iterable[Tensor] = ()) -> None:
        self._tensors: dict[int, Tensor] = {}  # which also keeps their numbers from being used again
        self._weights = {each.untyped_storage()._cdata for each in weights}

    def add(self, tensor: Tensor) -> Tensor:
        number = tensor.untyped_storage()._cdata
        if number not in self._weights:
            self._tensors[number] = tensor
        return tensor

    @property
    def bytes(self) -> int:
        return sum(each.untyped_storage().nbytes() for each in self._tensors.values())


@dataclass(frozen=True)
class Activations:
    """Bytes that a pass keeps: inputs of blocks and all outside of them, and what is within each block.

    `whole`: what it keeps without gradient checkpointing, which is less than the sum, since no inputs need be kept.
    """

    between: int
    within: list[int]
    whole: int


def activations(network: Any, call: dict[str, Any]) -> Activations:
    """What a pass with `call` keeps for the way back."""
    weights = list(network.parameters())
    between, within = Kept(weights), []

    def block(module: nn.Module, *args: Any) -> Any:
        given = [between.add(each) for each in args if isinstance(each, Tensor)]
        inside = Kept([*weights, *given])
        with torch.autograd.graph.saved_tensors_hooks(inside.add, lambda tensor: tensor):
            found = module(*args)
        within.append(inside.bytes)
        return found

    network.enable_gradient_checkpointing(block)
    _called(network, call, between)
    network.disable_gradient_checkpointing()
    whole = Kept(weights)
    _called(network, call, whole)
    return Activations(between.bytes, within, whole.bytes)


def _called(network: Any, call: dict[str, Any], kept: Kept) -> None:
    """Call the network, and keep what autograd does."""
    with Autocast(), torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        network(timestep=torch.empty(len(next(iter(call.values())))), **call)


@dataclass(frozen=True)
class Row:
    """A recipe's memory, in bytes."""

    name: str
    rows: int
    weights: int
    trained: int
    activations: Activations

    @property
    def total(self) -> float:
        return self.without_activations + self.activations.between + max(self.activations.within)

    @property
    def without_activations(self) -> int:
        return self.weights + COPIES * FLOAT * self.trained

    @property
    def cells(self) -> list[str]:
        kept = self.activations
        sizes = [self.weights, COPIES * FLOAT * self.trained, kept.between, max(kept.within), self.total]
        whole = self.without_activations + kept.whole
        return [
            self.name,
            str(self.rows),
            f"{self.trained / 1e6:.1f}",
            *(f"{each / GB:.1f}" for each in (*sizes, whole)),
        ]


def estimate(method: str, name: str) -> Row:
    """The memory of a recipe, as its settings are."""
    settings = configs.resolve(method, Path(name), {"train_prompts": "prompts.txt", "reward": ["pick_score"]})
    assert isinstance(settings, configs.Grouped) and settings.resolution is not None
    make, call = NETWORKS[name]
    with torch.device("meta"):
        network = make().to(torch.bfloat16)
        frozen = sum(each.numel() for each in network.parameters())
        add_lora([network], settings.rank)
        cast_training_params([network], torch.float32)
        trained = [each for each in network.parameters() if each.requires_grad]
        rows = settings.train_batch_size * settings.learned
        kept = activations(network, call(rows, settings.resolution))
        decoder = sum(each.numel() for each in real_sizes.autoencoder(False, 16, 1.0, None).parameters())
    return Row(f"{method} {name}", rows, HALF * (frozen + decoder), sum(each.numel() for each in trained), kept)


ABOUT = """# What the recipes of `diffscale train` take of a GPU's memory

Estimates in GB (10^9 bytes), made by `python benchmarks/training_memory.py` on networks without weights. Nothing
here was measured on a GPU.

{table}

* **frozen weights**: denoiser and decoder in bfloat16, counted one by one.
* **trained, with copies**: each number of the LoRA in float32 six times: itself, its gradient, two of AdamW, the
  weights that lag behind, and the average of `use_ema`.
* **between blocks**, **largest block**: what a pass over all samples that a prompt is learned from keeps for the
  way back with gradient checkpointing, which is the inputs of all blocks, and all that is within one while it goes
  back through it. Counted by `torch.autograd.graph.saved_tensors_hooks` on torch's meta device, each storage once,
  with the types of CUDA's autocast and an attention that keeps no matrix.
* **together** is the sum of these. **without checkpointing** is the same with all that a pass keeps then.

What is left out: the networks of rewards (PickScore's has a billion numbers: 2 to 4 GB), text encoders, which leave
the GPU once the prompts are encoded (T5 of the two transformers takes 9.5 GB until then), sampling and decoding,
which keep nothing for the way back, gradients on their way through a block, what libraries reserve, and what is
lost between allocations. So plan for a fifth more and some GB. Of several GPUs each takes as much. Less memory: a
smaller `--group_kept`, or `--resolution`.
"""
HEAD = ("recipe", "samples a pass", "trained, millions", "frozen weights", "trained, with copies", "between blocks",
        "largest block", "together", "without checkpointing")  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("docs/sharpening/memory.md"))
    options = parser.parse_args()
    lines = [f"| {' | '.join(HEAD)} |", f"|---{'|---:' * (len(HEAD) - 1)}|"]
    for method in configs.METHODS:
        for name in configs.recipes(method):
            lines.append(f"| {' | '.join(estimate(method, name).cells)} |")
            print(lines[-1], flush=True)
    options.output.write_text(ABOUT.format(table="\n".join(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
