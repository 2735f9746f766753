"""Human Preference Score v2 (Wu et al. 2023, arXiv 2306.09341): an open_clip ViT-H/14 trained on people's choices."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import transformers
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.models.files import fetch, load_into, load_state, pretrained, renamed
from diffscale.types import Verifier
from diffscale.verifiers.clip import CosineScore
from diffscale.verifiers.preprocess import Preprocessing

MODEL: Final = "xswu/HPSv2"
FILES: Final = {"v2.0": "HPS_v2_compressed.pt", "v2.1": "HPS_v2.1_compressed.pt"}
TOKENIZER: Final = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
VISION_HEAD: Final = 80
TEXT_HEAD: Final = 64
"""Widths of the attention heads of open_clip's ViT-H-14, the one size that weights do not show."""

PROJECTIONS: Final = ("visual_projection.weight", "text_projection.weight")

KEYS: Final = (
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
"""open_clip's names as transformers' CLIPModel has them; `in_proj` is cut into three and projections are transposed."""


@dataclass
class Hps(CosineScore):
    """Verifier over a `CLIPModel`: cos of picture and prompt, in [-1, 1] and mostly within [0.15, 0.35].

    This is the number that hpsv2.score returns (github.com/tgxs002/HPSv2, hpsv2/img_score.py); hpsv2's benchmark tables
    print it times 100. As there, the whole picture is seen, with black bars if it is not square.
    """

    name: str = "hps"

    def pixels(self, images: Tensor) -> Tensor:
        """What the vision tower takes, [B, 3, side, side], of `images` [B, 3, H, W] in [0, 1]."""
        return self.preprocessing.letterbox(images)


def hps(
    model: str = MODEL,
    version: Literal["v2.0", "v2.1"] = "v2.1",
    sha256: str | None = None,
    tokenizer: str = TOKENIZER,
    *,
    device: Any = "cpu",
) -> Verifier:
    """Human Preference Score v2, the cosine that people's choices trained; `model` is a file, folder or Hub id.

    The publisher has pickles only: `sha256` is the digest of the file, as its page on the Hub shows it. `tokenizer`: a
    folder or Hub id. Raises DiffscaleError for weights that cannot be loaded.
    """
    path = fetch(model, FILES[version])
    state = load_state(path, sha256)
    state = state.get("state_dict", state)
    if "visual.conv1.weight" not in state:
        raise DiffscaleError(
            f"The weights in {path} have no visual.conv1.weight, so that they are no open_clip network."
        )
    config = config_of(state)
    net = transformers.CLIPModel(config)
    load_into(net, translate(state), path)
    pieces = pretrained(transformers.AutoTokenizer, tokenizer, "tokenizer")
    return Hps(net.to(device).eval().requires_grad_(False), pieces, Preprocessing(config.vision_config.image_size))


def config_of(state: Mapping[str, Tensor]) -> transformers.CLIPConfig:
    """The sizes of an open_clip network, from its published state dict and the head widths of ViT-H-14."""
    vocabulary, text_width = state["token_embedding.weight"].shape
    width, _, patch, _ = state["visual.conv1.weight"].shape
    patches = state["visual.positional_embedding"].shape[0] - 1
    embedding = state["text_projection"].shape[1]
    return transformers.CLIPConfig(
        projection_dim=embedding,
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": text_width,
            "intermediate_size": state["transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _depth(state, "transformer."),
            "num_attention_heads": text_width // TEXT_HEAD,
            "max_position_embeddings": state["positional_embedding"].shape[0],
            "hidden_act": "gelu",
            "projection_dim": embedding,
            "bos_token_id": vocabulary - 2,
            "eos_token_id": vocabulary - 1,
        },
        vision_config={
            "hidden_size": width,
            "intermediate_size": state["visual.transformer.resblocks.0.mlp.c_fc.weight"].shape[0],
            "num_hidden_layers": _depth(state, "visual.transformer."),
            "num_attention_heads": width // VISION_HEAD,
            "image_size": patch * round(patches**0.5),
            "patch_size": patch,
            "hidden_act": "gelu",
            "projection_dim": embedding,
        },
    )


def translate(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published open_clip state dict in the names and layout of transformers' CLIPModel, see `KEYS`."""
    out: dict[str, Tensor] = {}
    for name, value in renamed(state, KEYS).items():
        stem, fused, kind = name.partition("in_proj_")
        if fused:
            out |= {f"{stem}{part}_proj.{kind}": rows.clone() for part, rows in zip("qkv", value.chunk(3), strict=True)}
        else:
            out[name] = value.T.contiguous() if name in PROJECTIONS else value
    return out


def _depth(state: Mapping[str, Tensor], prefix: str) -> int:
    return sum(name.startswith(prefix) and name.endswith("attn.in_proj_weight") for name in state)
