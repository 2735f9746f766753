"""What tests of published networks share: random weights of a layout, files of them, and plain tokenizers."""

from __future__ import annotations

import hashlib
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffscale_shapes import MODELS
from diffscale_shapes.train.shipped import untrained
from diffscale_shapes.train.text import clip_tokenizer
from torch import Tensor
from transformers import BertTokenizer, CLIPImageProcessorPil, CLIPModel

Layout = Mapping[str, tuple[int, ...]]


def random_state(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Weights of that layout, small enough for activations to stay tame, and norms around one."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout.items():
        value = torch.randn(shape, generator=generator)
        fan_in = max(1, value[0].numel()) if value.ndim > 1 else 1
        is_gain = value.ndim == 1 and name.endswith("weight")
        state[name] = 1 + 0.1 * value if is_gain else value * (fan_in**-0.5 if value.ndim > 1 else 0.1)
    return state


def shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in state.items()}


def pickled(state: Any, path: Path) -> str:
    """Save as publishers do; the SHA-256 digest of the file."""
    torch.save(state, path)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def bert_tokenizer(folder: Path, words: str = "") -> int:
    """Save a tokenizer of BERT's kind with BLIP's two extra signs; the size of its vocabulary."""
    letters = [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    pieces = [
        "[PAD]",
        "[UNK]",
        "[CLS]",
        "[SEP]",
        "[MASK]",
        "yes",
        "no",
        "?",
        *words.split(),
        *letters,
        "[DEC]",
        "[ENC]",
    ]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    BertTokenizer(vocab=vocabulary).save_pretrained(folder)
    return len(vocabulary)


class Counting:
    """A tokenizer that counts the texts it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.seen: list[str] = []

    def __call__(self, texts: list[str], *args: Any, **kwargs: Any) -> Any:
        self.seen.extend(texts)
        return self.tokenizer(texts, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)


def clip_folder(folder: Path) -> Path:
    """Save a CLIP of random weights, its tokenizer and preprocessing."""
    torch.manual_seed(0)
    untrained(CLIPModel, "shapes-clip").save_pretrained(folder)
    clip_tokenizer().save_pretrained(folder)
    CLIPImageProcessorPil.from_pretrained(MODELS / "shapes-clip").save_pretrained(folder)
    return folder
