"""Any Python callable as a verifier."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

from torch import Tensor

from diffscale.engine.scoring import shaped_scores
from diffscale.types import Verifier


@dataclass
class FunctionVerifier:
    """Calls `function(images, prompts)`: float [B, 3, H, W] in [0, 1] and B strings to scores [B], higher is better.

    The scores are a tensor, a NumPy array or a list of numbers.
    """

    name: str
    function: Callable[[Tensor, list[str]], Any]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The function's answer; raises DiffscaleError if it is not B scores."""
        return shaped_scores(self, self.function(images, list(prompts)), prompts)


def as_verifier(name: str, made: Callable[..., Any]) -> Verifier:
    """`made`, which a factory or a user gave, as a Verifier called `name` where it has no name of its own."""
    if isinstance(made, Verifier):
        return made
    if isinstance(made, FunctionType | MethodType | BuiltinFunctionType | partial):
        return FunctionVerifier(name, made)
    made.name = name  # type: ignore[attr-defined]
    return made  # type: ignore[return-value]
