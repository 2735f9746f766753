"""The judge as a verifier, for upper bounds: a search by it must never be reported as judged by it."""

from functools import cache
from typing import Any, Final

from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale_shapes.captions import parse_caption
from diffscale_shapes.judge import judge_images
from diffscale_shapes.scenes import Description


class UnreadablePrompt(DiffscaleError, ValueError):
    """A prompt is outside the grammar of Shapes, so that nothing can be judged by it."""


class Oracle:
    """Verifier whose score is the judge's, float64 in [0, 1]; not differentiable.

    Raises UnreadablePrompt for a prompt that the grammar of Shapes cannot read.
    """

    name: Final = "shapes-judge"

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """Score [B] of `images` [B, 3, H, W] in [0, 1] for their prompts."""
        return judge_images(images, [_meaning(prompt) for prompt in prompts])


@cache
def _meaning(prompt: str) -> Description:
    meaning = parse_caption(prompt)
    if meaning is None:
        raise UnreadablePrompt(
            f"The Shapes judge cannot read {prompt!r}: describe objects as in `a small red circle above two blue "
            "squares`, or use another verifier."
        )
    return meaning


def shapes_judge(*, device: Any = "cpu", image_model: str = "") -> Oracle:
    """The exact judge of Shapes used as an oracle: an upper bound, not a verifier anybody has."""
    return Oracle()
