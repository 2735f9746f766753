"""BLIP-VQA without its weights: the published layout, and its outputs against BLIP in plain functions."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from blip_reference import bert, bert_layout, linear, norm, pair, vit, vit_layout
from PIL import Image
from safetensors.torch import save_file
from tools import Counting, Layout, bert_tokenizer, random_state, shapes
from torch.nn import functional as F
from transformers import BlipConfig, BlipForQuestionAnswering, BlipImageProcessor

from diffscale._util.errors import DiffscaleError
from diffscale.verifiers import load, phrases
from diffscale.verifiers.preprocess import CLIP_MEAN, CLIP_STD
from diffscale.verifiers.vqa import Vqa, questions_of, vqa

PROMPTS = ["a red circle and a blue star", "two small squares"]
RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj", "vision_model.embeddings.patch_embedding"),
    (r"^visual_encoder\.norm\.", "vision_model.post_layernorm."),
    (r"^visual_encoder\.blocks\.", "vision_model.encoder.layers."),
    (r"(vision_model.*)\.norm([12])\.", r"\1.layer_norm\2."),
    (r"(vision_model.*)\.attn\.qkv", r"\1.self_attn.qkv"),
    (r"(vision_model.*)\.attn\.proj", r"\1.self_attn.projection"),
)
"""Names in Salesforce's model_base_vqa_capfilt_large.pth and in its transformers port."""


def layout(vision: dict[str, int], text: dict[str, int], words: int) -> Layout:
    """Names and shapes of models/blip_vqa.py in github.com/salesforce/BLIP."""
    width = text["width"]
    head = "text_decoder.cls.predictions."
    out = vit_layout("visual_encoder.", **vision) | bert_layout("text_encoder.", words=words, **text)
    out |= bert_layout("text_decoder.bert.", words=words, **{**text, "seen": width})
    out |= pair(f"{head}transform.dense", width, width) | pair(f"{head}transform.LayerNorm", width)
    return {**out, f"{head}bias": (words,), **pair(f"{head}decoder", words, width)}


def ported(layout_or_state: dict) -> dict:
    out = {}
    for name, value in layout_or_state.items():
        for pattern, there in RENAMED:
            name = re.sub(pattern, there, name)
        out[name] = value
    return out


def config(words: int, vision: dict[str, int], text: dict[str, int], heads: tuple[int, int]) -> BlipConfig:
    return BlipConfig(
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": vision["inner"],
            "num_hidden_layers": vision["depth"],
            "num_attention_heads": heads[0],
            "image_size": vision["side"],
            "patch_size": vision["patch"],
            "layer_norm_eps": 1e-6,
        },
        text_config={
            "vocab_size": words,
            "hidden_size": text["width"],
            "encoder_hidden_size": text["seen"],
            "intermediate_size": text["inner"],
            "num_hidden_layers": text["depth"],
            "num_attention_heads": heads[1],
            "max_position_embeddings": text["places"],
            "bos_token_id": words - 2,
        },
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, torch.Tensor]]:
    folder = tmp_path_factory.mktemp("vqa")
    words = bert_tokenizer(folder)
    # Vision and text are equally wide in BLIP's base size, and the decoder reads what the encoder wrote.
    vision = {"width": 24, "depth": 2, "inner": 48, "side": 32, "patch": 16}
    text = {"width": 24, "depth": 2, "inner": 40, "places": 64, "seen": 24}
    state = random_state(layout(vision, text, words))
    head = "text_decoder.cls.predictions."
    state[f"{head}decoder.weight"] = state["text_decoder.bert.embeddings.word_embeddings.weight"]
    state[f"{head}decoder.bias"] = state[f"{head}bias"]
    made = config(words, vision, text, (2, 3))
    made.architectures = ["BlipForQuestionAnswering"]
    made.save_pretrained(folder)
    save_file({name: value.clone() for name, value in ported(state).items()}, folder / "model.safetensors")
    BlipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, state


def asked(found: Vqa, state: dict[str, torch.Tensor], pixels: torch.Tensor, question: str) -> torch.Tensor:
    """P(yes) as vqa_prob in models/blip_vqa.py of T2I-CompBench computes it."""
    tokens = found.tokenizer([question], return_tensors="pt")
    ids = tokens.input_ids.clone()
    vocabulary = found.tokenizer.get_vocab()
    ids[:, 0] = vocabulary["[ENC]"]
    seen = vit(state, "visual_encoder.", pixels, 2, 2, 16)
    ones = torch.ones(1, seen.shape[1])
    read = bert(state, "text_encoder.", ids, tokens.attention_mask, seen, ones, 2, 3)
    start = torch.tensor([[vocabulary["[DEC]"]]])
    out = bert(state, "text_decoder.bert.", start, None, read, tokens.attention_mask, 2, 3)
    head = "text_decoder.cls.predictions."
    x = norm(state, f"{head}transform.LayerNorm", F.gelu(linear(state, f"{head}transform.dense", out)), 1e-12)
    chances = linear(state, f"{head}decoder", x)[0, 0].softmax(-1)
    yes, no = chances[vocabulary["yes"]], chances[vocabulary["no"]]
    return yes / (yes + no)


def test_the_full_network_has_the_published_layout() -> None:
    vision = {"width": 768, "depth": 12, "inner": 3072, "side": 384, "patch": 16}
    text = {"width": 768, "depth": 12, "inner": 3072, "places": 512, "seen": 768}
    with torch.device("meta"):
        net = BlipForQuestionAnswering(config(30524, vision, text, (12, 12)))
    assert shapes(net.state_dict()) == ported(dict(layout(vision, text, 30524)))
    assert net.decoder_start_token_id == 30522


def test_the_score_is_the_product_over_noun_phrases(tiny: tuple[Path, dict[str, torch.Tensor]]) -> None:
    found, (_, state) = vqa(str(tiny[0])), tiny
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    pixels = (images - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)
    first = [asked(found, state, pixels[:1], text) for text in ("a red circle?", "a blue star?")]
    expected = torch.stack([first[0] * first[1], asked(found, state, pixels[1:], "two small squares?")])
    torch.testing.assert_close(found(images, PROMPTS), expected, atol=1e-5, rtol=1e-4)
    assert expected.min() > 0.05 and expected.max() < 0.95


def test_pictures_are_stretched_as_the_processor_does(tiny: tuple[Path, dict[str, torch.Tensor]]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (50, 40, 3), dtype=np.uint8)
    made = BlipImageProcessor.from_pretrained(tiny[0])(Image.fromarray(pixels), return_tensors="pt").pixel_values
    back = made * torch.tensor(CLIP_STD).view(3, 1, 1) + torch.tensor(CLIP_MEAN).view(3, 1, 1)
    found = vqa(str(tiny[0]))
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
    torch.testing.assert_close(found(image, ["a star"]), found(back, ["a star"]), atol=2e-3, rtol=0)


def test_a_batch_is_one_at_a_time_with_gradients_and_questions_are_read_once(
    tiny: tuple[Path, dict[str, torch.Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = load(f"vqa model={tiny[0]}")
    assert isinstance(found, Vqa)
    images = torch.rand(4, 3, 40, 30, generator=torch.Generator().manual_seed(1)).requires_grad_()
    prompts = [*PROMPTS, *PROMPTS]
    together = found(images, prompts)
    monkeypatch.setattr(phrases, "_tokens", None)
    found.tokenizer = counting = Counting(found.tokenizer)
    alone = torch.cat([found(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-4)
    assert counting.seen[:3] == ["a red circle?", "a blue star?", "two small squares?"]
    (gradient,) = torch.autograd.grad(together.sum(), images)
    assert gradient.isfinite().all() and (gradient.abs().sum((1, 2, 3)) > 0).all()


def test_a_prompt_without_phrases_is_asked_whole_and_no_more_than_eight() -> None:
    assert questions_of("Is it so?") == ["is it so?"]
    assert len(questions_of(", ".join(f"a {letter}{letter} car" for letter in "abcdefghij"))) == 8


def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    with pytest.raises(DiffscaleError, match=r"BLIP question answering model .* could not be loaded"):
        load(f"vqa model={tmp_path}")
