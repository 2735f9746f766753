"""One loop for all methods, on accelerate: steps, checkpoints, stops, and what is left at the end."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, gather_object
from torch import Tensor

from diffscale import verifiers
from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import locked
from diffscale._util.progress import Progress, silent
from diffscale._util.signals import signals_noted
from diffscale.searches import choose_search
from diffscale.train import guards, optimisation, output, rewards, run_directory, training_data, validation
from diffscale.train.base import Base, load_base
from diffscale.train.guards import Guard
from diffscale.train.methods import METHODS
from diffscale.train.methods.method import TrainContext
from diffscale.train.optimisation import Losses, Optimisation
from diffscale.train.rewards import BadReward, Cost, Mixture, Reward
from diffscale.train.run_directory import Checkpoints, TrainState, list_checkpoints, name_last_checkpoint
from diffscale.train.settings import TrainConfig
from diffscale.train.training_data import TrainingData
from diffscale.train.traits import Searching
from diffscale.train.validation import Validation

PATIENCE: Final = timedelta(days=7)
"""How long a process waits for the others: the first one encodes the data and samples alone, for hours where there are
many; by default the others would give up after ten minutes on GPUs."""
GLOO_LETS_GO: Final = 0.2
"""Seconds in which gloo's thread has let go of the last collective."""
_SHARDED: Final = (DistributedType.DEEPSPEED, DistributedType.FSDP, DistributedType.MEGATRON_LM)


@dataclass(frozen=True)
class Ended:
    """How a call of `train` ended: finished, or stopped by a signal at step `step`; `result` of what is finished."""

    how: Literal["finished", "stopped"]
    step: int
    folder: Path
    result: dict[str, Any] = field(default_factory=dict)


def train(config: TrainConfig, progress: Progress = silent) -> Ended:
    """Train as `config` says, into its `output_dir`; the first process calls `progress`.

    SIGTERM, SIGINT and SIGHUP save a checkpoint after the step at hand and end the call; a second one of a kind does
    not wait for it. Raises DiffscaleError for settings that cannot be met, for a loss, a reward or weights that are not
    finite, naming the last good checkpoint, and for a full disk, which leaves what was written before.
    """
    check_names(config)
    accelerator = make_accelerator(config)
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    with accelerator.main_process_first():
        resumed = run_directory.open_run_directory(config, accelerator.is_main_process)
    with locked(config.output_dir) if accelerator.is_main_process else nullcontext():
        return _train(config, accelerator, resumed, progress)


def _train(config: TrainConfig, accelerator: Accelerator, resumed: Path | None, progress: Progress) -> Ended:
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
    for text in (*config.rewards, *config.validation_verifier):
        verifiers.check(rewards.split_weight(text)[0])
    guards.check(config)
    if isinstance(config, Searching) and config.search is not None:
        choose_search(config.search)
    run_directory.check_trackers(config.report_to)
    optimisation.check_libraries(config)


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
        method = METHODS[config.method]
        if self.rewards:  # a single one as it is, in its own units
            self.reward = self.rewards[0] if len(self.rewards) == 1 else method.combined(self.rewards)
        self.validators = rewards.load(config.validation_verifier, accelerator.device, base.name)
        self.extract = validation.load_features(config, base.name, accelerator.device)
        weights = {reward.name: reward.weight for reward in self.rewards}
        held_out = self.validators[0].name if self.validators else None
        self.guard = Guard(weights, held_out, config.keep_best, config.patience)
        self.why_stopped, self.validated = "", -1
        self.method = method(TrainContext(config, data, self.rewards, self.reward))
        accelerator.gradient_accumulation_steps = self.method.passes
        losses = Losses(base.policy.networks.values(), accelerator.device.type)
        self.optimisation = Optimisation(accelerator, config, list(base.trainable.values()), losses)
        self.checkpoints = Checkpoints(
            accelerator, config, base, self.optimisation, self.method, self.reward, self.guard, self.state
        )
        _measure_decoding(base, self.state.decoding)

    def run(self, resumed: Path | None) -> Ended:
        """All steps from the checkpoint `resumed` on, or from the first."""
        if resumed is not None:
            self.checkpoints.load(resumed)
        self.log = run_directory.Log(self.accelerator, self.config, self.state.step)
        if resumed is None:
            self._validate("before")
        elif self.guard.seen:
            self.validated = int(self.guard.seen[-1]["step"])
            self._validate_if_due()  # a checkpoint is written before its pictures are made
        with signals_noted() as terminated:
            last_saved = self.state.step
            while not self._is_over() and not self.why_stopped:
                self._step(terminated.is_set())
                step = self.state.step
                if self.stop or step % self.config.checkpointing_steps == 0:
                    self._save()
                    last_saved = step
                if self.stop:
                    self._end()
                    return Ended("stopped", step, self.config.output_dir)
                self._validate_if_due()
            if last_saved != self.state.step:
                self._save()
        if self.config.keep_best and self.validated != self.state.step:
            self._validate(f"step-{self.state.step}")
        stopped = self.why_stopped
        self._validate("after", given=True)
        result: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            with self._given_weights():
                result = output.write(
                    self.config, self.base, self.data, self.state, self.log.lines, self.guard.seen, stopped
                )
        self.accelerator.wait_for_everyone()
        self._end()
        return Ended("finished", self.state.step, self.config.output_dir, result)

    def _end(self) -> None:
        """End the process's part in the training; the process group is destroyed when this object is."""
        if self.accelerator.num_processes > 1:
            # gloo's thread needs the GIL to let go of the last collective, and holds a lock meanwhile that destroying
            # the process group waits for with the GIL held (torch 2.13): without a pause both wait for ever at times.
            time.sleep(GLOO_LETS_GO)
        self.accelerator.end_training()

    def _step(self, terminated: bool) -> None:
        """Take one optimiser step; `stop` is set if any process was told to end."""
        passes: list[dict[str, float]] = []
        rate, number, cost = self.optimisation.rate, self.state.step * self.method.passes, Cost()
        try:
            with cost.measured(self.accelerator.device):
                for each in range(number, number + self.method.passes):
                    gathered = self.method.gather(each)
                    passes.append(self.optimisation.one_pass(partial(self.method.loss, gathered)))
        except BadReward as error:
            raise self._stopped(self.state.step + 1, str(error)) from error
        # Means over processes of what they log, the time of the slowest, and whether any is to stop.
        every = gather_object([(run_directory.averaged(passes), cost.seconds, terminated)])
        values, seconds = run_directory.averaged([one[0] for one in every]), max(one[1] for one in every)
        self.stop = any(one[2] for one in every)
        # A scaler of float16 leaves out steps of endless gradients by itself.
        norm = 0.0 if self.accelerator.mixed_precision == "fp16" else values["grad_norm"]
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            why = f"the loss is {values['loss']} and its gradient's norm {values['grad_norm']}"
            raise self._stopped(self.state.step + 1, why)
        if isinstance(self.reward, Mixture):
            self.reward.end_step(torch.stack(gather_object([self.reward.new])).sum(0))
        self.state.step, self.state.seconds = self.state.step + 1, self.state.seconds + seconds
        values = {**values, "lr": rate, "seconds": seconds}
        self.log.add(self.state.step, values)
        self.progress("steps", self.state.step, self.config.max_train_steps, **values)

    def _is_over(self) -> bool:
        most = self.config.max_train_seconds
        return self.state.step >= self.config.max_train_steps or (most is not None and self.state.seconds >= most)

    def _save(self) -> None:
        """Write a checkpoint, unless anything in it is not finite: the last one must be good."""
        self._check_finite()
        self.checkpoints.save()

    def _check_finite(self) -> None:
        broken = [name for name in gather_object([self.checkpoints.not_finite()]) if name]
        if broken:
            raise self._stopped(self.state.step, f"{broken[0]} is not finite")

    def _stopped(self, step: int, why: str) -> DiffscaleError:
        """The error that ends the training at step `step`, from 1; there is a way on from the last checkpoint."""
        folder = self.config.output_dir
        again = "go on from there" if list_checkpoints(folder) else "begin again"
        return DiffscaleError(
            f"Training stopped at step {step} since {why}; {name_last_checkpoint(folder)}: {again} with "
            "a lower learning rate or another reward."
        )

    def _validate_if_due(self) -> None:
        step, every = self.state.step, self.config.validation_steps
        if every and step and step % every == 0 and self.validated != step:
            self._check_finite()
            self._validate(f"step-{step}")

    def _validate(self, name: str, given: bool = False) -> None:
        """Sample the validation prompts, in the first process, and keep the pictures with their scores.

        `given`: with the weights that the run gives, which are no more to be guarded.
        """
        why = ""
        if self.accelerator.is_main_process:
            with self._given_weights() if given else self.optimisation.averaged():
                images = validation.sample(self.base, self.data, self.config)
                weights = self._copied_weights("cpu") if self.config.keep_best and not given else {}
            with self.method.original_rewards():
                prompts = validation.prompts_of_samples(self.data, self.config)
                try:
                    verifiers = [*self.rewards, *self.validators]
                    scores = validation.score(images, prompts, verifiers, self.base.name, self.accelerator.device)
                except BadReward as error:
                    raise self._stopped(self.state.step, str(error)) from error
            if not given:
                spread = {}
                if self.extract is not None:
                    before = validation.load(self.config.output_dir, "before")
                    spread = guards.spread(self.extract, before.images if before else images, images, prompts)
                why = self.guard.see(self.state.step, scores, spread, weights)
            try:
                validation.save(self.config.output_dir, name, Validation(images, scores))
            except OSError as error:
                raise DiffscaleError(
                    f"Pictures cannot be written to {self.config.output_dir} ({error.strerror}): make room; "
                    f"{name_last_checkpoint(self.config.output_dir)}."
                ) from error
        self.why_stopped, self.validated = gather_object([why])[0], self.state.step

    @contextmanager
    def _given_weights(self) -> Iterator[None]:
        """Have the networks be what the run gives until the block ends: the best weights, the average, or the last."""
        if not self.guard.best:
            with self.optimisation.averaged():
                yield
            return
        last = self._copied_weights()
        self.base.load_trainable(self.guard.best)
        try:
            yield
        finally:
            self.base.load_trainable(last)

    def _copied_weights(self, device: str | None = None) -> dict[str, Tensor]:
        """What is trained as it is now, on `device` or where it is."""
        trainable = self.base.trainable.items()
        return {name: torch.empty_like(each, device=device).copy_(each.detach()) for name, each in trainable}


def _measure_decoding(base: Base, cost: Cost) -> None:
    own = base.policy.decode

    def decode(latents: Tensor) -> Tensor:
        with cost.measured(latents.device):
            return own(latents)

    base.policy.decode = decode  # type: ignore[method-assign]
