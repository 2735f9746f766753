"""Tokenizers of the Shapes networks, in the formats of the real ones: a word of the grammar is one token."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from string import ascii_lowercase
from typing import Any, Final

from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer, T5Tokenizer

from diffscale._util.files import read_text, split_lines
from diffscale_shapes.captions import WORDS

MAX_TOKENS: Final = 24
"""T5 tokens per caption, the end sign included; the grammar's longest caption has 18."""

CLIP_TOKENS: Final = MAX_TOKENS + 2
"""CLIP tokens per caption, begin and end signs included."""


@cache
def t5_tokenizer() -> T5Tokenizer:
    """A unigram tokenizer whose pieces are the grammar's words; other words fall into letters."""
    words = [*WORDS, *(word.capitalize() for word in WORDS)]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -12.0), (",", -2.0), (".", -2.0)]
    pieces += [(f"▁{word}", -2.0) for word in words if len(word) > 1 or word == "a" or word == "A"]
    pieces += [(letter, -12.0) for letter in ascii_lowercase]
    return T5Tokenizer(vocab=pieces, extra_ids=0, model_max_length=MAX_TOKENS)


@cache
def clip_tokenizer() -> CLIPTokenizer:
    """A byte-pair tokenizer for which every word of the grammar is one token; it folds case as CLIP's does.

    `merges.txt` was learned once from the words, by the tokenizers library's BpeTrainer with end_of_word_suffix "</w>":
    it breaks ties differently from run to run, and a network must find the token numbers that it was trained with.
    """
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    lines = split_lines(read_text(Path(__file__).with_name("merges.txt")))[1:]
    merges = [tuple(line.split(" ")) for line in lines]
    pieces = [*alphabet, *(f"{sign}</w>" for sign in alphabet), *("".join(pair) for pair in merges)]
    vocab = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    for special in ("<|startoftext|>", "<|endoftext|>"):
        vocab[special] = len(vocab)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=CLIP_TOKENS)


def tokenize(tokenizer: CLIPTokenizer | T5Tokenizer, captions: Sequence[str]) -> Any:
    """`input_ids` and `attention_mask`, int64 [B, L] each, L the most tokens that the tokenizer's networks take."""
    return tokenizer(list(captions), padding="max_length", truncation=True, return_tensors="pt")
