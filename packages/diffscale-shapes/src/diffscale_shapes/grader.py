"""A grader without a language model: a small network that was trained on grades, the stand-in for a hosted one."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from diffscale._util.errors import DiffscaleError, check_name
from diffscale.models.files import saved_config
from diffscale.types import Verifier
from diffscale.verifiers.image_reward import ImageReward, image_reward


@dataclass
class LocalGrader(ImageReward):
    """Verifier: the mark, 0 to 10, that graders would give for one aspect of a picture and its prompt.

    `column`: the aspect's place among the network's outputs. Differentiable in the pictures.
    """

    column: int = -1

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Mark [B] of `images` [B, 3, H, W] in [0, 1] for their prompts; higher is better."""
        pixels, tokens, mask = self.prepared(images, prompts)
        seen = self.net.vision(pixel_values=pixels).last_hidden_state
        return 10 * self.net.rate(seen, tokens, mask)[:, self.column].sigmoid()


def shapes_grader(
    aspect: str = "overall", model: str = "shapes-grader", *, device: Any = "cpu", image_model: str = ""
) -> Verifier:
    """Marks from 0 to 10, the local stand-in for llm_grader on Shapes: accuracy, creativity, quality, consistency.

    `aspect`: one of these or overall; the LLM grader's fifth, emotional resonance, no scene of Shapes can have.
    `model`: a folder as `diffscale shapes train grader` writes it. Raises DiffscaleError for weights that cannot be
    loaded, UnknownName for another aspect.
    """
    config = saved_config(model)
    if config is None:
        raise DiffscaleError(f"{model!r} is no folder with config.json of a grader: use shapes-grader or llm_grader.")
    aspects = config.get("aspects", [])
    check_name("aspect", aspect, aspects)
    loaded = image_reward(model, device=device)
    name = "shapes-grader" if aspect == "overall" else f"shapes-grader {aspect}"
    return LocalGrader(loaded.net, loaded.tokenizer, name, column=aspects.index(aspect))
