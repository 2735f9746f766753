"""shapes-flux: a small Flux transformer trained by flow matching, with its two text encoders, from nothing.

Rectified flow x_t = (1 - t) x_0 + t eps, velocity target eps - x_0 (Esser et al. 2024, section 3), times
logit-normal. The T5 and CLIP text encoders are too small to be of use untrained, so they learn with the transformer.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Final

import torch
from diffusers import AutoencoderKL, FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, T5Config, T5EncoderModel

from diffscale.shapes.captions import write_caption
from diffscale.shapes.scenes import Description
from diffscale.shapes.suite import training_example
from diffscale.shapes.train import autoencoder
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.text import CLIP_TOKENS, MAX_TOKENS, clip_tokenizer, t5_tokenizer

STEPS: Final = 7_200
BATCH: Final = 64
SCENES: Final = 100_000  # encoded once; captions are said anew each time a scene is drawn
DROPOUT: Final = 0.1  # share of captions replaced by the empty one, for classifier-free guidance
TOKENS: Final = 16  # 2x2 packs of the 8x8 latents


class TextToVelocity(nn.Module):
    """The trained part of the pipeline: both text encoders and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokenizer, self.tokenizer_2 = clip_tokenizer(), t5_tokenizer()
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(self.tokenizer),
                hidden_size=128,
                intermediate_size=256,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CLIP_TOKENS,
                bos_token_id=self.tokenizer.bos_token_id,
                eos_token_id=self.tokenizer.eos_token_id,
                pad_token_id=self.tokenizer.pad_token_id,
            )
        )
        self.text_encoder_2 = T5EncoderModel(
            T5Config(
                vocab_size=len(self.tokenizer_2),
                d_model=128,
                d_kv=32,
                d_ff=256,
                num_layers=2,
                num_heads=4,
                relative_attention_num_buckets=16,
                relative_attention_max_distance=24,
                feed_forward_proj="gated-gelu",
                dropout_rate=0.0,
                pad_token_id=self.tokenizer_2.pad_token_id,
                eos_token_id=self.tokenizer_2.eos_token_id,
            )
        )
        self.transformer = FluxTransformer2DModel(
            patch_size=1,
            in_channels=32,
            num_layers=2,
            num_single_layers=5,
            attention_head_dim=64,
            num_attention_heads=3,
            joint_attention_dim=128,
            pooled_projection_dim=128,
            guidance_embeds=True,
            axes_dims_rope=(8, 28, 28),
        )
        self.fast_transformer = torch.compile(self.transformer)
        self.register_buffer("img_ids", FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32))
        self.register_buffer("txt_ids", torch.zeros(MAX_TOKENS, 3))

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions as the pipeline encodes them: T5 states [B, 24, 128] and the CLIP pooled vector [B, 128]."""
        pad = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
        ids_2 = self.tokenizer_2(captions, max_length=MAX_TOKENS, **pad).input_ids
        ids = self.tokenizer(captions, max_length=CLIP_TOKENS, **pad).input_ids
        return self.text_encoder_2(ids_2)[0], self.text_encoder(ids).pooler_output

    def forward(self, x: Tensor, t: Tensor, guidance: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """Velocity [B, 16, 32] at packed latents `x` and times `t` [B] in [0, 1]."""
        net = self.fast_transformer if self.training else self.transformer
        return net(
            hidden_states=x,
            timestep=t,
            guidance=guidance,
            encoder_hidden_states=states,
            pooled_projections=pooled,
            img_ids=self.img_ids,
            txt_ids=self.txt_ids,
            return_dict=False,
        )[0]


def scene(i: int) -> tuple[Description, Tensor]:
    """Training scene number i: its description and its picture [3, 64, 64] in [-1, 1]."""
    description, drawn = training_example(Random(f"shapes-flux scene {i}"))
    return description, autoencoder.render_batch([drawn])[0]


@torch.no_grad()
def encode_scenes(vae: AutoencoderKL, folder: Path, count: int) -> tuple[list[Description], Tensor]:
    """Descriptions and packed latents [count, 16, 32] of the training scenes, latents kept in `folder`."""
    saved = folder / f"latents-{count}.safetensors"
    known = load_file(saved)["latents"] if saved.exists() else None
    descriptions, chunks = [], []
    for start in range(0, count, 64):
        numbers = range(start, min(start + 64, count))
        if known is not None:
            descriptions += [training_example(Random(f"shapes-flux scene {i}"))[0] for i in numbers]
            continue
        pairs = [scene(i) for i in numbers]
        descriptions += [description for description, _ in pairs]
        with torch.autocast("cpu", torch.bfloat16):
            z = vae.encode(torch.stack([picture for _, picture in pairs])).latent_dist.mode().float()
        z = (z - vae.config.shift_factor) * vae.config.scaling_factor
        chunks.append(FluxPipeline._pack_latents(z, len(z), 8, 8, 8))
    if known is None:
        known = torch.cat(chunks)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"latents": known}, saved)
    return descriptions, known


def caption(description: Description, rng: Random) -> str:
    """A training caption: at times with a capital, at times with a full stop, at times empty."""
    if rng.random() < DROPOUT:
        return ""
    text = write_caption(description, rng)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.05 else text


def train(
    descriptions: list[Description], latents: Tensor, folder: Path, steps: int = STEPS, every: int = 500
) -> TextToVelocity:
    """Train on what `encode_scenes` gives, or go on from the checkpoint in `folder`; returns the averaged networks."""
    torch.manual_seed(0)
    net = TextToVelocity()

    def loss(step: int) -> Tensor:
        rng = Random(f"shapes-flux step {step}")
        generator = torch.Generator().manual_seed(step)
        rows = [rng.randrange(len(descriptions)) for _ in range(BATCH)]
        x0 = latents[rows]
        t = torch.randn(BATCH, generator=generator).sigmoid()
        eps = torch.randn(x0.shape, generator=generator)
        x = torch.lerp(x0, eps, t[:, None, None])
        with torch.autocast("cpu", torch.bfloat16):
            states, pooled = net.encode([caption(descriptions[i], rng) for i in rows])
            v = net(x, t, torch.ones(BATCH), states, pooled)
        return (v.float() - (eps - x0)).square().mean()

    return fit(net, loss, folder=folder, steps=steps, lr=1e-3, every=every)  # type: ignore[return-value]


def pipeline(vae: AutoencoderKL, net: TextToVelocity) -> FluxPipeline:
    """The trained networks as the real pipeline."""
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=1.0),
        vae=vae,
        text_encoder=net.text_encoder,
        tokenizer=net.tokenizer,
        text_encoder_2=net.text_encoder_2,
        tokenizer_2=net.tokenizer_2,
        transformer=net.transformer,
    )
