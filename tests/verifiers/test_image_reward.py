"""ImageReward without its weights: the published layout, and its outputs against BLIP in plain functions."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from blip_reference import bert, bert_layout, linear, pair, vit, vit_layout
from tools import Counting, Layout, bert_tokenizer, pickled, random_state, shapes

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import save_network
from diffscale.verifiers import load
from diffscale.verifiers.image_reward import PUBLISHED, ImageReward, ImageRewardNet, image_reward, translate
from diffscale.verifiers.preprocess import CLIP_MEAN, CLIP_STD

PROMPTS = ["a red circle", "two small blue squares above a star"]
VISION = {"width": 32, "depth": 2, "inner": 48, "side": 32, "patch": 16}
TEXT = {"width": 24, "depth": 2, "inner": 40, "places": 64, "seen": 32}
HEAD = (24, 16, 12, 8, 4, 1)


def layout(vision: dict[str, int], text: dict[str, int], words: int, head: tuple[int, ...]) -> Layout:
    """Names and shapes in ImageReward.pt, after ImageReward/ImageReward.py and models/BLIP of THUDM/ImageReward."""
    out = vit_layout("blip.visual_encoder.", **vision) | bert_layout("blip.text_encoder.", words=words, **text)
    for at, (before, after) in zip((0, 2, 4, 6, 7), pairwise(head), strict=True):
        out |= pair(f"mlp.layers.{at}", after, before)
    return out


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str, dict[str, torch.Tensor]]:
    """A file in the published names, its digest, and what is in it; the published sizes are made tiny to fit."""
    words = bert_tokenizer(tmp_path / "tokenizer")
    state = random_state(layout(VISION, TEXT, words, HEAD))
    extra = random_state(pair("blip.vision_proj", 8, 32) | pair("blip.text_proj", 8, 24))
    extra["blip.text_encoder.embeddings.position_ids"] = torch.arange(64)[None]
    sizes = {
        "vision_config": {
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 16,
            "layer_norm_eps": 1e-6,
        },
        "text_config": {
            "vocab_size": words,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "max_position_embeddings": 64,
        },
        "head": list(HEAD),
    }
    monkeypatch.setitem(PUBLISHED, "head", sizes["head"])
    for part in ("vision_config", "text_config"):
        monkeypatch.setitem(PUBLISHED, part, sizes[part])
    digest = pickled(state | extra, tmp_path / "ImageReward.pt")
    return tmp_path, digest, state


def verifier(tiny: tuple[Path, str, dict[str, torch.Tensor]]) -> ImageReward:
    folder, digest, _ = tiny
    found = image_reward(str(folder / "ImageReward.pt"), digest, str(folder / "tokenizer"))
    assert isinstance(found, ImageReward)
    return found


def test_the_full_network_has_the_published_layout() -> None:
    with torch.device("meta"):
        net = ImageRewardNet(PUBLISHED)
        published = {
            name: torch.empty(shape)
            for name, shape in layout(
                {"width": 1024, "depth": 24, "inner": 4096, "side": 224, "patch": 16},
                {"width": 768, "depth": 12, "inner": 3072, "places": 512, "seen": 1024},
                30524,
                (768, 1024, 128, 64, 16, 1),
            ).items()
        }
        assert shapes(translate(published)) == shapes(net.state_dict())


def test_outputs_are_those_of_an_independent_implementation(tiny) -> None:
    found, (_, _, state) = verifier(tiny), tiny
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pixels = (images - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    tokens = found.tokenizer(PROMPTS, padding="max_length", max_length=35, return_tensors="pt")
    seen = vit(state, "blip.visual_encoder.", pixels, 2, 2, 16)
    mask = tokens.attention_mask
    x = bert(state, "blip.text_encoder.", tokens.input_ids, mask, seen, torch.ones(2, seen.shape[1]), 2, 3)[:, 0]
    for at in (0, 2, 4, 6, 7):
        x = linear(state, f"mlp.layers.{at}", x)
    expected = (x[:, 0] - 0.16717362830052426) / 1.0333394966054072
    torch.testing.assert_close(found(images, PROMPTS), expected, atol=2e-5, rtol=1e-4)
    assert expected.std() > 1e-3  # the pictures and prompts matter


def test_a_batch_is_one_at_a_time_and_texts_are_read_once(tiny) -> None:
    found = verifier(tiny)
    found.tokenizer = counting = Counting(found.tokenizer)
    images = torch.rand(4, 3, 40, 30, generator=torch.Generator().manual_seed(1))
    prompts = [*PROMPTS, *PROMPTS]
    together = found(images, prompts)
    alone = torch.cat([found(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)
    assert counting.seen == PROMPTS


def test_it_can_be_differentiated_in_the_pictures(tiny) -> None:
    images = torch.rand(1, 3, 48, 40, requires_grad=True)
    (gradient,) = torch.autograd.grad(verifier(tiny)(images, PROMPTS[:1]).sum(), images)
    assert gradient.isfinite().all() and gradient.abs().sum() > 0


def test_a_saved_folder_gives_the_same_scores(tiny, tmp_path: Path) -> None:
    found = verifier(tiny)
    save_network(found.net, found.net.config, tmp_path / "saved")
    found.tokenizer.save_pretrained(tmp_path / "saved")
    again = load(f"image_reward model={tmp_path / 'saved'}")
    images = torch.rand(2, 3, 32, 32)
    torch.testing.assert_close(again(images, PROMPTS), found(images, PROMPTS), atol=0, rtol=0)


def test_wrong_files_are_told(tiny, tmp_path: Path) -> None:
    folder, _, state = tiny
    file = folder / "ImageReward.pt"
    with pytest.raises(DiffscaleError, match="pass sha256="):
        load(f"image_reward model={file}")
    with pytest.raises(DiffscaleError, match="was not opened"):
        load(f"image_reward model={file} sha256={'0' * 64}")
    short = pickled({k: v for k, v in state.items() if k != "mlp.layers.0.bias"}, tmp_path / "short.pt")
    with pytest.raises(DiffscaleError, match=r"Missing key.*head\.layers\.0\.bias"):
        load(f"image_reward model={tmp_path / 'short.pt'} sha256={short}")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(DiffscaleError, match="lacks head"):
        load(f"image_reward model={tmp_path}")


def test_unpublished_names_stay_so(tiny) -> None:
    assert translate({"stray": torch.zeros(1)}).keys() == {"stray"}  # and the strict load refuses it
