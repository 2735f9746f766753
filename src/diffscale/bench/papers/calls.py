"""A model and how it is called, which decides a sample together with its noise; samplers of it, opened when needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffscale.api import make_sampler
from diffscale.bench.papers import trained
from diffscale.bench.papers.digests import digest, weights_digest
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.types import ClassLabel, Sampler


@dataclass(frozen=True)
class Call:
    """`args`: pairs of name and value, so that calls can be compared. `steps` None: as the model states; `scheduler`
    None: the pipeline's own."""

    model: str
    steps: int | None
    args: tuple[tuple[str, Any], ...]
    dtype: str
    seed: int
    scheduler: str | None = None

    @property
    def id(self) -> str:
        """Names the folder of what is made by this call; changes with the weights, and lies with a training's."""
        weights = weights_digest(trained.base_of(self.model))
        made_of = [self.model, self.steps, sorted(self.args), self.dtype, self.seed, weights]
        made_of += [] if self.scheduler is None else [self.scheduler]
        training = trained.id_in(self.model)
        if training is not None:
            return f"{trained.FOLDER}/{training}/{digest(made_of)}"
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

    def __init__(self, loading: LoadOptions, cache: Path | None = None) -> None:
        """`cache`: where trainings are kept, for models that are made by one."""
        self._loading, self._cache = loading, cache
        self._held: tuple[tuple[str, str, str | None], Any] | None = None

    def drop(self) -> None:
        """Make room in memory."""
        self._held = None

    def sampler(self, call: Call, prompts: Sequence[str]) -> Sampler:
        """A sampler of `prompts`; raises DiffscaleError for a model that cannot be loaded."""
        options = self._loading.model_copy(update={"dtype": call.dtype, "scheduler": call.scheduler})
        key = (call.model, call.dtype, call.scheduler)
        if self._held is None or self._held[0] != key:
            self._held = None  # before the next one takes its place
            self._held = key, load_pipeline(trained.located(call.model, self._cache), options)
        device = LoadOptions(device=options.device)
        return make_sampler(self._held[1], prompts, steps=call.steps, pipe_args=dict(call.args), loading=device)
