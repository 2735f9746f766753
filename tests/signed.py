"""Tiny pipelines whose pictures are between -1 and 1 with `output_type="pt"`, and between 0 and 1 with "np"."""

from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, Kandinsky3Pipeline, Kandinsky3UNet, UNet2DConditionModel, VQModel
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from pipelines import _unet, letters
from unusual import N, embeds, prx_arguments


def _given(pipe: Any, net: Any, args: dict[str, Any], forwards: int, **more: Any) -> SimpleNamespace:
    return SimpleNamespace(pipe=pipe, net=net, args=args, forwards=forwards, **more)


def deepfloyd(name: str, **more: Any) -> Any:
    """One of DeepFloyd's pipelines, from a picture, a mask or a smaller picture."""

    def tiny(scheduler: Any, guided: bool) -> SimpleNamespace:
        torch.manual_seed(0)
        larger = name.endswith("SuperResolutionPipeline")
        net = _unet(in_channels=3 + 3 * larger, out_channels=6, class_embed_type="timestep" if larger else None)
        parts = {"image_noising_scheduler": DDPMScheduler()} if larger else {}
        rest = dict.fromkeys(["tokenizer", "text_encoder", "safety_checker", "feature_extractor", "watermarker"])
        made = getattr(diffusers, name)
        pipe = made(unet=net, scheduler=scheduler, requires_safety_checker=False, **parts, **rest)
        args = {**embeds(guided), "guidance_scale": 5.0 if guided else 1.0, "image": torch.rand(1, 3, 8, 8) * 2 - 1}
        return _given(pipe, net, args | more, 1 + guided)

    return tiny


def _movq() -> VQModel:
    return VQModel(
        block_out_channels=[32, 32],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        norm_type="spatial",
        num_vq_embeddings=12,
        vq_embed_dim=4,
    ).eval()


def kandinsky(name: str, channels: int = 4, **more: Any) -> Any:
    """One of the first Kandinsky pipelines, which encode their text where nobody can keep it."""

    def tiny(scheduler: Any, guided: bool) -> SimpleNamespace:
        torch.manual_seed(0)
        net = UNet2DConditionModel(
            in_channels=channels,
            out_channels=8,
            addition_embed_type="text_image",
            down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            mid_block_type="UNetMidBlock2DSimpleCrossAttn",
            block_out_channels=(4, 8),
            norm_num_groups=2,
            layers_per_block=1,
            encoder_hid_dim=16,
            encoder_hid_dim_type="text_image_proj",
            cross_attention_dim=16,
            attention_head_dim=2,
            resnet_time_scale_shift="scale_shift",
        ).eval()
        tokenizer = letters(77)
        sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
        config = MCLIPConfig(16, 16, vocab_size=len(tokenizer), **sizes)
        text = {"text_encoder": MultilingualCLIP(config).eval(), "tokenizer": tokenizer}
        pipe = getattr(diffusers, name)(unet=net, scheduler=scheduler, movq=_movq(), **text)
        args = {
            "image_embeds": torch.randn(N, 16),
            "negative_image_embeds": torch.randn(N, 16),
            "guidance_scale": 4.0,
            "height": 64,
            "width": 64,
        }
        return _given(pipe, net, args | more, 2)

    return tiny


def kandinsky3(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = Kandinsky3UNet(
        in_channels=4,
        time_embedding_dim=4,
        groups=2,
        attention_head_dim=4,
        layers_per_block=2,
        block_out_channels=(8, 16),
        cross_attention_dim=4,
        encoder_hid_dim=16,
    ).eval()
    pipe = Kandinsky3Pipeline(None, None, net, scheduler, _movq())
    args = {
        **embeds(guided),
        "attention_mask": torch.ones(N, 5),
        **({"negative_attention_mask": torch.ones(N, 5)} if guided else {}),
        "guidance_scale": 1.5 if guided else 1.0,
        "height": 16,
        "width": 16,
    }
    return _given(pipe, net, args, 1 + guided)


def prx_pixels(scheduler: Any, guided: bool) -> SimpleNamespace:
    torch.manual_seed(0)
    net = PRXTransformer2DModel(
        in_channels=3, patch_size=1, context_in_dim=16, hidden_size=16, num_heads=2, depth=1, axes_dim=[4, 4]
    ).eval()
    pipe = diffusers.PRXPixelPipeline(net, scheduler, None, None, default_sample_size=8)
    return _given(pipe, net, prx_arguments(guided), 1 + guided, alone=guided)
