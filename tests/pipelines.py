"""Tiny pipelines of real diffusers classes with random weights, and a verifier."""

import logging
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderKL,
    FluxPipeline,
    FluxTransformer2DModel,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    ZImagePipeline,
    ZImageTransformer2DModel,
)
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

PROMPTS = ["a red circle", "two blue squares", "a star"]
diffusers.utils.logging.set_verbosity(logging.ERROR)


def _vae(channels: int = 4, **more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        sample_size=32,
        block_out_channels=(4,),
        layers_per_block=1,
        latent_channels=channels,
        norm_num_groups=1,
        **more,
    ).eval()


def _unet(**more: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        block_out_channels=(4, 8),
        layers_per_block=1,
        sample_size=8,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        norm_num_groups=2,
        attention_head_dim=2,
        **more,
    ).eval()


def tiny_sd(scheduler: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    pipe = StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=None,
        tokenizer=None,
        unet=_unet(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    args = {
        "prompt_embeds": torch.randn(3, 7, 16),
        "negative_prompt_embeds": torch.randn(3, 7, 16),
        "guidance_scale": 5.0,
        "height": 8,
        "width": 8,
    }
    return SimpleNamespace(pipe=pipe, args=args, net=pipe.unet, forwards=2)


def tiny_sdxl(scheduler: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    unet = _unet(
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 16,
    )
    pipe = StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=scheduler,
        add_watermarker=False,
    )
    args = {
        "prompt_embeds": torch.randn(3, 7, 16),
        "negative_prompt_embeds": torch.randn(3, 7, 16),
        "pooled_prompt_embeds": torch.randn(3, 16),
        "negative_pooled_prompt_embeds": torch.randn(3, 16),
        "guidance_scale": 5.0,
        "height": 8,
        "width": 8,
    }
    return SimpleNamespace(pipe=pipe, args=args, net=unet, forwards=2)


def tiny_flux(scheduler: Any, true_cfg: bool = False, layers: int = 1) -> SimpleNamespace:
    torch.manual_seed(0)
    net = FluxTransformer2DModel(
        patch_size=1,
        in_channels=4,
        num_layers=layers,
        num_single_layers=layers,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    vae = _vae(1, use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    pipe = FluxPipeline(
        scheduler=scheduler,
        vae=vae,
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=net,
    )
    args = {
        "prompt_embeds": torch.randn(3, 5, 32),
        "pooled_prompt_embeds": torch.randn(3, 32),
        "height": 16,
        "width": 16,
    }
    if true_cfg:
        args |= {
            "negative_prompt_embeds": torch.randn(3, 5, 32),
            "negative_pooled_prompt_embeds": torch.randn(3, 32),
            "true_cfg_scale": 2.0,
        }
    return SimpleNamespace(pipe=pipe, args=args, net=net, forwards=1 + true_cfg)


def tiny_flux_true_cfg(scheduler: Any) -> SimpleNamespace:
    return tiny_flux(scheduler, true_cfg=True)


def tiny_pixart(scheduler: Any) -> SimpleNamespace:
    torch.manual_seed(0)
    net = PixArtTransformer2DModel(
        sample_size=8,
        num_layers=1,
        patch_size=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=16,
        in_channels=4,
        cross_attention_dim=16,
        out_channels=8,
        attention_bias=True,
        activation_fn="gelu-approximate",
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        norm_eps=1e-6,
    ).eval()
    pipe = PixArtSigmaPipeline(tokenizer=None, text_encoder=None, vae=_vae(), transformer=net, scheduler=scheduler)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]])
    args = {
        "negative_prompt": None,
        "prompt_embeds": torch.randn(3, 5, 16),
        "prompt_attention_mask": mask,
        "negative_prompt_embeds": torch.randn(3, 5, 16),
        "negative_prompt_attention_mask": torch.ones_like(mask),
        "guidance_scale": 4.5,
        "height": 8,
        "width": 8,
        "use_resolution_binning": False,
    }
    return SimpleNamespace(pipe=pipe, args=args, net=net, forwards=2)


def tiny_zimage(scheduler: Any) -> SimpleNamespace:
    """Its network takes the batch, and its text, as lists with a tensor for each row."""
    torch.manual_seed(0)
    net = ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=16,
        axes_dims=[8, 4, 4],
        axes_lens=[64, 32, 32],
    ).eval()
    vae = _vae(use_quant_conv=False, use_post_quant_conv=False, shift_factor=0.06, scaling_factor=1.5)
    pipe = ZImagePipeline(scheduler=scheduler, vae=vae, text_encoder=None, tokenizer=None, transformer=net)
    texts = {prompt: torch.randn(4, 16) for prompt in [*PROMPTS, ""]}

    def encode_prompt(prompt: str | list[str], **_: Any) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        return [texts[p] for p in prompts], [texts[""] for _ in prompts]

    pipe.encode_prompt = encode_prompt
    return SimpleNamespace(pipe=pipe, args={"height": 32, "width": 32, "guidance_scale": 5.0}, net=net, forwards=2)


def letters(length: int) -> CLIPTokenizer:
    """A tokenizer that reads letters, of texts up to `length` tokens."""
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=length)


def with_text(pipe: Any) -> None:
    """Give a tiny Stable Diffusion pipeline a tiny text encoder that reads letters."""
    pipe.tokenizer = letters(12)
    count = len(pipe.tokenizer)
    config = CLIPTextConfig(
        vocab_size=count,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=12,
        bos_token_id=count - 2,
        eos_token_id=count - 1,
        pad_token_id=count - 1,
    )
    pipe.text_encoder = CLIPTextModel(config).eval()


class Brightness:
    """Scores a picture by its mean red."""

    name = "brightness"

    def __call__(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        assert len(images) == len(prompts)
        assert images.dtype == torch.float32 and images.min() >= 0 and images.max() <= 1
        return images[:, 0].mean((1, 2))
