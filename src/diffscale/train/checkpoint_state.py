"""All that a checkpoint holds, written and read back: weights, optimiser, schedule, RNG, rewards, and how far it is."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffscale._util.errors import DiffscaleError, first_line
from diffscale.train import checkpoints
from diffscale.train.base import Base
from diffscale.train.configs import TrainConfig
from diffscale.train.methods import Method
from diffscale.train.optimisation import Optimisation
from diffscale.train.rewards import Mixture, Reward

_WEIGHTS: Final = "trained.safetensors"
_AVERAGE: Final = "average.safetensors"
_STATE: Final = "state.json"


@dataclass
class Progress:
    """How far a training is: optimiser steps, seconds of steps, and of rewards and decoding for them."""

    step: int = 0
    seconds: float = 0.0
    reward_seconds: float = 0.0
    decode_seconds: float = 0.0
    pictures: int = 0


@dataclass(frozen=True)
class State:
    """Everything that changes in a training."""

    accelerator: Accelerator
    settings: TrainConfig
    base: Base
    optimisation: Optimisation
    method: Method
    reward: Reward | Mixture | None
    progress: Progress

    def save(self) -> None:
        """Write checkpoint-N of the step; raises DiffscaleError if the disk does not take it.

        To be called by all processes. What was there stays until the new one is whole.
        """
        folder, step = self.settings.output_dir, self.progress.step
        writing = checkpoints.Writing(folder, step, self.settings.checkpoints_total_limit)
        first, wait = self.accelerator.is_main_process, self.accelerator.wait_for_everyone

        def write() -> None:
            if first:
                writing.begin()
            wait()
            self._write(writing.fresh)
            wait()
            if first:
                writing.done()
            wait()

        checkpoints.written(write, writing, folder)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises DiffscaleError if it cannot be read or is of another training."""
        try:
            self.base.load_trainable(load_file(path / _WEIGHTS))
            self.accelerator.load_state(str(path))
            said = json.loads((path / _STATE).read_text())
            if (path / _AVERAGE).exists():
                self.optimisation.load_average(load_file(path / _AVERAGE), said["progress"]["step"])
            own = path / self._own
            self.method.load_state_dict(load_file(own) if own.exists() else {})
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
            raise DiffscaleError(
                f"The checkpoint {path} cannot be read ({first_line(error)}): give an earlier one."
            ) from error
        if said["processes"] != self.accelerator.num_processes:
            raise DiffscaleError(f"{path} is of {said['processes']} processes: go on with as many.")
        self.method.load_statistics(said["statistics"])
        if isinstance(self.reward, Mixture):
            self.reward.load_state_dict(said["rewards"])
        for name, value in said["progress"].items():
            setattr(self.progress, name, value)

    @property
    def _own(self) -> str:
        return f"method-{self.accelerator.process_index}.safetensors"

    def _write(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if held := {name: tensor.contiguous() for name, tensor in self.method.state_dict().items()}:
            save_file(held, folder / self._own)
        if not self.accelerator.is_main_process:
            return
        save_file(kept(dict(self.base.trainable)), folder / _WEIGHTS)
        if average := self.optimisation.average():
            save_file(kept(average), folder / _AVERAGE)
        if self.settings.adapter is not None:
            self.base.save_lora(folder)
        (folder / _STATE).write_text(
            json.dumps(
                {
                    "progress": vars(self.progress),
                    "processes": self.accelerator.num_processes,
                    "statistics": self.method.statistics(),
                    "rewards": self.reward.state_dict() if isinstance(self.reward, Mixture) else None,
                }
            )
        )


def leave_weights(accelerator: Accelerator) -> None:
    """Have accelerate save and load no weights: frozen ones are the base's, and the others are written here."""

    def before_saving(models: list[Any], weights: list[Any], folder: str) -> None:
        weights.clear()

    def before_loading(models: list[Any], folder: str) -> None:
        models.clear()

    accelerator.register_save_state_pre_hook(before_saving)
    accelerator.register_load_state_pre_hook(before_loading)


def kept(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors as files take them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
