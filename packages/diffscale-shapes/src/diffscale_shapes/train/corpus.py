"""What text-to-image networks are trained on: latents of scenes, captioned anew each time that a scene is drawn."""

from pathlib import Path
from random import Random
from typing import Final, NamedTuple

from diffusers import AutoencoderKL
from torch import Tensor

from diffscale_shapes.captions import write_caption
from diffscale_shapes.prompts import training_example
from diffscale_shapes.scenes import Description, Scene
from diffscale_shapes.train.autoencoder import encode_once

BATCH: Final = 64
SCENES: Final = 100_000  # encoded once; captions are said anew each time a scene is drawn
DROPOUT: Final = 0.1  # share of captions replaced by the empty one, for classifier-free guidance


class Corpus(NamedTuple):
    """Scenes to train on: what they show, and their latents [scenes, ...]."""

    descriptions: list[Description]
    latents: Tensor

    def draw(self, rng: Random) -> tuple[Tensor, list[str]]:
        """Latents and captions of `BATCH` random scenes."""
        rows = [rng.randrange(len(self.descriptions)) for _ in range(BATCH)]
        return self.latents[rows], [draw_caption(self.descriptions[i], rng) for i in rows]


def training_scene(number: int) -> tuple[Description, Scene]:
    """The training scene of that number and its description; always the same."""
    return training_example(Random(f"shapes-flux scene {number}"))


def encode_scenes(vae: AutoencoderKL, folder: Path, count: int = SCENES) -> Corpus:
    """The training scenes, with latents [count, 8, 8, 8] of mean 0 and variance 1 that are kept in `folder`."""
    descriptions, scenes = zip(*map(training_scene, range(count)), strict=True)
    return Corpus(list(descriptions), encode_once(vae, folder / f"scenes-{count}.safetensors", scenes))


def encode_unshifted(vae: AutoencoderKL, folder: Path, count: int = SCENES) -> Corpus:
    """As `encode_scenes`, with the shift of the autoencoder taken back, and out of its configuration.

    The pipelines of the siblings know a scale alone.
    """
    corpus = encode_scenes(vae, folder, count)
    latents = corpus.latents + vae.config.shift_factor * vae.config.scaling_factor
    vae.register_to_config(shift_factor=None)
    return corpus._replace(latents=latents)


def draw_caption(description: Description, rng: Random) -> str:
    """A training caption: at times with a capital, at times with a full stop, at times empty."""
    if rng.random() < DROPOUT:
        return ""
    text = write_caption(description, rng)
    if rng.random() < 0.15:
        text = text[0].upper() + text[1:]
    return text + "." if rng.random() < 0.05 else text
