"""BLIP-VQA (Huang et al. 2023, T2I-CompBench, arXiv 2307.06350): is each noun phrase in the picture? BLIP answers."""

from dataclasses import dataclass
from typing import Any, Final

import torch
import transformers
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import pretrained, pretrained_network
from diffscale.verifiers.phrases import read_prompt
from diffscale.verifiers.preprocess import Preprocessing

MODEL: Final = "Salesforce/blip-vqa-capfilt-large"
"""The weights of T2I-CompBench in transformers' layout; they take 384 pixels, and the benchmark's script 480."""

QUESTIONS: Final = 8
"""The most phrases that are asked after, as in T2I-CompBench."""

WORDS: Final = 35
"""The most tokens of a question, as in T2I-CompBench."""


@dataclass
class Vqa:
    """Verifier over a `BlipForQuestionAnswering`: the product of P(yes) over the prompt's noun phrases, in [0, 1].

    P(yes) = p(yes) / (p(yes) + p(no)) for the answer's first token, to the question "a red car?". A prompt without noun
    phrases is asked after as a whole. Phrases are those of `phrases.read_prompt`, not spaCy's. Differentiable in the
    pictures.
    """

    net: Any
    tokenizer: Any
    preprocessing: Preprocessing
    answers: tuple[int, int]
    name: str = "vqa"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        questions = [questions_of(prompt) for prompt in prompts]
        lengths = [len(texts) for texts in questions]
        picture = torch.arange(len(prompts)).repeat_interleave(torch.tensor(lengths)).to(self.net.device)
        chances = self.yes(images, [text for texts in questions for text in texts], picture)
        return torch.stack([part.prod() for part in chances.split(lengths)])

    def yes(self, images: Tensor, questions: list[str], picture: Tensor) -> Tensor:
        """P(yes) [Q] to `questions`, each about row `picture[q]` (int64 [Q]) of `images`."""
        pixels = self.preprocessing.stretch(images.to(self.net.device, torch.float32))
        seen = self.net.vision_model(pixel_values=pixels).last_hidden_state
        seen = seen[picture]
        tokens = self.tokenizer(questions, truncation=True, max_length=WORDS).input_ids
        chances = torch.zeros(len(questions), device=seen.device)
        # One length at a time: BlipTextLMHeadModel of transformers 5 looks at padding, whatever the mask.
        for length in sorted({len(ids) for ids in tokens}):
            rows = [row for row, ids in enumerate(tokens) if len(ids) == length]
            ids = torch.tensor([tokens[row] for row in rows], device=seen.device)
            chances = chances.index_put((torch.tensor(rows, device=seen.device),), self._yes(seen[rows], ids))
        return chances

    def _yes(self, seen: Tensor, ids: Tensor) -> Tensor:
        """P(yes) [Q] of picture features [Q, P, D] and questions, token ids [Q, L] without padding."""
        start = self.net.decoder_start_token_id
        # BLIP's two extra signs follow the words of BERT: [DEC] starts answers, [ENC] questions.
        asked = torch.cat([torch.full_like(ids[:, :1], start + 1), ids[:, 1:]], 1)
        understood = self.net.text_encoder(input_ids=asked, encoder_hidden_states=seen).last_hidden_state
        logits = self.net.text_decoder(
            input_ids=torch.full_like(ids[:, :1], start), encoder_hidden_states=understood
        ).logits[:, 0]
        yes, no = self.answers
        return (logits[:, yes] - logits[:, no]).sigmoid()


def questions_of(prompt: str) -> list[str]:
    """What is asked of a picture of `prompt`."""
    texts = [phrase.text for phrase in read_prompt(prompt).phrases[:QUESTIONS]]
    return [f"{text}?" for text in texts or [prompt.lower().rstrip(" .!?")]]


def vqa(model: str = MODEL, *, device: Any = "cpu") -> Vqa:
    """BLIP-VQA of T2I-CompBench: is each noun phrase seen, product in [0, 1]; `model` is a BLIP by Hub id or folder.

    For the categories colour, shape and texture. Raises DiffscaleError for weights that cannot be loaded.
    """
    what = "BLIP question answering model"
    net = pretrained_network(transformers.BlipForQuestionAnswering, model, what, device)
    tokenizer = pretrained(transformers.AutoTokenizer, model, what)
    yes, no = tokenizer.convert_tokens_to_ids(["yes", "no"])
    if tokenizer.unk_token_id in (yes, no):
        raise DiffscaleError(f"The tokenizer of {model!r} does not know the answers yes and no.")
    side = net.config.vision_config.image_size
    return Vqa(net, tokenizer, Preprocessing.load(model, what, side), (yes, no))
