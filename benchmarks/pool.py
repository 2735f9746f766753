"""A pool of pictures that benchmarks of verifiers share: n samples of every prompt, and what verifiers say of them.

Random search of any budget up to n is a part of it. Made once, block by block, and kept; a verifier added later scores
the same pictures. What made them is written beside them: a folder of another model, call or seed is refused, and scores
are made again when the weights of a shipped verifier changed.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffscale_shapes.prompts import class_prompts
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file, save_file
from scipy.stats import rankdata
from torch import Tensor, nn

from diffscale._util.fingerprints import json_digest, network_digest
from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.digests import shipped_verifiers
from diffscale.bench.shared_samples import LEVEL
from diffscale.engine import noise
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.types import NeedsIntermediateX0, Verifier
from diffscale.verifiers import load

MODEL = "shapes-flux"
BATCH = 64

CLASS_PROMPTS = class_prompts()
"""The 48 classes as prompts of a text-to-image model."""


@dataclass(frozen=True)
class Pool:
    """`n` pictures of each of `prompts`, in files of `folder`, prompt after prompt."""

    folder: Path
    prompts: Sequence[str]
    n: int
    seed: int = 0

    def pictures(self, row: int) -> tuple[Tensor, Tensor]:
        """Pictures of prompt number `row` and of their x0-predictions at `LEVEL`, [n, 3, 64, 64] in [0, 1]."""
        held = load_file(self._path(row))
        return held["final"].float() / 255, held["recorded"].float() / 255

    @torch.no_grad()
    def make(self) -> None:
        """Sample what is missing.

        Raises ValueError if the folder holds pictures of another model, call, seed, number or list of prompts.
        """
        pipe = load_pipeline(MODEL, LoadOptions(device="cpu"))
        call = plain_call(pipe)
        self._claim(
            {
                "model": MODEL,
                "weights": [network_digest(part) for part in pipe.components.values() if isinstance(part, nn.Module)],
                "call": {"num_inference_steps": call.steps, **call.args},
                "seed": self.seed,
                "n": self.n,
                "level": LEVEL,
                "prompts": [str(prompt) for prompt in self.prompts],
            }
        )
        missing = [row for row in range(len(self.prompts)) if not self._path(row).exists()]
        sampler = DiffusersSampler(pipe, self.prompts, call.steps, call.args)
        for row in track(missing, f"{self.n} pictures a prompt"):
            root = noise.root(self.seed)
            keys = torch.tensor([noise.fold(root, self.prompts[row], "pool", i) for i in range(self.n)])
            made = [self._sample(sampler, row, part) for part in keys.split(BATCH)]
            final, recorded = (torch.cat(each) for each in zip(*made, strict=True))
            fresh = self._path(row).with_suffix(".new")
            save_file({"final": final, "recorded": recorded}, fresh)
            fresh.replace(self._path(row))

    def _claim(self, made: dict[str, Any]) -> None:
        path = self.folder / "pool.json"
        text = json.dumps(made, indent=2, default=str) + "\n"
        if path.exists() and path.read_text() != text:
            raise ValueError(f"{self.folder} holds pictures made otherwise (see {path}); give another folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @torch.no_grad()
    def scores(self, name: str) -> NDArray[np.float64]:
        """What verifier `name` gives every picture, [prompts, n]."""
        verifier = load(name, image_model=MODEL)
        path = self.folder / f"scores {name.replace('/', '_')} {json_digest(shipped_verifiers())}.npy"
        if not path.exists():
            rows = range(len(self.prompts))
            found = np.array([self._score(verifier, row) for row in track(rows, name)])
            np.save(path, found)
        return np.asarray(np.load(path), float)

    def _score(self, verifier: Verifier, row: int) -> NDArray[np.float64]:
        found = []
        for images, recorded in zip(*(given.split(BATCH) for given in self.pictures(row)), strict=True):
            more = [recorded] if isinstance(verifier, NeedsIntermediateX0) else []
            found.append(verifier(images, [self.prompts[row]] * len(images), *more).double().flatten())
        return torch.cat(found).numpy()

    def _sample(self, sampler: DiffusersSampler, row: int, keys: Tensor) -> tuple[Tensor, Tensor]:
        state = sampler.run(sampler.prior(keys, torch.full((len(keys),), row)), None, LEVEL)
        assert state.recorded is not None
        return eight_bit(sampler.decode(state.x)), eight_bit(sampler.decode(state.recorded))

    def _path(self, row: int) -> Path:
        return self.folder / f"{row:04d}.safetensors"


def mean_ranks(scores: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The ensemble's score, of the scores of its members: mean rank within the pool that the last axis is, over n."""
    return np.asarray(np.mean([rankdata(each, axis=-1) for each in scores], axis=0)) / scores[0].shape[-1]
