"""`benchmarks/training_memory.py` counts networks as they are published, and what blocks keep as arithmetic has it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from diffusers import SD3Transformer2DModel
from diffusers.training_utils import cast_training_params

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
import training_memory as memory

from diffscale.train import configs
from diffscale.train.base import add_lora


@pytest.mark.parametrize(
    ("name", "numbers"), [("sdxl", 2_567_463_684), ("sd3.5-medium", 2_243_171_520), ("flux.1-dev", 11_901_408_320)]
)
def test_networks_are_of_the_published_sizes(name: str, numbers: int) -> None:
    with torch.device("meta"):
        network = memory.NETWORKS[name][0]()
    assert sum(each.numel() for each in network.parameters()) == numbers


def test_a_transformer_keeps_the_inputs_of_its_blocks_and_its_lora() -> None:
    row = memory.estimate("awm", "sd3.5-medium")
    # Attention of the picture alone in 24 blocks and a second one in 13, four layers each, of width 1536.
    assert row.trained == (24 + 13) * 4 * 2 * 32 * 1536
    tokens = 32 * 32 + 77 + 256
    inputs = 24 * row.rows * tokens * 1536 * 2
    assert row.rows == 24 and len(row.activations.within) == 24
    assert inputs < row.activations.between < 1.1 * inputs
    # Six copies of what is trained, in float32.
    assert row.total == row.weights + 24 * row.trained + row.activations.between + max(row.activations.within)


def test_the_page_has_every_recipe() -> None:
    page = (Path(__file__).parents[2] / "docs" / "sharpening" / "memory.md").read_text(encoding="utf-8")
    names = [f"{method} {name}" for method in configs.METHODS for name in configs.recipes(method)]
    assert [line.split("|")[1].strip() for line in page.splitlines() if line.startswith("| ")] == ["recipe", *names]


def test_what_is_counted_between_blocks_is_what_checkpoints_of_torch_keep() -> None:
    network = SD3Transformer2DModel(
        sample_size=16, num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=16,
        caption_projection_dim=16, pooled_projection_dim=2048, pos_embed_max_size=16, dual_attention_layers=(0,),
    ).bfloat16()  # fmt: skip
    add_lora([network], 2)
    cast_training_params([network], torch.float32)
    call = memory.sd35_call(2, 128) | {"encoder_hidden_states": memory.latents(2, 7, 16)}
    counted = memory.activations(network, call)
    network.enable_gradient_checkpointing()
    kept = memory.Kept(network.parameters())
    with memory.Autocast(), torch.autograd.graph.saved_tensors_hooks(kept.add, lambda tensor: tensor):
        network(timestep=torch.ones(2), **call)
    assert kept.bytes == counted.between
    # Blocks keep all but what is around them, and what is around them is little.
    assert len(counted.within) == 3 and 0 < counted.whole - sum(counted.within) < counted.between
