"""LoRAs of shapes-sdxl: shapes-sdxl-dpo and shapes-sdxl-sharpened.

The first is trained on the choices of raters, as DPO-SDXL was on Pick-a-Pic: Diffusion-DPO (Wallace et al. 2024, arXiv
2311.12908, equation 14) on the pictures that shapes-flux made, chosen by the raters of shapes-pick anew. The second
puts search by shapes-clip into the weights: RLHF Diffusion-Sharpening (Tian et al. 2025, arXiv 2502.12146), with the
settings of B.table1 and a number of steps.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random
from typing import Any, Final

import torch
from diffusers import StableDiffusionXLPipeline
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from diffscale.bench.papers import trainings
from diffscale.bench.papers.recipe import RECIPES
from diffscale.train.methods.dpo import dpo_loss
from diffscale.train.output import read_result
from diffscale_shapes.taste import PICK_RATER
from diffscale_shapes.train.generated import Groups, generate_pictures, stack_pixels
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.noise_prediction import TIME_IDS, noise_schedule
from diffscale_shapes.train.raters import Pair, draw_pairs, each_once
from diffscale_shapes.train.shipped import load_shipped

BATCH: Final = 32  # pairs
BETA: Final = 500.0
RANK: Final = 8
LAYERS: Final = ["to_q", "to_k", "to_v", "to_out.0"]


def train_dpo(checkpoints: Path, folder: Path, steps: int) -> None:
    """A LoRA of shapes-sdxl; the folder loads with load_lora_weights."""
    pipe = load_shipped("shapes-sdxl")
    lora = fit_lora(pipe, generate_pictures(checkpoints / "generated"), checkpoints / "sdxl-dpo", steps)
    pipe.save_lora_weights(folder, unet_lora_layers={name: weight.half() for name, weight in lora.items()})


def fit_lora(pipe: StableDiffusionXLPipeline, groups: Groups, folder: Path, steps: int) -> dict[str, Tensor]:
    """Train on choices, or go on from the checkpoint in `folder`; the LoRA as `save_lora_weights` takes it.

    `pipe`: in float32; its UNet has the LoRA afterwards.
    """
    from peft import LoraConfig, get_peft_model_state_dict  # an extra

    torch.manual_seed(0)
    pairs = draw_pairs(groups, PICK_RATER, Random("shapes-sdxl-dpo choices"))
    train_choices, test_choices = (_encode(pipe, some) for some in pairs)
    pipe.unet.requires_grad_(False).eval().add_adapter(
        LoraConfig(r=RANK, lora_alpha=RANK, init_lora_weights="gaussian", target_modules=LAYERS)
    )

    def loss(step: Step) -> Tensor:
        rows = torch.randint(len(train_choices.latents), (BATCH,), generator=step.generator)
        with autocast():
            errors, before = _errors(pipe.unet, train_choices, rows, step.generator)
        return dpo_loss(errors, before, BETA)

    def evaluate(mean: nn.Module) -> dict[str, float]:
        generator = torch.Generator().manual_seed(0)
        margins = []
        for rows in torch.arange(len(test_choices.latents)).repeat(8).split(64):
            (won, lost), (won_before, lost_before) = _errors(mean, test_choices, rows, generator)
            margins.append((lost - lost_before) - (won - won_before))
        return {"agrees_with_choices": float((torch.cat(margins).view(8, -1).mean(0) > 0).float().mean())}

    fitted = partial(fit, lr=2e-4, warmup=50, average=0.99, every=200, evaluate=evaluate)
    mean = fitted(pipe.unet, loss, "shapes-sdxl-dpo step", folder, steps)
    return get_peft_model_state_dict(mean)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class _Choices:
    """`latents` [choices, 2, C, H, W], the chosen picture first; `caption` [choices]: rows of `states`, `pooled`."""

    latents: Tensor
    caption: Tensor
    states: Tensor
    pooled: Tensor


Errors = tuple[Tensor, Tensor]


def _errors(unet: nn.Module, choices: _Choices, rows: Tensor, generator: torch.Generator) -> tuple[Errors, Errors]:
    """What `dpo_loss` takes of the choices `rows`, at times and with noise from `generator`."""
    schedule = noise_schedule()
    # As in the authors' script, the two pictures of a pair share time and noise.
    t = torch.randint(len(schedule.alphas_cumprod), (len(rows),), generator=generator).repeat(2)
    x0 = choices.latents[rows].transpose(0, 1).flatten(0, 1)  # all chosen, then all others
    eps = torch.randn(x0[: len(rows)].shape, generator=generator).repeat(2, 1, 1, 1)
    x = schedule.add_noise(x0, eps, t)
    captions = choices.caption[rows].repeat(2)
    more = {"text_embeds": choices.pooled[captions], "time_ids": torch.tensor([TIME_IDS]).repeat(len(x), 1)}

    def errors() -> Errors:
        guess = unet(x, t, choices.states[captions], added_cond_kwargs=more, return_dict=False)[0]
        won, lost = (guess.float() - eps).square().flatten(1).mean(1).chunk(2)
        return won, lost

    unet.disable_adapters()  # type: ignore[operator]
    with torch.no_grad():
        before = errors()
    unet.enable_adapters()  # type: ignore[operator]
    return errors(), before


@torch.no_grad()
def _encode(pipe: StableDiffusionXLPipeline, pairs: Sequence[Pair]) -> _Choices:
    row = {prompt: i for i, prompt in enumerate(dict.fromkeys(pair.chosen.prompt for pair in pairs))}
    shown = each_once(pairs)
    place = {one: i for i, one in enumerate(shown)}
    parts = (stack_pixels(shown[i : i + 64]) for i in range(0, len(shown), 64))
    latents = torch.cat([pipe.vae.encode(part).latent_dist.mode() for part in parts])
    latents *= pipe.vae.config.scaling_factor  # as the pipeline decodes: by the scale alone
    states, _, pooled, _ = pipe.encode_prompt(list(row), do_classifier_free_guidance=False)
    both = torch.tensor([[place[pair.chosen], place[pair.other]] for pair in pairs])
    return _Choices(latents[both], torch.tensor([row[pair.chosen.prompt] for pair in pairs]), states, pooled)


def train_sharpened(checkpoints: Path, folder: Path, steps: int) -> dict[str, Any]:
    """A LoRA of shapes-sdxl, trained on captions of the data set `plain`; returns what the run measured."""
    name = "shapes-sdxl-sharpened"
    # So many steps whatever their time, so that each is a function of those before.
    given = {"like": "sharpen-rlhf", "max_train_seconds": None, "max_train_steps": steps}
    settings = trainings.expanded({name: given}, RECIPES, "B", "shapes")[name]
    run = trainings.make(settings, name, checkpoints / "sdxl-sharpened")
    file = "pytorch_lora_weights.safetensors"
    folder.mkdir(parents=True, exist_ok=True)
    save_file({key: t.half() for key, t in load_file(run / file).items()}, folder / file, {"format": "pt"})
    result = read_result(run)
    assert result is not None  # `make` returns what is finished
    return {key: result[key] for key in ("steps", "seconds_per_step", "reward", "peak_memory_bytes", "last")}
