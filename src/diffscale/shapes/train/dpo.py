"""shapes-sdxl-dpo: a LoRA of shapes-sdxl trained on the choices of raters, as DPO-SDXL was on Pick-a-Pic.

Diffusion-DPO (Wallace et al. 2024, arXiv 2311.12908, equation 14) on the pictures that shapes-flux made, chosen by the
raters of shapes-pick anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionXLPipeline
from peft import LoraConfig, get_peft_model_state_dict
from torch import Tensor, nn

from diffscale.shapes.taste import PICK_RATER
from diffscale.shapes.train.denoising import SCHEDULE
from diffscale.shapes.train.generated import ShownPicture
from diffscale.shapes.train.loop import fit
from diffscale.shapes.train.preferences import Pair, draw_pairs
from diffscale.shapes.train.sdxl import TIME_IDS
from diffscale.train.methods.dpo import dpo_loss

STEPS: Final = 400
BATCH: Final = 32  # pairs
BETA: Final = 500.0
RANK: Final = 8
LAYERS: Final = ["to_q", "to_k", "to_v", "to_out.0"]


def train(
    pipe: StableDiffusionXLPipeline, groups: Sequence[Sequence[ShownPicture]], folder: Path, steps: int = STEPS
) -> dict[str, Tensor]:
    """Train on choices, or go on from the checkpoint in `folder`; the LoRA as `save_lora_weights` takes it.

    `pipe`: in float32; its UNet has the LoRA afterwards.
    """
    torch.manual_seed(0)
    told, held = (_encode(pipe, some) for some in draw_pairs(groups, PICK_RATER, Random("shapes-sdxl-dpo choices")))
    pipe.unet.requires_grad_(False).eval().add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=LAYERS)
    )
    net = _Adapter(pipe.unet)

    def loss(step: int) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        rows = torch.randint(len(told.latents), (BATCH,), generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            errors, before = net.errors(told, rows, generator)
        return dpo_loss(errors, before, BETA)

    @torch.no_grad()
    def evaluate(mean: nn.Module, step: int) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        rows = torch.arange(len(held.latents)).repeat(8)
        assert isinstance(mean, _Adapter)
        both = [mean.errors(held, some, generator) for some in rows.split(64)]
        (won, lost), (won_before, lost_before) = (
            [torch.cat(each) for each in zip(*errors, strict=True)] for errors in zip(*both, strict=True)
        )
        margins = ((lost - lost_before) - (won - won_before)).view(8, -1).mean(0)
        return {"agrees_with_choices": float((margins > 0).float().mean())}

    trained = fit(net, loss, folder=folder, steps=steps, lr=2e-4, warmup=50, average=0.99, every=200, evaluate=evaluate)
    return get_peft_model_state_dict(trained.unet)  # type: ignore[arg-type]


@dataclass(frozen=True)
class _Choices:
    """`latents` [choices, 2, C, H, W], the chosen picture first; `caption` [choices]: rows of `states`, `pooled`."""

    latents: Tensor
    caption: Tensor
    states: Tensor
    pooled: Tensor


class _Adapter(nn.Module):
    """A UNet told text and size as its pipeline does."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet
        self.kept = DDIMScheduler(**SCHEDULE).alphas_cumprod

    def forward(self, x: Tensor, t: Tensor, states: Tensor, pooled: Tensor) -> Tensor:
        sizes = torch.tensor([TIME_IDS]).repeat(len(x), 1)
        more = {"text_embeds": pooled, "time_ids": sizes}
        return self.unet(x, t, encoder_hidden_states=states, added_cond_kwargs=more, return_dict=False)[0]

    def errors(
        self, choices: _Choices, rows: Tensor, generator: torch.Generator
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """What `dpo_loss` takes of the choices `rows`, at times and with noise from `generator`."""
        t = torch.randint(len(self.kept), (len(rows),), generator=generator)
        signal = self.kept[t].view(-1, 1, 1, 1)
        x0 = choices.latents[rows].transpose(0, 1)  # [2, B, C, H, W]
        # As in the authors' script, the two pictures of a pair share time and noise.
        eps = torch.randn(x0.shape[1:], generator=generator)
        x = (signal.sqrt() * x0 + (1 - signal).sqrt() * eps).flatten(0, 1)
        told = choices.caption[rows].repeat(2)

        def apart() -> tuple[Tensor, Tensor]:
            guess = self(x, t.repeat(2), choices.states[told], choices.pooled[told])
            won, lost = (guess.float() - eps.repeat(2, 1, 1, 1)).square().flatten(1).mean(1).chunk(2)
            return won, lost

        self.unet.disable_adapters()  # type: ignore[operator]
        with torch.no_grad():
            before = apart()
        self.unet.enable_adapters()  # type: ignore[operator]
        return apart(), before


@torch.no_grad()
def _encode(pipe: StableDiffusionXLPipeline, told: Sequence[Pair]) -> _Choices:
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.chosen.prompt for pair in told))}
    # They hold the two pictures of every choice, and a picture is in several choices.
    shown = list({id(one): one for pair in told for one in (pair.chosen, pair.other)}.values())
    place = {id(one): i for i, one in enumerate(shown)}
    latents = torch.cat([_latents(pipe.vae, shown[i : i + 64]) for i in range(0, len(shown), 64)])
    states, _, pooled, _ = pipe.encode_prompt(list(row), do_classifier_free_guidance=False)
    of = torch.tensor([[place[id(pair.chosen)], place[id(pair.other)]] for pair in told])
    return _Choices(latents[of], torch.tensor([row[pair.chosen.prompt] for pair in told]), states, pooled)


def _latents(vae: AutoencoderKL, shown: Sequence[ShownPicture]) -> Tensor:
    # As the pipeline decodes: by the scale alone.
    return vae.encode(torch.stack([one.pixels() for one in shown])).latent_dist.mode() * vae.config.scaling_factor
