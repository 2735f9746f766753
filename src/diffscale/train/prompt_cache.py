"""Prompts told to samplers and policies by embeddings that were made once, where the pipeline lets them be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from diffscale._util.errors import DiffscaleError
from diffscale._util.fingerprints import network_digest
from diffscale.samplers.windowed.pipeline import WindowedPipeline
from diffscale.train.data.encodings import Embeddings, encode_texts

Progress = Callable[[str, int, int], None]


class Told:
    """The embeddings of `prompts` for the pipeline `pipeline`, kept in `folder`.

    `embeddings` is None where they cannot be kept, since prompts of other lengths have other shapes: then they are
    encoded anew for every batch. `args`: of the pipeline's call, as far as they decide embeddings. `also`: further ones
    of the same pipeline with the same arguments, which are told the same.
    """

    def __init__(
        self,
        pipeline: WindowedPipeline,
        prompts: Iterable[str],
        folder: Path,
        args: Mapping[str, Any],
        progress: Progress | None = None,
        also: Sequence[WindowedPipeline] = (),
    ) -> None:
        self._pipelines = [pipeline, *also]
        prompts = list(dict.fromkeys(prompts))
        self.embeddings: Embeddings | None = None
        with torch.no_grad():
            try:
                pipeline.embed(["", max(prompts, key=len)])
            except DiffscaleError:
                return
        told = None if progress is None else lambda done, of: progress("prompts encoded", done, of)
        self.embeddings = encode_texts(prompts, pipeline.embed, _name(pipeline, args), folder, told=told)

    def tell(self, prompts: Sequence[str]) -> None:
        """From now on rows point into `prompts`, all of which were given before."""
        kept = None if self.embeddings is None else self.embeddings.read(prompts)
        for pipeline in self._pipelines:
            if kept is None:
                with torch.no_grad():
                    pipeline.set_prompts(prompts, {})
            else:
                pipeline.set_embedded_prompts(prompts, kept)


def _name(pipeline: WindowedPipeline, args: Mapping[str, Any]) -> str:
    """What tells these text encoders, and how they are used, from all others."""
    parts = dict(sorted(pipeline.components.items()))
    denoisers = pipeline.denoisers
    networks = {
        name: network_digest(part)
        for name, part in parts.items()
        if isinstance(part, torch.nn.Module) and name not in denoisers and name != "vae"
    }
    tokenizers = {
        name: f"{type(part).__name__} {len(part)}"
        for name, part in parts.items()
        if name.startswith("tokenizer") and part is not None
    }
    return f"{pipeline.class_name} {networks} {tokenizers} {sorted((k, repr(v)) for k, v in args.items())}"
