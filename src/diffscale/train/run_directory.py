"""The folder of a training: opened for a new run or for one that goes on, its checkpoints, and its log.

Of what a checkpoint holds accelerate saves what it prepared but for the weights: frozen ones are the base's, and the
trained ones are written here as safetensors, by name, as the method's samples are. accelerate would pickle both.
"""

import json
import re
import shutil
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final

from accelerate import Accelerator
from accelerate.utils import gather_object, is_tensorboard_available, is_wandb_available
from pydantic import BaseModel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from diffscale._util import config
from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.files import read_json, read_text, replacing, split_lines, write_json, write_text
from diffscale.train import configs
from diffscale.train.base import Base
from diffscale.train.guards import Guard
from diffscale.train.methods.method import Method
from diffscale.train.optimisation import Optimisation
from diffscale.train.rewards import Cost, Mixture, Reward
from diffscale.train.settings import METHODS, TrainConfig

_NAME: Final = re.compile(r"checkpoint-(\d+)")
DISK_ERRORS: Final = (OSError, RuntimeError, SafetensorError)
"""The errors by which Python, torch and safetensors report a disk that takes no more."""


def list_checkpoints(folder: Path) -> list[Path]:
    """The whole checkpoints in the folder of a run, oldest first."""
    paths = [path for path in folder.glob("checkpoint-*") if path.is_dir() and _NAME.fullmatch(path.name)]
    return sorted(paths, key=step_of)


def step_of(path: Path) -> int:
    """The step after which a checkpoint was written."""
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise DiffscaleError(f"{path} is no checkpoint: give a folder checkpoint-N of a run, or latest.")
    return int(match[1])


def choose_checkpoint(folder: Path, asked: str) -> Path | None:
    """The checkpoint that `--resume_from_checkpoint` names: latest, a name in `folder`, or a path; None if there is no
    latest. Raises DiffscaleError if there is none of that name."""
    there = list_checkpoints(folder)
    if asked == "latest":
        return there[-1] if there else None
    path = next((path for path in (folder / asked, Path(asked)) if path.is_dir()), None)
    if path is None:
        names = ", ".join(path.name for path in there) or "none"
        raise DiffscaleError(f"There is no checkpoint {asked!r}: give latest or one of {folder} (it has {names}).")
    step_of(path)
    return path


def name_last_checkpoint(folder: Path) -> str:
    """A sentence that names the last whole checkpoint."""
    there = list_checkpoints(folder)
    return f"the last good checkpoint is {there[-1]}" if there else "there is no checkpoint yet"


def open_run_directory(settings: TrainConfig, first: bool) -> Path | None:
    """The checkpoint to go on from, None if there is none; the folder is made, and the settings written there.

    `first`: whether this is the process that writes. Raises DiffscaleError for a folder that holds another run, and for
    one that cannot be written to.
    """
    folder, asked = settings.output_dir, settings.resume_from_checkpoint
    file = folder / "config.yaml"
    try:
        resumed = None if asked is None else choose_checkpoint(folder, asked)
        if not first:
            return resumed
        if resumed is None and (list_checkpoints(folder) or (folder / "result.json").exists()):
            raise DiffscaleError(
                f"{folder} holds a training: go on with --resume_from_checkpoint latest, or choose another "
                "--output_dir."
            )
        # A checkpoint may be of another folder.
        for run in () if resumed is None else dict.fromkeys((folder, resumed.parent)):
            before = run / file.name
            if before.exists() and (changed := settings.difference(configs.load(before))):
                raise DiffscaleError(
                    f"{run} holds a training with other settings ({changed}): go on with those, or choose another "
                    "--output_dir."
                )
        if not (resumed is not None and resumed.parent == folder) and _is_foreign(folder):
            raise DiffscaleError(f"{folder} exists and is not a training of diffscale: choose another --output_dir.")
        for unfinished in (*folder.glob(".checkpoint-*"), *folder.glob(".weights-*")):  # of runs that were killed
            shutil.rmtree(unfinished, ignore_errors=True)
        config.save(settings, file)
    except OSError as error:
        raise DiffscaleError(f"{folder} cannot be written to ({error.strerror}): choose another folder.") from error
    return resumed


def _is_foreign(folder: Path) -> bool:
    """Whether there is something in a folder that is no training, not even one that was only begun."""
    file = folder / "config.yaml"
    if file.exists():
        return config.read(file).get("method") not in METHODS
    return folder.exists() and any(path.name != ".lock" for path in folder.iterdir())


_WEIGHTS: Final = "trained.safetensors"
_AVERAGE: Final = "average.safetensors"
_BEST: Final = "best.safetensors"
_STATE: Final = "state.json"


@dataclass
class TrainState:
    """How far a training is: optimiser steps, seconds of steps, and what rewards and decoding for them cost."""

    step: int = 0
    seconds: float = 0.0
    rewards: Cost = field(default_factory=Cost)
    decoding: Cost = field(default_factory=Cost)


class _Saved(BaseModel):
    """What `Checkpoints` writes as `state.json`."""

    step: int
    seconds: float
    rewards: dict[str, Any]
    decoding: dict[str, Any]
    processes: int
    statistics: Any
    mixture: Any
    validations: list[dict[str, Any]]


@dataclass(frozen=True)
class Checkpoints:
    """Saves and loads everything that changes in a training."""

    accelerator: Accelerator
    settings: TrainConfig
    base: Base
    optimisation: Optimisation
    method: Method
    reward: Reward | Mixture | None
    guard: Guard
    state: TrainState

    def __post_init__(self) -> None:
        self.accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        self.accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())

    def not_finite(self) -> str:
        """The first of this process's tensors that `save` would write and that is not finite; empty if all are."""
        averages = {f"the average of weights {name}": tensor for name, tensor in self.optimisation.average().items()}
        kept = {**self.base.trainable, **averages, **self.method.state_dict()}
        finite = [tensor.detach().isfinite().all() for tensor in kept.values()]  # at once, so that a GPU need not wait
        return next((name for name, good in zip(kept, finite, strict=True) if not good), "")

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
            content = read_json(path / _STATE, _Saved)
            if content is None:
                raise ValueError(f"{_STATE} is broken")
            if (path / _AVERAGE).exists():
                self.optimisation.load_average(load_file(path / _AVERAGE), content["step"])
            self.guard.seen = content["validations"]
            self.guard.best = load_file(path / _BEST) if (path / _BEST).exists() else {}
            own = path / self._samples_file
            self.method.load_state_dict(load_file(own) if own.exists() else {})
            if broken := self.not_finite():
                raise ValueError(f"{broken} is not finite")
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
        if self.guard.best:
            save_file(_contiguous(self.guard.best), folder / _BEST)
        if self.settings.adapter is not None:
            self.base.save_lora(folder)
        content = {
            **asdict(self.state),
            "processes": self.accelerator.num_processes,
            "statistics": self.method.statistics(),
            "mixture": self.reward.state_dict() if isinstance(self.reward, Mixture) else None,
            "validations": self.guard.seen,
        }
        write_json(folder / _STATE, content, None)


def _contiguous(tensors: Any) -> dict[str, Tensor]:
    """Tensors by name, as files take them."""
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


LOG_FILE = "log.jsonl"


def check_trackers(report_to: Sequence[str]) -> None:
    """Raises DiffscaleError for a tracker whose library is not installed."""
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in report_to:
        if not there[name]():
            raise DiffscaleError(f"Reporting to {name} needs its library: pip install {name}.")


class Log:
    """`log.jsonl` in the folder of a run, of the first process alone, and the trackers.

    Raises DiffscaleError if it cannot be written, or a tracker does not begin.
    """

    def __init__(self, accelerator: Accelerator, settings: TrainConfig, after: int) -> None:
        """Lines of steps above `after`, from which the run goes on, are taken back."""
        self._accelerator, self._path = accelerator, settings.output_dir / LOG_FILE
        self.lines = [line for line in read_log(self._path) if line["step"] <= after] if after else []
        self._write("w", "".join(json.dumps(line) + "\n" for line in self.lines))
        if settings.report_to:
            flat = {
                name: value if isinstance(value, bool | int | float | str) else json.dumps(value)
                for name, value in settings.model_dump(mode="json").items()
            }
            try:
                accelerator.init_trackers("diffscale-train", flat)
            except Exception as error:  # each has errors of its own
                raise DiffscaleError(
                    f"Reporting to {', '.join(settings.report_to)} cannot begin ({first_line(error)}): mend that, such "
                    "as by logging in, or leave --report_to out."
                ) from error

    def add(self, step: int, values: dict[str, float]) -> None:
        """Log one step."""
        line: dict[str, Any] = {"step": step, **values}
        self.lines.append(line)
        self._accelerator.log(values, step=step)
        self._write("a", json.dumps(line) + "\n")

    def _write(self, mode: str, text: str) -> None:
        if not self._accelerator.is_main_process:
            return
        try:
            if mode == "w":
                write_text(self._path, text)
            else:
                with self._path.open(mode, encoding="utf-8") as file:
                    file.write(text)
        except OSError as error:
            last = name_last_checkpoint(self._path.parent)
            raise DiffscaleError(f"{self._path} cannot be written ({error.strerror}): make room; {last}.") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, none if it is not there."""
    lines = []
    for text in split_lines(read_text(path)) if path.exists() else []:
        try:
            line = dict(json.loads(text))
            lines.append({"step": line.pop("step"), **line})
        except (ValueError, TypeError, KeyError):
            break  # the last one, of a run that was killed
    return lines


def averaged(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what the passes of one step logged; each name over the passes that have it."""
    names = dict.fromkeys(name for one in passes for name in one)
    values = {name: [one[name] for one in passes if name in one] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}
