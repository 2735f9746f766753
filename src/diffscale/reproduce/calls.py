"""A model and how it is called, which decides a sample together with its noise; samplers of it, opened when needed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final

from diffscale.api import make_sampler
from diffscale.loading.options import LoadOptions
from diffscale.models import load_pipeline
from diffscale.reproduce.recipe import digest
from diffscale.types import ClassLabel, Sampler
from diffscale.weights import WEIGHTS, locate

_WEIGHTS: Final = (".safetensors", ".json", ".txt")


@dataclass(frozen=True)
class Call:
    """`args`: pairs of name and value, so that calls can be compared. `steps` None: as the model states."""

    model: str
    steps: int | None
    args: tuple[tuple[str, Any], ...]
    dtype: str
    seed: int

    @property
    def id(self) -> str:
        """Names the folder of what is made by this call; changes with the weights."""
        made_of = [self.model, self.steps, sorted(self.args), self.dtype, self.seed, weights_digest(self.model)]
        return f"{Path(self.model).name}-{digest(made_of)}"


@dataclass(frozen=True)
class Slot:
    """One picture to find: its condition, and which of the searches for it."""

    prompt: str
    repeat: int

    @property
    def condition(self) -> str:
        """Names the prompt; a ClassLabel by its id too, as two classes of ImageNet may be called alike."""
        return f"{self.prompt.class_id} {self.prompt}" if isinstance(self.prompt, ClassLabel) else self.prompt

    @property
    def name(self) -> str:
        return f"{self.repeat} | {self.condition}"


class Models:
    """Pipelines, one in memory at a time, and samplers of them."""

    def __init__(self, loading: LoadOptions) -> None:
        self._loading = loading
        self._held: tuple[tuple[str, str], Any] | None = None

    def sampler(self, call: Call, prompts: Sequence[str]) -> Sampler:
        """A sampler of `prompts`; raises DiffscaleError for a model that cannot be loaded."""
        options = self._loading.model_copy(update={"dtype": call.dtype})
        key = (call.model, call.dtype)
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next one takes its place
            self._held = key, load_pipeline(call.model, options)
        device = LoadOptions(device=options.device)
        return make_sampler(self._held[1], prompts, steps=call.steps, pipe_args=dict(call.args), loading=device)


@cache
def weights_digest(model: str) -> str:
    """Twelve digits that change with the files of a shipped model or a folder; empty for a Hub id."""
    where = Path(locate(model))
    if not where.is_dir():
        return ""
    found = hashlib.sha256()
    for path in sorted(path for path in where.rglob("*") if path.suffix in _WEIGHTS and path.name != "figures.json"):
        found.update(f"{path.relative_to(where)} {path.stat().st_size}".encode())
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def shipped_verifiers() -> dict[str, str]:
    """Digests of all shipped networks that are no pipelines: what scores of Shapes depend on."""
    folders = (path for path in sorted(WEIGHTS.iterdir()) if (path / "model.safetensors").exists())
    return {path.name: weights_digest(path.name) for path in folders}
