"""All that a checkpoint holds, written and read back: weights, optimiser, schedule, RNG, rewards, and how far it is.

accelerate saves what it prepared but for the weights: frozen ones are the base's, and the trained ones are written here
as safetensors, by name, as the method's samples are. accelerate would pickle both.
"""

from __future__ import annotations

import json
import shutil
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.files import replacing
from diffscale.train.base import Base
from diffscale.train.configs import TrainConfig
from diffscale.train.methods import Method
from diffscale.train.optimisation import Optimisation
from diffscale.train.rewards import Cost, Mixture, Reward
from diffscale.train.run_directory import DISK_ERRORS, list_checkpoints, name_last_checkpoint

_WEIGHTS: Final = "trained.safetensors"
_AVERAGE: Final = "average.safetensors"
_STATE: Final = "state.json"


@dataclass
class TrainState:
    """How far a training is: optimiser steps, seconds of steps, and what rewards and decoding for them cost."""

    step: int = 0
    seconds: float = 0.0
    rewards: Cost = field(default_factory=Cost)
    decoding: Cost = field(default_factory=Cost)


@dataclass(frozen=True)
class Checkpoints:
    """Saves and loads everything that changes in a training."""

    accelerator: Accelerator
    settings: TrainConfig
    base: Base
    optimisation: Optimisation
    method: Method
    reward: Reward | Mixture | None
    state: TrainState

    def __post_init__(self) -> None:
        self.accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        self.accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def save(self) -> None:
        """Write checkpoint-N of the step, and only then remove the oldest above `--checkpoints_total_limit`.

        To be called by all processes. Raises DiffscaleError if the disk does not take it; what was there before stays.
        """
        run, first = self.settings.output_dir, self.accelerator.is_main_process
        wait = self.accelerator.wait_for_everyone
        place = run / f"checkpoint-{self.state.step}"
        try:
            with replacing(place) if first else nullcontext(place) as fresh:
                folder = Path(gather_object([str(fresh)])[0])  # where the first process writes
                if first:
                    folder.mkdir()
                wait()
                self._write(folder)
                wait()
            if first and (limit := self.settings.checkpoints_total_limit) is not None:
                # Where a run went on from an earlier checkpoint, later ones may be among the others.
                others = [path for path in list_checkpoints(run) if path != place]
                for path in others[: max(0, len(others) + 1 - limit)]:
                    shutil.rmtree(path, ignore_errors=True)
            wait()
        except DISK_ERRORS as error:
            free = ""
            with suppress(OSError):
                free = f", {shutil.disk_usage(run).free / 2**20:.0f} MiB free"
            raise DiffscaleError(
                f"A checkpoint could not be written to {run} ({first_line(error)}{free}): {name_last_checkpoint(run)}; "
                "make room and go on with --resume_from_checkpoint latest."
            ) from error

    def load(self, path: Path) -> None:
        """Go on from a checkpoint; raises DiffscaleError if it cannot be read or is of another training."""
        try:
            self.base.load_trainable(load_file(path / _WEIGHTS))
            self.accelerator.load_state(str(path))
            content = json.loads((path / _STATE).read_text())
            if (path / _AVERAGE).exists():
                self.optimisation.load_average(load_file(path / _AVERAGE), content["step"])
            own = path / self._samples_file
            self.method.load_state_dict(load_file(own) if own.exists() else {})
            self.state.step, self.state.seconds = content["step"], content["seconds"]
            for name in ("rewards", "decoding"):
                vars(getattr(self.state, name)).update(content[name])
        except (OSError, ValueError, KeyError, RuntimeError, EOFError, UnpicklingError, SafetensorError) as error:
            raise DiffscaleError(
                f"The checkpoint {path} cannot be read ({first_line(error)}): give an earlier one."
            ) from error
        if content["processes"] != self.accelerator.num_processes:
            raise DiffscaleError(f"{path} is of {content['processes']} processes: go on with as many.")
        self.method.load_statistics(content["statistics"])
        if isinstance(self.reward, Mixture):
            self.reward.load_state_dict(content["mixture"])

    @property
    def _samples_file(self) -> str:
        return f"method-{self.accelerator.process_index}.safetensors"

    def _write(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if samples := self.method.state_dict():
            save_file(_contiguous(samples), folder / self._samples_file)
        if not self.accelerator.is_main_process:
            return
        save_file(_contiguous(self.base.trainable), folder / _WEIGHTS)
        if average := self.optimisation.average():
            save_file(_contiguous(average), folder / _AVERAGE)
        if self.settings.adapter is not None:
            self.base.save_lora(folder)
        content = {
            **asdict(self.state),
            "processes": self.accelerator.num_processes,
            "statistics": self.method.statistics(),
            "mixture": self.reward.state_dict() if isinstance(self.reward, Mixture) else None,
        }
        (folder / _STATE).write_text(json.dumps(content))


def _contiguous(tensors: Any) -> dict[str, Tensor]:
    """Tensors by name, as files take them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
