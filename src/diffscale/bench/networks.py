"""The networks that series share: pipelines, one in memory at a time, verifiers, and workers that have their own."""

from typing import Any

from diffscale.api.workers import Crew
from diffscale.models.load import base_model, load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.types import Verifier
from diffscale.verifiers import load as load_verifier


class Networks:
    """Pipelines and verifiers by name, each loaded when it is first asked for. `device` is the verifiers' own.

    `crew`: the workers that compute searches, None where this process does.
    """

    def __init__(self, device: str, crew: Crew | None = None) -> None:
        self.device, self.crew = device, crew
        self._pipeline: tuple[tuple[str, LoadOptions], Any] | None = None
        self._verifiers: dict[tuple[str, str], Verifier] = {}

    def drop_pipeline(self) -> None:
        """Make room in memory."""
        self._pipeline = None

    def pipeline(self, model: str, loading: LoadOptions) -> Any:
        """The pipeline of a shipped name, folder or Hub id; it takes the place of the one before.

        Raises DiffscaleError for a model that cannot be loaded.
        """
        key = model, LoadOptions(**loading.asked())
        if self._pipeline is None or self._pipeline[0] != key:
            self.drop_pipeline()  # before the next one takes its place
            self._pipeline = key, load_pipeline(*key)
        return self._pipeline[1]

    def verifier(self, text: str, model: str) -> Verifier:
        """Verifier `text` for pictures of `model`; raises DiffscaleError if it cannot be loaded."""
        key = text, base_model(model)
        if key not in self._verifiers:
            self._verifiers[key] = load_verifier(text, device=self.device, image_model=key[1])
        return self._verifiers[key]
