"""What a training logs of its steps: lines in log.jsonl, and trackers through accelerate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import is_tensorboard_available, is_wandb_available

from diffscale._util.errors import DiffscaleError, first_line
from diffscale._util.files import write_text
from diffscale.train.configs import TrainConfig
from diffscale.train.run_directory import name_last_checkpoint

FILE = "log.jsonl"


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
        self._accelerator, self._path = accelerator, settings.output_dir / FILE
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
                with self._path.open(mode) as file:
                    file.write(text)
        except OSError as error:
            last = name_last_checkpoint(self._path.parent)
            raise DiffscaleError(f"{self._path} cannot be written ({error.strerror}): make room; {last}.") from error


def read_log(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a log, none if it is not there."""
    lines = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            lines.append(dict(json.loads(line)))
        except ValueError:
            break  # the last one, of a run that was killed
    return lines


def averaged(passes: Sequence[dict[str, float]]) -> dict[str, float]:
    """Means of what the passes of one step logged; each name over the passes that have it."""
    names = dict.fromkeys(name for one in passes for name in one)
    values = {name: [one[name] for one in passes if name in one] for name in names}
    return {name: sum(each) / len(each) for name, each in values.items()}
