"""One loop for all methods, on accelerate: steps, checkpoints, stops, and what is left at the end.

Of what a checkpoint holds accelerate saves what it prepared but for the weights: frozen ones are the base's, and the
trained ones are written here as safetensors, by name, as the method's samples are. accelerate would pickle both.
"""

from __future__ import annotations

import json
import math
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import (
    DistributedType,
    InitProcessGroupKwargs,
    ProjectConfiguration,
    gather_object,
    is_bnb_available,
    is_tensorboard_available,
    is_wandb_available,
)
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, explained, first_line
from diffscale._util.files import replacing
from diffscale._util.progress import Progress, silent
from diffscale.registry import parse
from diffscale.searches import SEARCHES
from diffscale.train import output, rewards, run_directory, training_data, validation
from diffscale.train.base import Base, load_base, on_cpu
from diffscale.train.configs import Sharpening, TrainConfig
from diffscale.train.methods import METHODS
from diffscale.train.optimisation import Losses, Optimisation
from diffscale.train.rewards import BadReward, Cost, Mixture, Reward
from diffscale.train.run_directory import DISK_ERRORS, TrainState, list_checkpoints, name_last_checkpoint
from diffscale.train.training_data import TrainingData
from diffscale.train.validation import Validation

PATIENCE: Final = timedelta(days=7)
"""How long a process waits for the others: the first one encodes the data and samples alone, for hours where there are
many; by default the others would give up after ten minutes on GPUs."""
_WEIGHTS: Final = "trained.safetensors"
_AVERAGE: Final = "average.safetensors"
_STATE: Final = "state.json"
_SHARDED: Final = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Ended:
    """How a call of `train` ended: finished, or stopped by SIGTERM at step `step`; `result` of what is finished."""

    how: Literal["finished", "stopped"]
    step: int
    folder: Path
    result: dict[str, Any] = field(default_factory=dict)


def train(config: TrainConfig, progress: Progress = silent) -> Ended:
    """Train as `config` says, into its `output_dir`; the first process calls `progress`.

    SIGTERM saves a checkpoint after the step at hand and ends the call. Raises DiffscaleError for settings that cannot
    be met, for a loss or reward that is not finite, naming the last good checkpoint, and for a full disk, which leaves
    what was written before.
    """
    check_names(config)
    accelerator = make_accelerator(config)
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    with accelerator.main_process_first():
        resumed = run_directory.open_run_directory(config, accelerator.is_main_process)
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    progress = progress if accelerator.is_main_process else silent
    dataset = training_data.load_data(config)
    base = load_base(config, accelerator.mixed_precision, str(accelerator.device))
    # The first one encodes, and the others find it done.
    with accelerator.main_process_first():
        process, processes = accelerator.process_index, accelerator.num_processes
        data = training_data.prepare(config, base, dataset, process, processes, progress)
    return _Training(config, accelerator, base, data, progress).run(resumed)


def check_names(config: TrainConfig) -> None:
    """Raises DiffscaleError for names that are none and libraries that are missing, before anything is loaded."""
    for text in config.rewards:
        verifiers.check(rewards.split_weight(text)[0])
    if isinstance(config, Sharpening) and config.search is not None:
        parse(config.search, "search", SEARCHES)
    there = {"tensorboard": is_tensorboard_available, "wandb": is_wandb_available}
    for name in config.report_to:
        if not there[name]():
            raise DiffscaleError(f"Reporting to {name} needs its library: pip install {name}.")
    if config.use_8bit_adam and not is_bnb_available():
        raise DiffscaleError("8-bit AdamW needs the library bitsandbytes: pip install bitsandbytes.")


def make_accelerator(config: TrainConfig) -> Accelerator:
    """The process as accelerate sees it; raises DiffscaleError for what it cannot do."""
    project = ProjectConfiguration(str(config.output_dir), str(config.output_dir / config.logging_dir))
    with explained("accelerate cannot run as asked: {why}", ValueError, ImportError):
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            log_with=list(config.report_to) or None,
            project_config=project,
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
    if accelerator.distributed_type in _SHARDED:
        raise DiffscaleError(
            f"accelerate is configured for {accelerator.distributed_type.value}, and trainings here keep whole weights "
            "in every process: choose multi-GPU, or none, with `accelerate config`."
        )
    return accelerator


class _Training:
    """A training on its way."""

    def __init__(
        self, config: TrainConfig, accelerator: Accelerator, base: Base, data: TrainingData, progress: Progress
    ) -> None:
        self.config, self.accelerator, self.base, self.data = config, accelerator, base, data
        self.progress, self.state = progress, TrainState()
        self.rewards = rewards.load(config.rewards, accelerator.device, base.name, self.state.rewards)
        self.reward: Reward | Mixture | None = None
        if self.rewards:  # a single one as it is, in its own units
            self.reward = self.rewards[0] if len(self.rewards) == 1 else Mixture(self.rewards)
        self.method = METHODS[config.method](config, data, self.rewards, self.reward)
        accelerator.gradient_accumulation_steps = self.method.passes
        losses = Losses(base.policy.networks.values(), accelerator.device.type)
        self.optimisation = Optimisation(accelerator, config, list(base.trainable.values()), losses)
        accelerator.register_save_state_pre_hook(lambda models, weights, folder: weights.clear())
        accelerator.register_load_state_pre_hook(lambda models, folder: models.clear())
        base.policy.decoding = self.state.decoding

    def run(self, resumed: Path | None) -> Ended:
        """All steps from the checkpoint `resumed` on, or from the first."""
        if resumed is not None:
            self._load(resumed)
        self.log = run_directory.Log(self.accelerator, self.config, self.state.step)
        if resumed is None:
            self._validate("before")
        with _sigterm_event() as terminated:
            last_saved = self.state.step
            while not self._is_over():
                self._step(terminated.is_set())
                step = self.state.step
                if self.stop or step % self.config.checkpointing_steps == 0:
                    self._save()
                    last_saved = step
                if self.stop:
                    self.accelerator.end_training()
                    return Ended("stopped", step, self.config.output_dir)
                if self.config.validation_steps and step % self.config.validation_steps == 0:
                    self._validate(f"step-{step}")
            if last_saved != self.state.step:
                self._save()
        self._validate("after")
        result: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            with self.optimisation.averaged():
                result = output.write(self.config, self.base, self.data, self.state, self.log.lines)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return Ended("finished", self.state.step, self.config.output_dir, result)

    def _step(self, terminated: bool) -> None:
        """Take one optimiser step; `stop` is set if any process received SIGTERM."""
        passes: list[dict[str, float]] = []
        rate, number, cost = self.optimisation.rate, self.state.step * self.method.passes, Cost()
        try:
            with cost.measured(self.accelerator.device):
                for each in range(number, number + self.method.passes):
                    gathered = self.method.gather(each)
                    passes.append(self.optimisation.one_pass(partial(self.method.loss, gathered)))
        except BadReward as error:
            raise self._not_finite(str(error)) from error
        # Means over processes of what they log, the time of the slowest, and whether any is to stop.
        every = gather_object([(run_directory.averaged(passes), cost.seconds, terminated)])
        values, seconds = run_directory.averaged([one[0] for one in every]), max(one[1] for one in every)
        self.stop = any(one[2] for one in every)
        # A scaler of float16 leaves out steps of endless gradients by itself.
        norm = 0.0 if self.accelerator.mixed_precision == "fp16" else values["grad_norm"]
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise self._not_finite(f"the loss is {values['loss']} and its gradient's norm {values['grad_norm']}")
        if isinstance(self.reward, Mixture):
            self.reward.end_step(torch.stack(gather_object([self.reward.new])).sum(0))
        self.state.step, self.state.seconds = self.state.step + 1, self.state.seconds + seconds
        values = {**values, "lr": rate, "seconds": seconds}
        self.log.add(self.state.step, values)
        self.progress("steps", self.state.step, self.config.max_train_steps, **values)

    def _save(self) -> None:
        """Write checkpoint-N of the step, and only then remove the oldest above `--checkpoints_total_limit`.

        To be called by all processes. Raises DiffscaleError if the disk does not take it; what was there before stays.
        """
        run, first = self.config.output_dir, self.accelerator.is_main_process
        wait = self.accelerator.wait_for_everyone
        place = run / f"checkpoint-{self.state.step}"
        try:
            with replacing(place) if first else nullcontext(place) as fresh:
                folder = Path(gather_object([str(fresh)])[0])  # where the first process writes
                if first:
                    folder.mkdir()
                wait()
                self._write_checkpoint(folder)
                wait()
            if first and (limit := self.config.checkpoints_total_limit) is not None:
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

    def _load(self, path: Path) -> None:
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

    def _write_checkpoint(self, folder: Path) -> None:
        self.accelerator.save_state(str(folder))
        if samples := self.method.state_dict():
            save_file(on_cpu(samples), folder / self._samples_file)
        if not self.accelerator.is_main_process:
            return
        save_file(on_cpu(self.base.trainable), folder / _WEIGHTS)
        if average := self.optimisation.average():
            save_file(on_cpu(average), folder / _AVERAGE)
        if self.config.adapter is not None:
            self.base.save_lora(folder)
        content = {
            **asdict(self.state),
            "processes": self.accelerator.num_processes,
            "statistics": self.method.statistics(),
            "mixture": self.reward.state_dict() if isinstance(self.reward, Mixture) else None,
        }
        (folder / _STATE).write_text(json.dumps(content))

    def _is_over(self) -> bool:
        most = self.config.max_train_seconds
        return self.state.step >= self.config.max_train_steps or (most is not None and self.state.seconds >= most)

    def _not_finite(self, what: str) -> DiffscaleError:
        return DiffscaleError(
            f"Training stopped at step {self.state.step + 1} since {what}; "
            f"{name_last_checkpoint(self.config.output_dir)}: go on from there with a lower learning rate or another "
            "reward."
        )

    def _validate(self, name: str) -> None:
        """Sample the validation prompts, in the first process, and keep the pictures with their scores."""
        if self.accelerator.is_main_process:
            with self.optimisation.averaged():
                images = validation.sample(self.base, self.data, self.config)
            with self.method.original_rewards():
                scores = validation.score(images, self.data, self.rewards, self.accelerator.device)
            try:
                validation.save(self.config.output_dir, name, Validation(images, scores))
            except OSError as error:
                raise DiffscaleError(
                    f"Pictures cannot be written to {self.config.output_dir} ({error.strerror}): make room; "
                    f"{name_last_checkpoint(self.config.output_dir)}."
                ) from error
        self.accelerator.wait_for_everyone()


@contextmanager
def _sigterm_event() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; threads other than the first cannot listen for it."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)
