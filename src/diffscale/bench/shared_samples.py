"""Samples that searches with different verifiers share: a sampler that keeps on disk what it has sampled."""

from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load, save

from diffscale._util.fingerprints import array_digest
from diffscale._util.store import SqliteStore
from diffscale.bench.series import condition_of
from diffscale.samplers.whole import WholeSampler
from diffscale.types import Sampler, State

LEVEL: Final = 0.4
"""Noise level of the x0-predictions that are kept beside samples, which self-supervised verifiers compare them with."""
_TABLE: Final = "CREATE TABLE IF NOT EXISTS samples (name TEXT PRIMARY KEY, forwards INTEGER, tensors BLOB)"


class SharedSampler:
    """`sampler`, which samples no noise of a prompt twice from its first step to its last.

    The file `path` keeps the latents and what they cost, which `forwards` counts again each time. It is of one model
    and call. Raises DiffscaleError for a file that cannot be used.
    """

    def __init__(self, sampler: Sampler, path: Path) -> None:
        self._sampler, self._repeated = sampler, 0
        self._store = SqliteStore(
            path, _TABLE, name="The file", unreadable="remove it, and what it held is made again",
            unwritable="make room and run the same command again",
        )  # fmt: skip

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sampler, name)

    @property
    def forwards(self) -> int:
        """Rows sent through the network, now or when a sample was made that was asked for again."""
        return self._sampler.forwards + self._repeated

    def run(self, state: State, to: int | None = None, record: float | None = None) -> State:
        """As `Sampler.run`; where states at step 0 are run to the end, those that are known are read from the file."""
        if state.step or to is not None:
            return self._sampler.run(state, to, record)
        # A pipeline that can only be run whole records nothing on its way.
        level = record if record is not None or isinstance(self._sampler, WholeSampler) else LEVEL
        rows = zip(state.x, state.key.tolist(), state.prompt_index.tolist(), strict=True)
        names = [array_digest(x, condition_of(self.prompts[row]), f"{key} {level}") for x, key, row in rows]
        marks = ", ".join("?" * len(names))
        known = {
            name: (forwards, load(blob))
            for name, forwards, blob in self._store.read(f"SELECT * FROM samples WHERE name IN ({marks})", names)
        }
        self._repeated += sum(known[name][0] for name in names if name in known)
        if missing := [i for i, name in enumerate(names) if name not in known]:
            before = self._sampler.forwards
            ended = self._sampler.run(state[missing], None, level)
            forwards = (self._sampler.forwards - before) // len(missing)
            for row, i in enumerate(missing):
                kept = {"x": ended.x[row], **({} if ended.recorded is None else {"recorded": ended.recorded[row]})}
                known[names[i]] = forwards, {name: value.detach().cpu().clone() for name, value in kept.items()}
            fresh = [(names[i], forwards, save(known[names[i]][1])) for i in missing]
            self._store.write("INSERT OR REPLACE INTO samples VALUES (?, ?, ?)", fresh)
        found = [known[name][1] for name in names]
        fields: dict[str, Any] = {name: torch.stack([each[name] for each in found]) for name in found[0]}
        fields = {name: value.to(state.x.device) for name, value in fields.items()}
        return State(step=self.steps, key=state.key, prompt_index=state.prompt_index, **fields)
