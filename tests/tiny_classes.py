"""Tiny class-conditional networks with random weights, and their autoencoder."""

import torch
from diffusers import AutoencoderKL, DiTPipeline, DiTTransformer2DModel

from diffscale.models.sit import SiT, SiTConfig


def tiny_vae():
    torch.manual_seed(1)
    return AutoencoderKL(
        sample_size=16, block_out_channels=(4, 4), layers_per_block=1, latent_channels=4, norm_num_groups=1,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
    ).eval()  # fmt: skip


def tiny_sit(**more):
    torch.manual_seed(0)
    net = SiT(SiTConfig(input_size=8, hidden_size=16, depth=2, num_heads=2, num_classes=5, **more))
    for name, weight in net.named_parameters():
        if name != "pos_embed":
            weight.data = torch.randn(weight.shape) * (0.7 / weight[0].numel() ** 0.5)
    return net


def tiny_dit(scheduler):
    torch.manual_seed(0)
    net = DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=2, sample_size=8,
        num_embeds_ada_norm=1000,
    ).eval()  # fmt: skip
    for weight in net.parameters():
        weight.data = torch.randn(weight.shape) * (0.7 / weight[0].numel() ** 0.5)
    return DiTPipeline(net, tiny_vae(), scheduler, {0: "tench, Tinca tinca", 207: "golden retriever"})
