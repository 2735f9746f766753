"""Self-supervised verifiers and oracle FID, against transformers' own features and the metric itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from pipelines import PROMPTS, tiny_flux
from torch.nn import functional as F
from transformers import (
    BitImageProcessorPil,
    ResNetConfig,
    ResNetForImageClassification,
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
)

from diffscale._util.errors import DiffscaleError
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.frechet import fid
from diffscale.metrics.statistics import Statistics, save_reference
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.searches.random import random
from diffscale.types import ClassLabel, NeedsIntermediateX0, SetVerifier
from diffscale.verifiers import load
from diffscale.verifiers.inception import load_inception


def pictures(n: int, seed: int = 0, side: int = 32) -> torch.Tensor:
    return torch.rand(n, 3, side, side, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("siglip")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    vision = {**sizes, "image_size": 32, "patch_size": 8}
    SiglipModel(SiglipConfig(text_config=sizes, vision_config=vision)).save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("classifier")
    torch.manual_seed(0)
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", num_labels=3)
    ResNetForImageClassification(config).eval().save_pretrained(folder)
    BitImageProcessorPil(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_mean=[0.5] * 3, image_std=[0.5] * 3
    ).save_pretrained(folder)
    return folder


def test_siglip_ssl_is_the_cosine_of_its_pooled_features(siglip: Path) -> None:
    verifier = load(f"siglip_ssl model={siglip}")
    assert isinstance(verifier, NeedsIntermediateX0) and verifier.record_level == 0.4
    images, recorded = pictures(3), pictures(3, 1)
    net = SiglipModel.from_pretrained(siglip).eval()
    with torch.no_grad():
        a, b = (net.get_image_features(pixel_values=x * 2 - 1).pooler_output for x in (images, recorded))
    torch.testing.assert_close(verifier(images, [""] * 3, recorded), F.cosine_similarity(a, b))
    torch.testing.assert_close(verifier(images, [""] * 3, images), torch.ones(3))


def test_a_level_is_an_argument_and_gradients_flow_to_both(siglip: Path) -> None:
    verifier = load(f"siglip_ssl model={siglip} level=0.7")
    assert verifier.record_level == 0.7
    images, recorded = (pictures(1, seed).requires_grad_() for seed in (0, 1))
    verifier(images, [""], recorded).sum().backward()
    assert images.grad.abs().sum() > 0 and recorded.grad.abs().sum() > 0


@pytest.mark.parametrize("steps", [5, 8])
def test_what_a_pipeline_records_on_its_way_is_its_own_prediction(steps: int) -> None:
    tiny = tiny_flux(FlowMatchEulerDiscreteScheduler())
    sampler = DiffusersSampler(tiny.pipe, PROMPTS, steps, tiny.args)
    noted = min(range(steps), key=lambda i: abs(sampler.levels[i] - 0.4))
    seen = []

    class Watching:
        name = "watching"
        record_level = 0.4

        def __call__(self, images: torch.Tensor, prompts: list[str], recorded: torch.Tensor) -> torch.Tensor:
            seen.append(recorded)
            return images.mean((1, 2, 3))

    (result,) = run_searches([Task(random, 1, 7, 3 * steps)], sampler, Watching(), 2)
    assert result.ledger.nfe == 3 * steps and result.ledger.decodes == 6
    apart = DiffusersSampler(tiny.pipe, PROMPTS, steps, tiny.args)
    state = apart.prior(torch.tensor([result.best.key]), torch.tensor([1]))
    wanted = apart.decode(apart.predict(apart.run(state, noted)).x0)
    best = [number for number, image in enumerate(torch.cat(seen)) if torch.allclose(image, wanted[0], atol=1e-4)]
    assert len(best) == 1


def reference(classifier: Path, n: int, file: Path) -> Statistics:
    extractor = load_inception(str(classifier))
    statistics = Statistics.from_features(extractor(pictures(n, 5) ** 2).numpy(), extractor.name)
    save_reference([statistics], file)
    return statistics


@pytest.mark.parametrize("chosen", [0, 1, 4, 30])
def test_oracle_fid_is_minus_the_fid_of_the_chosen_with_the_picture(
    classifier: Path, tmp_path: Path, chosen: int
) -> None:
    """For fewer and for more pictures than the 16 dimensions of the features."""
    statistics = reference(classifier, 40, tmp_path / "reference.safetensors")
    verifier = load(f"oracle_fid model={classifier} reference={tmp_path / 'reference.safetensors'}")
    assert isinstance(verifier, SetVerifier)
    before, candidates = pictures(chosen, 1), pictures(3, 2)
    verifier.begin()
    for image in before:
        verifier.choose(image, "")
    extractor = load_inception(str(classifier))
    scores = verifier(candidates, [""] * 3)
    for score, candidate in zip(scores, candidates, strict=True):
        whole = Statistics.from_features(extractor(torch.cat([before, candidate[None]])).numpy(), extractor.name)
        with pytest.warns(UserWarning) if chosen < 16 else _quiet():
            assert -score.item() == pytest.approx(fid(whole, statistics), rel=1e-6, abs=1e-9)
    verifier.begin()
    torch.testing.assert_close(verifier(candidates, [""] * 3), load_again(classifier, tmp_path)(candidates, [""] * 3))


def load_again(classifier: Path, folder: Path):  # type: ignore[no-untyped-def]
    return load(f"oracle_fid model={classifier} reference={folder / 'reference.safetensors'}")


class _quiet:
    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...


def test_oracle_fid_wants_statistics_of_the_same_network(classifier: Path, tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match="reference=FILE"):
        load(f"oracle_fid model={classifier}")
    extractor = load_inception(str(classifier))
    other = Statistics.from_features(np.random.default_rng(0).random((20, 16), np.float32), "another")
    save_reference([other], tmp_path / "x.safetensors")
    assert extractor.name != "another"
    with pytest.raises(DiffscaleError, match="another"):
        load(f"oracle_fid model={classifier} reference={tmp_path / 'x.safetensors'}")


def test_any_classifier_of_transformers_stands_in_for_inception(classifier: Path) -> None:
    images = pictures(4)
    net = ResNetForImageClassification.from_pretrained(classifier).eval()
    with torch.no_grad():
        logits = net(pixel_values=images * 2 - 1).logits
        pooled = net.resnet(pixel_values=images * 2 - 1).pooler_output.flatten(1)
    found = load_inception(str(classifier))
    torch.testing.assert_close(found(images), pooled)
    torch.testing.assert_close(found.logits(images), logits)
    verifier = load(f"inception model={classifier}")
    labels = [ClassLabel(str(label), label) for label in (2, 0, 1, 2)]
    torch.testing.assert_close(verifier(images, labels), logits.softmax(-1)[range(4), [2, 0, 1, 2]])
