"""shapes-flux: a small Flux transformer trained by flow matching, with its two text encoders, from nothing.

Rectified flow x_t = (1 - t) x_0 + t eps, velocity target eps - x_0 (Esser et al. 2024, section 3), times
logit-normal. The T5 and CLIP text encoders are too small to be of use untrained, so they learn with the transformer.

Then guidance is distilled: one row through the network for what classifier-free guidance takes two for. The student is
told the guidance scale g by its guidance embedding and learns the teacher's guided velocity
v_uncond + g (v_cond - v_uncond) (Meng et al. 2023, section 3.1), as FLUX.1-dev was made. The text encoders stay.
"""

from pathlib import Path
from typing import Final

import torch
from diffusers import FluxPipeline, FluxTransformer2DModel
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextModel, T5EncoderModel

from diffscale_shapes.train import autoencoder
from diffscale_shapes.train.corpus import BATCH, Corpus, encode_scenes
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.shipped import save_parts, untrained
from diffscale_shapes.train.text import MAX_TOKENS, clip_tokenizer, t5_tokenizer, tokenize

DISTILLATION_STEPS: Final = 1_000
SCALES: Final = (1.0, 4.0)  # guidance scales of the distillation are drawn uniformly from here


class TextToVelocity(nn.Module):
    """The trained part of the pipeline: both text encoders and the transformer."""

    def __init__(self) -> None:
        super().__init__()
        self.text_encoder = untrained(CLIPTextModel, "shapes-flux/text_encoder")
        self.text_encoder_2 = untrained(T5EncoderModel, "shapes-flux/text_encoder_2")
        self.transformer = untrained(FluxTransformer2DModel, "shapes-flux/transformer")
        self.fast_transformer = torch.compile(self.transformer)
        self.register_buffer("img_ids", FluxPipeline._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32))
        self.register_buffer("txt_ids", torch.zeros(MAX_TOKENS, 3))

    def encode(self, captions: list[str]) -> tuple[Tensor, Tensor]:
        """Captions as the pipeline encodes them: T5 states [B, 24, 128] and the CLIP pooled vector [B, 128]."""
        states = self.text_encoder_2(tokenize(t5_tokenizer(), captions).input_ids)[0]
        return states, self.text_encoder(tokenize(clip_tokenizer(), captions).input_ids).pooler_output

    def forward(self, x: Tensor, t: Tensor, guidance: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        """Velocity [B, 16, 32] at packed latents `x` and times `t` [B] in [0, 1]."""
        net = self.fast_transformer if self.training else self.transformer
        return net(x, states, pooled, t, self.img_ids, self.txt_ids, guidance, return_dict=False)[0]


def train(checkpoints: Path, folder: Path, steps: int) -> None:
    """Autoencoder, then transformer and text encoders, then guidance distillation, then the decoder once more."""
    vae = autoencoder.train(checkpoints / "autoencoder")
    corpus = pack(encode_scenes(vae, checkpoints / "flux"))
    net = distil(fit_velocity(corpus, checkpoints / "flux", steps), corpus, checkpoints / "flux-distilled")
    autoencoder.polish(vae, checkpoints / "decoder")
    full: dict[str, nn.Module] = {"text_encoder": net.text_encoder, "text_encoder_2": net.text_encoder_2}
    save_parts(folder, {"vae": vae, "transformer": net.transformer}, full)


def pack(corpus: Corpus) -> Corpus:
    """The corpus with latents [scenes, 16, 32], as the transformer takes them: 2x2 of the 8x8 in one token."""
    return corpus._replace(latents=FluxPipeline._pack_latents(corpus.latents, len(corpus.latents), 8, 8, 8))


def fit_velocity(corpus: Corpus, folder: Path, steps: int) -> TextToVelocity:
    """Train on packed latents, or go on from the checkpoint in `folder`; returns the averaged networks."""
    torch.manual_seed(0)
    net = TextToVelocity()

    def loss(step: Step) -> Tensor:
        x0, captions = corpus.draw(step.rng)
        t = torch.randn(BATCH, generator=step.generator).sigmoid()
        eps = torch.randn(x0.shape, generator=step.generator)
        with autocast():
            v = net(torch.lerp(x0, eps, t[:, None, None]), t, torch.ones(BATCH), *net.encode(captions))
        return (v.float() - (eps - x0)).square().mean()

    return fit(net, loss, "shapes-flux step", folder, steps, lr=1e-3)


def distil(teacher: TextToVelocity, corpus: Corpus, folder: Path, steps: int = DISTILLATION_STEPS) -> TextToVelocity:
    """Train the transformer of a copy of `teacher`, or go on from the checkpoint in `folder`; returns that copy."""
    student = TextToVelocity()
    student.load_state_dict(teacher.state_dict())
    teacher.requires_grad_(False).train()  # the compiled path; neither has dropout

    def loss(step: Step) -> Tensor:
        x0, captions = corpus.draw(step.rng)
        t = torch.rand(BATCH, generator=step.generator)
        x = torch.lerp(x0, torch.randn(x0.shape, generator=step.generator), t[:, None, None])
        g = torch.empty(BATCH).uniform_(*SCALES, generator=step.generator)
        with autocast():
            target, states, pooled = guided(teacher, x, t, g, captions)
            v = student(x, t, g, states, pooled)
        return F.mse_loss(v.float(), target)

    seed = "shapes-flux distillation"
    student.transformer = fit(student.transformer, loss, seed, folder, steps, lr=3e-4, muon=True, warmup=100)
    return student


@torch.no_grad()
def guided(net: TextToVelocity, x: Tensor, t: Tensor, g: Tensor, captions: list[str]) -> tuple[Tensor, Tensor, Tensor]:
    """The guided velocity [B, 16, 32] at `x`, `t` [B] and scales `g` [B], and what the captions are encoded as."""
    rows = len(captions)
    states, pooled = net.encode(captions + [""] * rows)
    both = net(x.repeat(2, 1, 1), t.repeat(2), torch.ones(2 * rows), states, pooled).float()
    with_caption, without = both.chunk(2)
    return torch.lerp(without, with_caption, g[:, None, None]), states[:rows], pooled[:rows]
