"""PickScore, the aesthetic predictor and HPS without their weights: layouts, formulas, files and their digests."""

from __future__ import annotations

import json
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from blip_reference import attend, linear, norm, pair
from diffscale_shapes.train.text import clip_tokenizer
from safetensors.torch import save_file
from tools import Counting, Layout, clip_folder, pickled, random_state, shapes
from torch.nn import functional as F
from transformers import CLIPModel

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers import load
from diffscale.verifiers.aesthetic import Head
from diffscale.verifiers.clip import Clip
from diffscale.verifiers.hps import Hps, config_of, translate
from diffscale.verifiers.preprocess import CLIP_MEAN, CLIP_STD

PROMPTS = ["a red circle", "two small blue squares above a star"]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clip_folder(tmp_path_factory.mktemp("clip"))


def pictures(n: int, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.rand(n, 3, height, width, generator=torch.Generator().manual_seed(1))


def test_pick_score_is_the_scaled_cosine(clip: Path) -> None:
    net, images = CLIPModel.from_pretrained(clip).eval(), pictures(2)
    tokens = clip_tokenizer()(PROMPTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = net(pixel_values=images * 2 - 1, **tokens).logits_per_image.diagonal()
    torch.testing.assert_close(load(f"pick_score model={clip}")(images, PROMPTS), expected, atol=1e-4, rtol=1e-4)


def head_layout(widths: tuple[int, ...]) -> Layout:
    """Names and shapes in sac+logos+ava1-l14-linearMSE.pth and, under mlp., in ImageReward.pt."""
    out: dict[str, tuple[int, ...]] = {}
    for at, (before, after) in zip((0, 2, 4, 6, 7), pairwise(widths), strict=True):
        out |= pair(f"layers.{at}", after, before)
    return out


def test_the_full_head_has_the_published_layout() -> None:
    assert shapes(Head().state_dict()) == head_layout((768, 1024, 128, 64, 16, 1))


def test_the_aesthetic_score_is_the_head_on_unit_embeddings(clip: Path, tmp_path: Path) -> None:
    tower = Clip.load(str(clip))
    width = tower.net.config.projection_dim
    state = random_state(head_layout((width, 16, 12, 8, 4, 1)))
    digest = pickled(state, tmp_path / "head.pth")
    images = pictures(2)
    x = F.normalize(tower.features(images), dim=-1)
    for at in (0, 2, 4, 6, 7):
        x = linear(state, f"layers.{at}", x)
    found = load(f"aesthetic model={tmp_path / 'head.pth'} clip={clip} sha256={digest}")
    torch.testing.assert_close(found(images, PROMPTS), x[:, 0], atol=1e-5, rtol=1e-4)
    (tmp_path / "saved").mkdir()
    save_file(state, tmp_path / "saved" / "model.safetensors")
    (tmp_path / "saved" / "config.json").write_text(json.dumps({"clip": str(clip)}))
    again = load(f"aesthetic model={tmp_path / 'saved'}")
    torch.testing.assert_close(again(images, PROMPTS), x[:, 0], atol=1e-5, rtol=1e-4)

    wrong = pickled(random_state(head_layout((width + 1, 16, 12, 8, 4, 1))), tmp_path / "wrong.pth")
    with pytest.raises(DiffscaleError, match=f"takes embeddings of width {width + 1}"):
        load(f"aesthetic model={tmp_path / 'wrong.pth'} clip={clip} sha256={wrong}")
    with pytest.raises(DiffscaleError, match="no aesthetic predictor"):
        load(f"aesthetic model={tmp_path / 'no.pth'} clip={clip} sha256={pickled({}, tmp_path / 'no.pth')}")


def open_clip(vision: tuple[int, int, int, int], text: tuple[int, int, int], depth: int, out: int) -> Layout:
    """Names and shapes of open_clip's CLIP: (width, inner, patch, patches) and (width, words, places)."""
    width, inner, patch, patches = vision
    words_width, words, places = text
    layout: dict[str, tuple[int, ...]] = {
        "positional_embedding": (places, words_width),
        "text_projection": (words_width, out),
        "logit_scale": (),
        "visual.class_embedding": (width,),
        "visual.positional_embedding": (patches + 1, width),
        "visual.proj": (width, out),
        "visual.conv1.weight": (width, 3, patch, patch),
        "token_embedding.weight": (words, words_width),
    }
    layout |= pair("visual.ln_pre", width) | pair("visual.ln_post", width) | pair("ln_final", words_width)
    for prefix, size, wide in (("visual.", width, inner), ("", words_width, 4 * words_width)):
        for i in range(depth):
            name = f"{prefix}transformer.resblocks.{i}."
            layout |= {f"{name}attn.in_proj_weight": (3 * size, size), f"{name}attn.in_proj_bias": (3 * size,)}
            layout |= pair(f"{name}attn.out_proj", size, size) | pair(f"{name}ln_1", size) | pair(f"{name}ln_2", size)
            layout |= pair(f"{name}mlp.c_fc", wide, size) | pair(f"{name}mlp.c_proj", size, wide)
    return layout


def blocks(state: dict, prefix: str, x: torch.Tensor, depth: int, heads: int, causal: bool) -> torch.Tensor:
    mask = torch.ones(x.shape[1], x.shape[1]).tril().expand(len(x), -1, -1) if causal else None
    for i in range(depth):
        name = f"{prefix}transformer.resblocks.{i}."
        y = norm(state, f"{name}ln_1", x, 1e-5)
        mixed = y @ state[f"{name}attn.in_proj_weight"].T + state[f"{name}attn.in_proj_bias"]
        x = x + linear(state, f"{name}attn.out_proj", attend(*mixed.chunk(3, -1), heads, mask))
        inner = F.gelu(linear(state, f"{name}mlp.c_fc", norm(state, f"{name}ln_2", x, 1e-5)))
        x = x + linear(state, f"{name}mlp.c_proj", inner)
    return x


@pytest.fixture
def tiny_hps(tmp_path: Path) -> tuple[Hps, dict[str, torch.Tensor]]:
    tokenizer = clip_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    state = random_state(open_clip((160, 96, 16, 4), (128, len(tokenizer), 24), 2, 20))
    digest = pickled({"state_dict": state}, tmp_path / "hps.pt")
    found = load(f"hps model={tmp_path / 'hps.pt'} sha256={digest} tokenizer={tmp_path}")
    assert isinstance(found, Hps)
    return found, state


def test_hps_is_open_clips_cosine(tiny_hps: tuple[Hps, dict[str, torch.Tensor]]) -> None:
    found, state = tiny_hps
    images = pictures(2, 32, 32)
    pixels = (images - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    x = F.conv2d(pixels, state["visual.conv1.weight"], stride=16).flatten(2).transpose(1, 2)
    x = torch.cat([state["visual.class_embedding"].expand(2, 1, -1), x], 1) + state["visual.positional_embedding"]
    x = blocks(state, "visual.", norm(state, "visual.ln_pre", x, 1e-5), 2, 2, causal=False)
    seen = norm(state, "visual.ln_post", x[:, 0], 1e-5) @ state["visual.proj"]
    texts = []
    for prompt in PROMPTS:
        ids = torch.tensor(found.tokenizer([prompt]).input_ids)
        y = state["token_embedding.weight"][ids] + state["positional_embedding"][: ids.shape[1]]
        y = norm(state, "ln_final", blocks(state, "", y, 2, 2, causal=True), 1e-5)
        texts.append(y[:, -1] @ state["text_projection"])
    expected = F.cosine_similarity(seen, torch.cat(texts))
    torch.testing.assert_close(found(images, PROMPTS), expected, atol=1e-5, rtol=1e-4)
    assert (expected[0] - expected[1]).abs() > 1e-3


def test_the_full_hps_has_the_published_layout() -> None:
    """ViT-H-14 of open_clip: 32 picture and 24 text layers, 1024 wide embeddings, 224 pixels."""
    with torch.device("meta"):
        vision = open_clip((1280, 5120, 14, 256), (1024, 49408, 77), 24, 1024)
        deeper = open_clip((1280, 5120, 14, 256), (1024, 49408, 77), 32, 1024)
        layout = {**vision, **{name: shape for name, shape in deeper.items() if name.startswith("visual.")}}
        state = {name: torch.empty(shape) for name, shape in layout.items()}
        config = config_of(state)
        assert shapes(translate(state)) == shapes(CLIPModel(config).state_dict())
    sizes = config.vision_config
    assert (sizes.image_size, sizes.num_hidden_layers, sizes.num_attention_heads) == (224, 32, 16)
    assert (config.text_config.num_hidden_layers, config.text_config.num_attention_heads) == (24, 16)


@pytest.mark.parametrize("name", ["pick_score", "hps"])
def test_a_batch_is_one_at_a_time_with_gradients_and_texts_are_read_once(
    name: str, clip: Path, tiny_hps: tuple[Hps, dict[str, torch.Tensor]]
) -> None:
    found = tiny_hps[0] if name == "hps" else load(f"pick_score model={clip}")
    found.tokenizer = counting = Counting(found.tokenizer)
    images = pictures(4, 50, 40).requires_grad_()
    prompts = [*PROMPTS, *PROMPTS]
    together = found(images, prompts)
    alone = torch.cat([found(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)
    assert counting.seen == PROMPTS
    (gradient,) = torch.autograd.grad(together.sum(), images)
    assert gradient.isfinite().all() and (gradient.abs().sum((1, 2, 3)) > 0).all()


def test_pickles_are_opened_only_with_their_digest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "hps.pt"
    digest = pickled({"state_dict": {}}, file)
    files = sys.modules["diffscale.models.files"]
    monkeypatch.setattr(files.torch, "load", lambda *_, **__: pytest.fail("an unknown pickle was opened"))
    with pytest.raises(DiffscaleError, match="pass sha256="):
        load(f"hps model={file}")
    with pytest.raises(DiffscaleError, match=f"digest is {digest}"):
        load(f"hps model={file} sha256={'0' * 64}")
    with pytest.raises(DiffscaleError, match="was not opened"):
        load(f"aesthetic model={file}")
    monkeypatch.undo()
    with pytest.raises(DiffscaleError, match="no open_clip network"):
        load(f"hps model={file} sha256={digest}")
