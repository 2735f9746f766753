"""Any Python callable as a verifier, by `package.module:function` or as an object."""

import importlib
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import Tensor

from diffscale._util.errors import DiffscaleError, explained
from diffscale.engine.scoring import shaped_scores
from diffscale.registry import parse


@dataclass
class FunctionVerifier:
    """Calls `function(images, prompts)`: float [B, 3, H, W] in [0, 1] and B strings to scores [B], higher is better.

    The scores are a tensor, a NumPy array or a list of numbers.
    """

    name: str
    function: Callable[[Tensor, list[str]], Any]

    def __call__(self, images: Tensor, prompts: list[str]) -> Tensor:
        """The function's answer; raises DiffscaleError if it is not B scores."""
        return shaped_scores(self, self.function(images, prompts), prompts)


def load_function(text: str) -> FunctionVerifier:
    """The verifier that "package.module:function key=value ..." says; the current folder is looked in too.

    Arguments are coerced by the function's annotations. Raises DiffscaleError if it cannot be imported or called so.
    """
    where = text.split()[0]
    module, _, name = where.partition(":")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    mend = "give package.module:function, in this folder or an installed package."
    kinds = ImportError, AttributeError, ValueError
    with explained(f"The verifier {where} cannot be imported ({{why}}): {mend}", *kinds):
        function = attrgetter(name)(importlib.import_module(module))
    if not callable(function):
        raise DiffscaleError(f"The verifier {where} is no function: give one of (images, prompts).")
    _, options = parse(text, "verifier", {where: function})
    return FunctionVerifier(where, partial(function, **options) if options else function)
