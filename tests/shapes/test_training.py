"""The training loop resumes where it was killed, and never loses a checkpoint."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from random import Random

import pytest
import torch
from diffscale_shapes import MODELS
from diffscale_shapes.captions import WORDS
from diffscale_shapes.scenes import COLOURS, RADIUS, SHAPES, SIZES, TEXTURES, draw_crowded_scene
from diffscale_shapes.train import autoencoder, blip, corpus, flux, inception, raters, recipes, seeing
from diffscale_shapes.train.autoencoder import polish
from diffscale_shapes.train.corpus import Corpus, encode_scenes, training_scene
from diffscale_shapes.train.flux import TextToVelocity, distil, guided, pack
from diffscale_shapes.train.loop import Step, autocast, fit
from diffscale_shapes.train.seeing import patch_labels
from diffscale_shapes.train.shipped import untrained as from_config
from diffscale_shapes.train.text import clip_tokenizer, t5_tokenizer
from diffusers import AutoencoderKL
from torch import Tensor, nn

from diffscale._util import hardware
from diffscale._util.errors import DiffscaleError
from diffscale.verifiers.inception import load_inception


def _train(
    folder: Path, steps: int, stop: int | None = None, poison: int | None = None, muon: bool = False
) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Linear(3, 1)

    def loss(step: Step) -> Tensor:
        if step.number == stop:
            raise KeyboardInterrupt
        x = torch.randn(8, 3, generator=step.generator) + step.rng.random()
        return (net(x) - x.sum(1, keepdim=True)).square().mean() * (torch.nan if step.number == poison else 1)

    return fit(net, loss, "test", folder, steps, lr=0.05, muon=muon, warmup=5, every=10)


@pytest.mark.parametrize("muon", [False, True])
def test_a_killed_training_ends_with_the_same_weights(tmp_path: Path, muon: bool) -> None:
    whole = _train(tmp_path / "whole", 40, muon=muon)
    with pytest.raises(KeyboardInterrupt):
        _train(tmp_path / "killed", 40, stop=25, muon=muon)
    resumed = _train(tmp_path / "killed", 40, muon=muon)
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=0, rtol=0)


def test_a_loss_that_is_not_finite_stops_and_names_the_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match=r"step 15.*checkpoint\.pt"):
        _train(tmp_path / "late", 40, poison=15)
    assert torch.load(tmp_path / "late" / "checkpoint.pt", weights_only=True)["step"] == 10
    with pytest.raises(DiffscaleError, match=r"there is no checkpoint yet: lower"):
        _train(tmp_path / "early", 40, poison=5)


@pytest.mark.parametrize("every", [1, 10])
def test_weights_that_are_not_finite_are_no_checkpoint_and_no_network(tmp_path: Path, every: int) -> None:
    net = nn.Linear(3, 1)
    with pytest.raises(DiffscaleError, match=r"weights are not finite after step 0.*there is no checkpoint yet"):
        fit(net, lambda step: net(torch.ones(2, 3)).mean(), "test", tmp_path, 1, lr=1e300, warmup=1, every=every)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("content", [b"torn", {"step": 10, "net": {}}, {"weights": {}}])
def test_a_checkpoint_of_another_training_is_told_in_a_sentence(tmp_path: Path, content: object) -> None:
    saved = tmp_path / "checkpoint.pt"
    if isinstance(content, bytes):
        saved.write_bytes(content)
    else:
        torch.save(content, saved)
    with pytest.raises(DiffscaleError, match=r"checkpoint\.pt is no checkpoint of this training .*remove"):
        _train(tmp_path, 20)


def test_every_word_is_one_token() -> None:
    for tokenizer in (clip_tokenizer(), t5_tokenizer()):
        assert [word for word in WORDS if len(tokenizer.tokenize(word)) != 1] == []


def test_scenes_are_encoded_once_and_alike(tmp_path: Path) -> None:
    vae = from_config(AutoencoderKL, "shapes-flux/vae").eval()
    first, latents = encode_scenes(vae, tmp_path, 6)
    again, kept = encode_scenes(vae, tmp_path, 6)
    assert first == again
    assert first[3] == training_scene(3)[0]
    torch.testing.assert_close(latents, kept, atol=0, rtol=0)
    assert latents.shape == (6, 8, 8, 8)
    assert pack(Corpus(first, latents)).latents.shape == (6, 16, 32)


@pytest.fixture
def untrained() -> TextToVelocity:
    torch.manual_seed(0)
    net = TextToVelocity().eval()
    nn.init.normal_(net.transformer.proj_out.weight)
    nn.init.normal_(net.transformer.norm_out.linear.weight, std=0.1)
    return net


def test_the_velocity_depends_on_the_caption(untrained: TextToVelocity) -> None:
    net = untrained
    states, pooled = net.encode(["a red circle", "two stars left of a square"])
    x = torch.randn(1, 16, 32).expand(2, -1, -1)
    v = net(x, torch.tensor([0.5, 0.5]), torch.ones(2), states, pooled)
    assert v.shape == (2, 16, 32)
    assert not torch.allclose(v[0], v[1])


def test_the_student_is_shown_classifier_free_guidance(untrained: TextToVelocity) -> None:
    x, t, captions = torch.randn(3, 16, 32), torch.full((3,), 0.3), ["a red circle", "a star", "three blue squares"]

    def alone(texts: list[str]) -> Tensor:
        return untrained(x, t, torch.ones(3), *untrained.encode(texts))

    target, states, _ = guided(untrained, x, t, torch.tensor([0.0, 1.0, 3.0]), captions)
    with_caption, without = alone(captions), alone([""] * 3)
    torch.testing.assert_close(target[0], without[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target[1], with_caption[1], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(target[2], without[2] + 3 * (with_caption[2] - without[2]), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(states, untrained.encode(captions)[0], atol=1e-4, rtol=1e-4)


def test_patches_are_labelled_by_the_object_whose_box_holds_their_centre() -> None:
    scene = draw_crowded_scene(Random(3))
    labels = patch_labels([scene])[0].view(4, 8, 8)
    for row, column in product(range(8), range(8)):
        x, y = 8 * column + 3.5, 8 * row + 3.5
        there = [o for o in scene if abs(o.x - x) <= RADIUS[o.size] and abs(o.y - y) <= RADIUS[o.size]]
        assert [int(v) for v in labels[:, row, column]] == (
            [COLOURS.index(there[0].colour) + 1, SHAPES.index(there[0].shape) + 1,
             TEXTURES.index(there[0].texture) + 1, SIZES.index(there[0].size) + 1] if there else [0] * 4
        )  # fmt: skip


def test_polishing_trains_the_decoder_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autoencoder, "BATCH", 2)
    vae = from_config(AutoencoderKL, "shapes-flux/vae").requires_grad_(False)
    encoder, decoder = ({k: v.clone() for k, v in part.state_dict().items()} for part in (vae.encoder, vae.decoder))
    polish(vae, tmp_path, steps=2)
    assert all(torch.equal(v, encoder[k]) for k, v in vae.encoder.state_dict().items())
    assert not all(torch.equal(v, decoder[k]) for k, v in vae.decoder.state_dict().items())


def test_distilling_trains_the_transformer_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (corpus, flux):
        monkeypatch.setattr(module, "BATCH", 4)
    torch.manual_seed(0)
    teacher = TextToVelocity()
    before = {k: v.clone() for k, v in teacher.state_dict().items()}
    seen = Corpus([training_scene(i)[0] for i in range(2)], torch.randn(2, 16, 32))
    with torch.compiler.set_stance("force_eager"):
        student = distil(teacher, seen, tmp_path, steps=2)
    assert all(torch.equal(v, before[k]) for k, v in teacher.state_dict().items())
    changed = {k for k, v in student.state_dict().items() if not torch.equal(v, before[k])}
    assert changed and all(name.startswith(("transformer.", "fast_transformer.")) for name in changed)


@pytest.mark.parametrize("network", ["reward", "grader"])
@pytest.mark.parametrize("given", [7, None])
def test_steps_are_those_of_the_network_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, network: str, given: int | None
) -> None:
    """The BLIP that both start from is trained in full: a short one would be taken for done by the other."""
    asked: dict[str, int] = {}

    class Enough(Exception):
        pass

    def fitted(net: nn.Module, loss: object, seed: str, folder: Path, steps: int, **more: object) -> nn.Module:
        asked[folder.name] = steps
        if folder.name == network:
            raise Enough
        return net

    for module in (seeing, raters):
        monkeypatch.setattr(module, "fit", fitted)
    monkeypatch.setattr(raters, "generate_pictures", lambda folder: [])
    with pytest.raises(Enough):
        recipes.train(network, tmp_path, tmp_path / "out", given)
    assert asked == {"vision": blip.VISION_STEPS, "blip": blip.STEPS, network: given or recipes.RECIPES[network].steps}


@pytest.mark.parametrize(("fast", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_networks_are_trained_in_bfloat16_where_it_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fast: bool, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(hardware, "fast_bfloat16", lambda: fast)
    net = nn.Linear(3, 1)
    seen = []

    def loss(step: Step) -> Tensor:
        with autocast():
            y = net(torch.randn(8, 3, generator=step.generator))
        seen.append(y.dtype)
        return y.float().square().mean()

    fit(net, loss, "test", tmp_path, 2, lr=0.01)
    assert seen == [dtype, dtype]


def test_a_recipe_writes_a_whole_folder_of_the_shipped_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "REFERENCE", 250)
    folder, shipped = tmp_path / "out", MODELS / "shapes-inception"
    recipes.train("inception", tmp_path, folder, 1)
    assert {path.name for path in folder.iterdir()} == {path.name for path in shipped.iterdir()}
    for name in ("config.json", "preprocessor_config.json", "diffscale.json"):
        made, wanted = (json.loads((place / name).read_text()) for place in (folder, shipped))
        assert {**made, "transformers_version": ""} == {**wanted, "transformers_version": ""}
    figures = json.loads((folder / "figures.json").read_text())
    assert figures["inception"]["step"] == 1 and "accuracy" in figures["inception"]
    assert load_inception(str(folder))(torch.rand(2, 3, 64, 64)).shape[0] == 2


def test_every_shipped_network_has_a_recipe() -> None:
    assert {f"shapes-{name}" for name in recipes.RECIPES} == {path.name for path in MODELS.iterdir()}
