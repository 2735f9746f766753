"""Tiny pipelines that differ from all others in something: what they compare, batch, or call their embeddings."""

from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    BriaPipeline,
    BriaTransformer2DModel,
    HiDreamImagePipeline,
    HiDreamImageTransformer2DModel,
    PRXPipeline,
)
from diffusers.models.transformers.transformer_prx import PRXTransformer2DModel
from pipelines import _vae

N = 3  # prompts
_FLOW_VAE = {"use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.06, "scaling_factor": 1.5}


def embeds(guided: bool, name: str = "prompt_embeds", *shape: int) -> dict[str, Any]:
    """Embeddings, and negative ones where there is guidance; three numbers of a width of 16 by default."""
    shape = shape or (N, 5, 16)
    return {name: torch.randn(shape), **({f"negative_{name}": torch.randn(shape)} if guided else {})}


def bria(scheduler: Any, guided: bool) -> SimpleNamespace:
    """It compares the exact class of its scheduler."""
    torch.manual_seed(0)
    net = BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=[4, 4, 8],
    ).eval()
    pipe = BriaPipeline(net, scheduler, _vae(**_FLOW_VAE), None, None)
    args = {**embeds(guided), "guidance_scale": 5.0 if guided else 1.0, "height": 16, "width": 16}
    return SimpleNamespace(pipe=pipe, net=net, args=args, forwards=1 + guided)


def hidream(scheduler: Any, guided: bool) -> SimpleNamespace:
    """Its embeddings have names of their own, and one of them the layers of a network before the prompts."""
    torch.manual_seed(0)
    net = HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 8],
        text_emb_dim=16,
        num_routed_experts=2,
        num_activated_experts=1,
        axes_dims_rope=(4, 2, 2),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
        force_inference_output=True,
    ).eval()
    pipe = HiDreamImagePipeline(scheduler, _vae(**_FLOW_VAE), *[None] * 8, transformer=net)
    pipe.default_sample_size = 8
    args = {
        **embeds(guided, "prompt_embeds_t5"),
        **embeds(guided, "prompt_embeds_llama3", 2, N, 5, 8),
        **embeds(guided, "pooled_prompt_embeds", N, 16),
        "guidance_scale": 5.0 if guided else 1.0,
        "height": 8,
        "width": 8,
    }
    layered = {"prompt_embeds_llama3", "negative_prompt_embeds_llama3"}
    return SimpleNamespace(pipe=pipe, net=net, args=args, forwards=1 + guided, layered=layered)


def prx_arguments(guided: bool) -> dict[str, Any]:
    """What PRX and its sibling for pixels are called with."""
    return {
        **embeds(guided),
        "prompt_attention_mask": torch.ones(N, 5, dtype=torch.bool),
        **({"negative_prompt_attention_mask": torch.ones(N, 5, dtype=torch.bool)} if guided else {}),
        "guidance_scale": 5.0 if guided else 1.0,
        "use_resolution_binning": False,
        "height": 8,
        "width": 8,
    }


def prx(scheduler: Any, guided: bool) -> SimpleNamespace:
    """With guidance it tells its network two times, whatever the batch is."""
    torch.manual_seed(0)
    net = PRXTransformer2DModel(
        in_channels=4,
        patch_size=1,
        context_in_dim=16,
        hidden_size=16,
        num_heads=2,
        depth=1,
        axes_dim=[4, 4],
    ).eval()
    pipe = PRXPipeline(net, scheduler, None, None, _vae(**_FLOW_VAE), default_sample_size=8)
    return SimpleNamespace(pipe=pipe, net=net, args=prx_arguments(guided), forwards=1 + guided, alone=guided)
