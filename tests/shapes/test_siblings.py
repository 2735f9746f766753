"""Training of the siblings of shapes-flux."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from random import Random

import pytest
import torch
from diffscale_shapes import MODELS
from diffscale_shapes.captions import write_caption
from diffscale_shapes.judge import judge_images
from diffscale_shapes.prompts import training_example
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import Obj, class_description
from diffscale_shapes.train import loras, sit
from diffscale_shapes.train.corpus import encode_unshifted, training_scene
from diffscale_shapes.train.generated import ShownPicture
from diffscale_shapes.train.noise_prediction import TIME_IDS, SdxlToNoise
from diffscale_shapes.train.shipped import flux_vae, load_shipped
from diffusers import PixArtSigmaPipeline, StableDiffusionXLPipeline
from torch import Tensor


@pytest.fixture(scope="module")
def groups() -> list[list[ShownPicture]]:
    found = []
    for number in range(6):
        rng = Random(f"test of siblings {number}")
        description, scene = training_example(rng)
        pictures = [torch.full((3, 64, 64), shade, dtype=torch.uint8) for shade in (40 * number % 255, 200)]
        seen: list[list[Obj]] = [list(scene), []]
        prompt = write_caption(description, rng)
        found.append([ShownPicture(prompt, description, p, o, 0.5, 0.5) for p, o in zip(pictures, seen, strict=True)])
    return found


def test_dpo_trains_a_lora_that_the_pipeline_loads(
    groups: list[list[ShownPicture]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loras, "BATCH", 4)
    torch.manual_seed(0)
    net = SdxlToNoise()
    pipe = StableDiffusionXLPipeline.from_pretrained(
        MODELS / "shapes-sdxl", unet=net.unet, text_encoder=net.text_encoder, text_encoder_2=net.text_encoder_2
    )
    before = {name: weight.clone() for name, weight in pipe.unet.state_dict().items()}
    lora = loras.fit_lora(pipe, groups, tmp_path, steps=2)
    after = {name.replace(".base_layer", ""): weight for name, weight in pipe.unet.state_dict().items()}
    assert all(torch.equal(after[name], weight) for name, weight in before.items())
    pipe.unet.delete_adapters("default")
    folder = tmp_path / "lora"
    type(pipe).save_lora_weights(folder, unet_lora_layers=lora)

    def outputs() -> Tensor:
        x = torch.randn(1, 8, 8, 8, generator=torch.Generator().manual_seed(1))
        more = {"text_embeds": torch.ones(1, 128), "time_ids": torch.tensor([TIME_IDS])}
        with torch.no_grad():
            return pipe.unet(x, 500, torch.ones(1, 4, 256), added_cond_kwargs=more).sample

    plain = outputs()
    pipe.load_lora_weights(folder)
    assert not torch.equal(outputs(), plain)


def test_siblings_decode_their_latents_to_the_pictures(tmp_path: Path) -> None:
    vae = flux_vae()
    latents = encode_unshifted(vae, tmp_path, 4).latents
    pipe = load_shipped("shapes-pixart")
    assert isinstance(pipe, PixArtSigmaPipeline)
    pipe.register_modules(vae=vae)
    # What the pipeline does after its last step.
    with torch.no_grad():
        decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    pictures = render_batch([training_scene(i)[1] for i in range(4)])
    assert (decoded - pictures).square().mean() < 2e-3
    assert pipe.vae.config.shift_factor is None


def test_rows_of_the_encoded_classes_go_round(tmp_path: Path) -> None:
    vae = flux_vae()
    latents = sit.encode_classes(vae, tmp_path, 50)
    config = vae.config
    with torch.no_grad():
        decoded = vae.decode(latents[[2, 48, 49]] / config.scaling_factor + config.shift_factor).sample

    scores = judge_images((decoded / 2 + 0.5).clamp(0, 1), [class_description(i) for i in (2, 0, 1)])
    assert scores.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(sit.encode_classes(vae, tmp_path, 50), latents)


def test_a_larger_sit_has_about_four_times_the_parameters() -> None:
    counts = [sum(p.numel() for p in sit.build(size).parameters()) for size in sit.SIZES]
    assert all(2.5 < b / a < 4.5 for a, b in pairwise(counts))
