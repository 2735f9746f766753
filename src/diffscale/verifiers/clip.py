"""CLIP as verifiers see it, and two scores that are its cosine times a factor: CLIPScore and PickScore."""

from dataclasses import dataclass, field
from typing import Any, Final, Self, cast

import torch
import transformers
from torch import Tensor
from torch.nn import Parameter
from torch.nn import functional as F

from diffscale.engine.flops import uncounted
from diffscale.models.files import pretrained, pretrained_network
from diffscale.types import Verifier
from diffscale.verifiers.preprocess import Preprocessing

MODEL: Final = "openai/clip-vit-large-patch14"
PICK_SCORE: Final = "yuvalkirstain/PickScore_v1"
PICK_SCORE_PROCESSOR: Final = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
"""Where the published tokenizer and preprocessing of PickScore lie, as the model's page says."""


@dataclass
class Clip:
    """A `CLIPModel` with its tokenizer and preprocessing. Text features are computed once per prompt."""

    net: Any
    tokenizer: Any
    preprocessing: Preprocessing
    _texts: dict[str, Tensor] = field(default_factory=dict, kw_only=True, repr=False)

    @classmethod
    def load(cls, model: str, device: Any = "cpu", processor: str | None = None, **more: Any) -> Self:
        """From a Hub id, a local folder or the name of a shipped model (`shapes-clip`).

        `processor`: where tokenizer and preprocessing lie, if not with the weights. `more`: further fields of the
        class. Raises DiffscaleError if it cannot be loaded.
        """
        net = pretrained_network(transformers.CLIPModel, model, "CLIP model", device)
        processor = processor or model
        tokenizer = pretrained(transformers.AutoTokenizer, processor, "CLIP model")
        side = net.config.vision_config.image_size
        return cls(net, tokenizer, Preprocessing.load(processor, "CLIP model", side), **more)

    def features(self, images: Tensor) -> Tensor:
        """Projected picture embeddings [B, D], not normalised, of `images` [B, 3, H, W] in [0, 1]."""
        pixels = self.pixels(images.to(self.net.device, torch.float32))
        return self.net.visual_projection(self.net.vision_model(pixel_values=pixels).pooler_output)

    def weights(self) -> list[Parameter]:
        """See `types.Refinable`: of the vision side, since text features are kept."""
        return [*self.net.vision_model.parameters(), *self.net.visual_projection.parameters()]

    def pixels(self, images: Tensor) -> Tensor:
        """What the vision tower takes, [B, 3, side, side], of `images` [B, 3, H, W] in [0, 1]."""
        return self.preprocessing.crop(images)

    def cosine(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Cosine similarity [B] of each picture and its prompt, in [-1, 1]."""
        return F.cosine_similarity(self.features(images), self._read(prompts))

    def _read(self, prompts: list[str]) -> Tensor:
        """Projected text embeddings [B, D], not normalised, each computed once."""
        for prompt in prompts:
            if prompt not in self._texts:
                with uncounted():
                    self._texts[prompt] = self.encode([prompt])[0]
        return torch.stack([self._texts[prompt] for prompt in prompts])

    @property
    def scale(self) -> Tensor:
        """The factor on cosines that the network was trained with: exp(logit_scale), a scalar."""
        return self.net.logit_scale.exp()

    @torch.no_grad()
    def encode(self, texts: list[str]) -> Tensor:
        """Projected text embeddings [B, D], not normalised and not kept."""
        length = self.net.config.text_config.max_position_embeddings
        # A text's embedding is read at its last token, which no padding after it changes.
        batch = self.tokenizer(texts, padding=True, truncation=True, max_length=length, return_tensors="pt")
        batch = batch.to(self.net.device)
        pooled = self.net.text_model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).pooler_output
        return cast(Tensor, self.net.text_projection(pooled))


@dataclass
class CosineScore(Clip):
    """Verifier over a `CLIPModel`: a function of the cosine of picture and prompt, differentiable in the pictures."""

    name: str = "cosine"

    def rated(self, cosines: Tensor) -> Tensor:
        """The scores [B] of cosines [B]."""
        return cosines

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        return self.rated(self.cosine(images, prompts))

    def view(self, images: Tensor, prompts: list[str]) -> Tensor:
        """See `types.Teachable`: the normalised picture embedding, its products with that of the prompt, which add up
        to the cosine, and the score, [B, 2 D + 1]."""
        picture = F.normalize(self.features(images), dim=-1)
        products = picture * F.normalize(self._read(prompts), dim=-1)
        return torch.cat([picture, products, self.rated(products.sum(-1, keepdim=True))], -1)


@dataclass
class ClipScore(CosineScore):
    """Verifier over a `CLIPModel`: CLIPScore (Hessel et al. 2021, equation 1), 2.5 max(cos, 0) of picture and text.

    Scores lie in [0, 2.5], published CLIPs stay mostly within [0.3, 1].
    """

    name: str = "clip"

    def rated(self, cosines: Tensor) -> Tensor:
        """The scores [B] of cosines [B]."""
        return 2.5 * cosines.clamp(min=0)


def clip(model: str = MODEL, *, device: Any = "cpu") -> Verifier:
    """CLIPScore, 2.5 max(cos, 0), of picture and prompt; `model` is a CLIP by Hub id, folder or name."""
    return ClipScore.load(model, device)


@dataclass
class PickScore(CosineScore):
    """Verifier over a `CLIPModel`: PickScore (Kirstain et al. 2023, arXiv 2305.01569), exp(logit_scale) cos.

    A CLIP ViT-H/14 was trained on people's choices of two pictures, and its scale, which is about 100. Scores lie in
    [-100, 100] and mostly within [16, 26]; the softmax of two pictures' scores is the probability that people choose
    one over the other for the prompt.
    """

    name: str = "pick_score"

    def rated(self, cosines: Tensor) -> Tensor:
        """The scores [B] of cosines [B]."""
        return self.scale * cosines


def pick_score(model: str = PICK_SCORE, processor: str | None = None, *, device: Any = "cpu") -> Verifier:
    """PickScore: what people choose, of picture and prompt; `model` is a CLIP by Hub id, folder or name.

    `processor`: where tokenizer and preprocessing lie, if not with the weights. Raises DiffscaleError for weights that
    cannot be loaded.
    """
    return PickScore.load(model, device, processor or (PICK_SCORE_PROCESSOR if model == PICK_SCORE else None))
