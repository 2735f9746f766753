"""The LAION aesthetic predictor, improved version (Schuhmann 2022): a head on CLIP ViT-L/14 picture embeddings."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, ClassVar, Final

from torch import Tensor, nn
from torch.nn import Parameter
from torch.nn import functional as F

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import fetch, load_into, load_state, saved_config
from diffscale.types import Verifier
from diffscale.verifiers.clip import MODEL as CLIP
from diffscale.verifiers.clip import Clip

MODEL: Final = "camenduru/improved-aesthetic-predictor"
"""A copy on the Hub of github.com/christophschuhmann/improved-aesthetic-predictor, held to the original's digest."""

FILE: Final = "sac+logos+ava1-l14-linearMSE.pth"
SHA256: Final = "21dd590f3ccdc646f0d53120778b296013b096a035a2718c9cb0d511bff0f1e0"

HEAD: Final = (768, 1024, 128, 64, 16, 1)
"""Widths of the published heads of this predictor and of ImageReward, from the features to the score."""


class Head(nn.Module):
    """Features [..., sizes[0]] to a number [..., 1], through `layers.0` ... as the publishers name them.

    It is the head of the LAION aesthetic predictor and of ImageReward: linear layers with dropout between.
    Dropout (0.2, 0.2, 0.1) follows every layer but the last two, so that the published widths give linear layers at
    0, 2, 4, 6 and 7. Without activations the trained head is one linear function: the publishers' own choice.
    Source: MLP in github.com/christophschuhmann/improved-aesthetic-predictor and github.com/THUDM/ImageReward.
    """

    def __init__(self, sizes: Sequence[int] = HEAD) -> None:
        super().__init__()
        steps: list[nn.Module] = []
        for i, widths in enumerate(pairwise(sizes)):
            steps.append(nn.Linear(*widths))
            if i < len(sizes) - 3:
                steps.append(nn.Dropout(0.2 if i < 2 else 0.1))
        self.layers = nn.Sequential(*steps)

    def forward(self, features: Tensor) -> Tensor:
        """The score [..., 1] of `features` [..., sizes[0]]."""
        return self.layers(features)


def head_sizes(state: Mapping[str, Tensor]) -> list[int]:
    """The widths of a head from its state dict (`layers.0.weight`, ...), first to last; empty if it has no layers."""
    names = [name for name in state if name.startswith("layers.") and name.endswith(".weight")]
    weights = [state[name] for name in sorted(names, key=lambda name: int(name.split(".")[1]))]
    return [weights[0].shape[1], *(weight.shape[0] for weight in weights)] if weights else []


@dataclass
class Aesthetic:
    """Verifier: the mean rating, 1 (bad) to 10 (good), that people would give; prompts are not looked at.

    The published network gives 4 to 7 to most pictures, and nothing holds it within 1 to 10. `head` reads L2-normalised
    picture embeddings of `clip`. Differentiable in the pictures.
    """

    clip: Clip
    head: Head
    name: str = "aesthetic"
    needs_prompts: ClassVar[bool] = False

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1]; higher is better."""
        return self.head(F.normalize(self.clip.features(images), dim=-1))[:, 0]

    def weights(self) -> list[Parameter]:
        """See `types.Refinable`: of the head."""
        return list(self.head.parameters())


def aesthetic(model: str = MODEL, clip: str | None = None, sha256: str = SHA256, *, device: Any = "cpu") -> Verifier:
    """LAION aesthetic score, about 1 to 10, of the picture alone; `model` is a file, folder, Hub id or name.

    A folder has model.safetensors and config.json, whose `clip` names the CLIP; otherwise `clip` does, by default the
    published ViT-L/14. `sha256`: the digest of a pickle other than the published one. Raises DiffscaleError for weights
    that cannot be loaded or do not fit the CLIP.
    """
    config = saved_config(model)
    path = fetch(model, FILE if config is None else "model.safetensors")
    clip = clip or (config or {}).get("clip", CLIP)
    state = load_state(path, sha256)
    sizes = head_sizes(state)
    if not sizes:
        raise DiffscaleError(f"The weights in {path} have no layers.0.weight, so that they are no aesthetic predictor.")
    head = Head(sizes)
    load_into(head, state, path)
    tower = Clip.load(clip, device)
    width = tower.net.config.projection_dim
    if width != sizes[0]:
        raise DiffscaleError(
            f"The aesthetic head in {path} takes embeddings of width {sizes[0]}, but {clip!r} gives {width}: "
            "name its own CLIP with clip=..."
        )
    return Aesthetic(tower, head.to(device).eval().requires_grad_(False))
