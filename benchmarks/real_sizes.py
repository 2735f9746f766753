"""How fast do networks of SDXL's and FLUX.1-dev's size run in a search, and what does the driver cost?

    python benchmarks/real_sizes.py [--models sdxl,flux] [--batches 1,2,4,8,16,32] [--steps 4] [--repeats 3]

Random weights of the published sizes in bfloat16 at 1024x1024, text given as random embeddings, for a GPU. For each
batch: forwards per second of the bare denoiser (rows, guidance's included), the share of the card's matrix rate as
measured beside it, and peak memory. At the largest batch that fits: wall time of a random search over bare forwards and
decodes at the same batch (aim: 1.03), and candidates a minute against calling the pipeline a candidate at a time; 95%
bootstrap intervals over repeats. The bare baseline has neither solver steps nor text encoding, nor are the denoiser's
inputs made anew: of these the search does the first and the last, and encodes no text either. `--tiny` checks
the script on a CPU.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.flops import count_flops
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.searches.random import random
from diffscale.verifiers.function import FunctionVerifier

Made = tuple[Any, dict[str, Any]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", default="sdxl,flux")
    parser.add_argument("--batches", default="1,2,4,8,16,32")
    parser.add_argument("--steps", type=int, default=4, help="of a sample; what is measured is per step")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/real_sizes"))
    options = parser.parse_args()
    device = "cpu" if options.tiny else "cuda"
    rate = matrix_rate(device, 512 if options.tiny else 8192)
    print(f"matrix rate {rate / 1e12:.3g} TFLOP/s (bfloat16, measured)", flush=True)
    found: dict[str, Any] = {"matrix_rate": rate}
    for name in options.models.split(","):
        with torch.device(device):
            torch.set_default_dtype(torch.bfloat16)
            pipe, args = {"sdxl": sdxl, "flux": flux}[name](options.tiny)
            torch.set_default_dtype(torch.float32)
        found[name] = measured(pipe, args, rate, [int(b) for b in options.batches.split(",")], options)
        del pipe
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "real_sizes.json").write_text(json.dumps(found, indent=2) + "\n")


def sdxl(tiny: bool) -> Made:
    """Stable Diffusion XL base: 2.6 billion parameters, guidance in two rows."""
    width, depth, cross = (32, (1, 1, 1), 32) if tiny else (320, (1, 2, 10), 2048)
    pooled = 32 if tiny else 1280
    unet = UNet2DConditionModel(
        sample_size=128,
        block_out_channels=(width, 2 * width, 4 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=depth,
        attention_head_dim=(1, 2, 4) if tiny else (5, 10, 20),
        cross_attention_dim=cross,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=6 * 256 + pooled,
    )
    pipe = StableDiffusionXLPipeline(
        vae=autoencoder(tiny, 4, 0.13025, None),
        text_encoder=None,
        text_encoder_2=None,
        tokenizer=None,
        tokenizer_2=None,
        unet=unet,
        scheduler=DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False),
        add_watermarker=False,
    )
    texts = {
        "prompt_embeds": torch.randn(1, 77, cross),
        "negative_prompt_embeds": torch.randn(1, 77, cross),
        "pooled_prompt_embeds": torch.randn(1, pooled),
        "negative_pooled_prompt_embeds": torch.randn(1, pooled),
    }
    return pipe, {**texts, "guidance_scale": 5.0, **size(tiny)}


def flux(tiny: bool) -> Made:
    """FLUX.1-dev: 12 billion parameters, guidance told to the network."""
    small = {"num_layers": 1, "num_single_layers": 1, "num_attention_heads": 1, "joint_attention_dim": 32}
    transformer = FluxTransformer2DModel(guidance_embeds=True, **(small if tiny else {}))
    pipe = FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=autoencoder(tiny, 16, 0.3611, 0.1159),
        text_encoder=None,
        tokenizer=None,
        text_encoder_2=None,
        tokenizer_2=None,
        transformer=transformer,
    )
    texts = {
        "prompt_embeds": torch.randn(1, 512, transformer.config.joint_attention_dim),
        "pooled_prompt_embeds": torch.randn(1, transformer.config.pooled_projection_dim),
    }
    return pipe, {**texts, "guidance_scale": 3.5, **size(tiny)}


def autoencoder(tiny: bool, channels: int, scale: float, shift: float | None) -> AutoencoderKL:
    """The one of both models, but for what latents are."""
    widths = (32, 32, 32, 32) if tiny else (128, 256, 512, 512)
    return AutoencoderKL(
        block_out_channels=widths,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1 if tiny else 2,
        latent_channels=channels,
        sample_size=1024,
        scaling_factor=scale,
        shift_factor=shift,
        force_upcast=False,
    ).eval()


def size(tiny: bool) -> dict[str, int]:
    return {"height": 64, "width": 64} if tiny else {"height": 1024, "width": 1024}


@torch.no_grad()
def measured(
    pipe: Any, args: dict[str, Any], rate: float, batches: list[int], options: argparse.Namespace
) -> dict[str, Any]:
    """The figures of one model; prints them as they come."""
    pipe.set_progress_bar_config(disable=True)
    sampler = DiffusersSampler(pipe, ["random embeddings"], options.steps, args)
    network = getattr(pipe, "unet", None) or pipe.transformer
    rows: list[dict[str, Any]] = []
    for batch in batches:
        try:
            rows.append(forwards(sampler, network, batch, rate, options.repeats))
        except torch.OutOfMemoryError:
            print(f"{type(pipe).__name__}: out of memory at batch {batch}", flush=True)
            break
        print(type(pipe).__name__, rows[-1], flush=True)
    batch = rows[-1]["batch"]
    verifier = FunctionVerifier("brightness", lambda images, prompts: images.float().mean((1, 2, 3)))
    task = Task(partial(random), 0, noise.root(0), batch * sampler.steps)

    def searched() -> None:
        run_searches([task], sampler, verifier, batch_size=batch)

    def bare() -> None:
        given = inputs(sampler, network, batch)
        began = state(sampler, batch)
        start()
        for _ in range(sampler.steps):
            network(*given[0], **given[1])
        pipe.vae.decode(latents(pipe, began.x))

    def alone() -> None:
        for _ in range(2):
            pipe(num_inference_steps=options.steps, output_type="pt", **args)

    began = 0.0

    def start() -> None:
        nonlocal began
        began = clock()

    def seconds(work: Callable[[], None]) -> float:
        start()
        work()
        return clock() - began

    for work in (searched, bare, alone):
        work()  # warm up
    over, faster = [], []
    for _ in range(options.repeats):
        whole = seconds(searched)
        over.append(whole / seconds(bare))
        faster.append((batch / whole) / (2 / seconds(alone)))
    found: dict[str, Any] = {
        "batches": rows,
        "driver_over_bare": interval(over),
        "faster_than_one_at_a_time": interval(faster),
    }
    found["candidates_per_minute"] = 60 * batch / whole
    print(type(pipe).__name__, {name: value for name, value in found.items() if name != "batches"}, flush=True)
    return found


def forwards(sampler: DiffusersSampler, network: Any, batch: int, rate: float, repeats: int) -> dict[str, Any]:
    """Speed, share of the matrix rate and peak memory of the denoiser on `batch` candidates."""
    args, kwargs = inputs(sampler, network, batch)
    with count_flops() as flops:
        network(*args, **kwargs)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = clock()
    for _ in range(repeats):
        network(*args, **kwargs)
    each = (clock() - began) / repeats
    return {
        "batch": batch,
        "forwards_per_second": batch * sampler.forwards_per_nfe / each,
        "share_of_matrix_rate": flops.total / each / rate,
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0,
    }


def inputs(sampler: DiffusersSampler, network: Any, batch: int) -> tuple[Any, Any]:
    """What the pipeline gives its denoiser for `batch` candidates."""
    seen: list[tuple[Any, Any]] = []
    hook = network.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    sampler.predict(state(sampler, batch))
    hook.remove()
    return seen[0]


def state(sampler: DiffusersSampler, batch: int) -> Any:
    return sampler.prior(torch.arange(batch), torch.zeros(batch, dtype=torch.int64))


def latents(pipe: Any, x: Tensor) -> Tensor:
    """Latents as the autoencoder takes them; of Flux unpacked."""
    if x.ndim == 4:
        return x
    side = 16 * round(x.shape[1] ** 0.5)
    return pipe._unpack_latents(x, side, side, pipe.vae_scale_factor)


def matrix_rate(device: str, side: int) -> float:
    """FLOP/s of a bfloat16 product of two square matrices."""
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16)
    a @ a
    began = clock()
    for _ in range(20):
        a @ a
    return 20 * 2 * side**3 / (clock() - began)


def clock() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()
