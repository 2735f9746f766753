"""shapes-sit-s, -b and -l: class-conditional SiTs of three sizes on the autoencoder of shapes-flux.

The linear flow of SiT (Ma et al. 2024, arXiv 2401.08740, section 3): x_t = t x_0 + (1 - t) eps, target x_0 - eps, t
uniform from noise (0) to clean (1). All sizes see the same pictures, noises and times, as the published ones do.
0.3, 1.0 and 3.7 million parameters: each step multiplies them by about 4, as from the published S to B to L.
"""

from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F

from diffscale._util.files import read_config
from diffscale.models.files import save_network
from diffscale.models.sit import SiT, SiTConfig
from diffscale_shapes import MODELS
from diffscale_shapes.scenes import CLASSES, draw_class_scene
from diffscale_shapes.train.autoencoder import encode_once
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.shipped import flux_vae

BATCH: Final = 128
SCENES: Final = 24_000  # 500 a class, encoded once
SIZES: Final = ("s", "b", "l")


def build(size: str) -> SiT:
    """The network of a size, untrained."""
    config = read_config(MODELS / f"shapes-sit-{size}" / "config.json")
    return SiT(SiTConfig(**{name: value for name, value in config.items() if name != "model_type"}))


def train(size: str, checkpoints: Path, folder: Path, steps: int) -> None:
    """A SiT of size s, b or l, in the layout of the published ones."""
    latents = encode_classes(flux_vae(), checkpoints / "sit")
    torch.manual_seed(0)
    net = build(size)
    fast = torch.compile(net)

    def loss(step: Step) -> Tensor:
        rows = torch.randint(len(latents), (BATCH,), generator=step.generator)
        x0, labels = latents[rows], rows % len(CLASSES)
        t = torch.rand(BATCH, generator=step.generator)
        eps = torch.randn(x0.shape, generator=step.generator)
        dropped = torch.rand(BATCH, generator=step.generator) < net.config.class_dropout_prob
        x = t.view(-1, 1, 1, 1) * x0 + (1 - t.view(-1, 1, 1, 1)) * eps
        with autocast():
            guess = fast(x, t, labels.masked_fill(dropped, len(CLASSES)))
        return F.mse_loss(guess.float(), x0 - eps)

    mean = fit(net, loss, f"shapes-sit-{size}", checkpoints / f"sit-{size}", steps, lr=1e-3, muon=True)
    save_network(mean.half(), {"model_type": "sit", **asdict(mean.config)}, folder)


def encode_classes(vae: AutoencoderKL, folder: Path, count: int = SCENES) -> Tensor:
    """Latents [count, 8, 8, 8], kept in `folder`; row i shows class i modulo 48."""
    scenes = [draw_class_scene(i % len(CLASSES), Random(f"shapes-sit scene {i}")) for i in range(count)]
    return encode_once(vae, folder / f"latents-{count}.safetensors", scenes)
