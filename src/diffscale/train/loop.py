"""One loop for all methods, on accelerate: steps, checkpoints, stops, and what is left at the end."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.train import (
    checkpoint_state,
    checkpoints,
    logs,
    output,
    rewards,
    run_directory,
    training_data,
    validation,
)
from diffscale.train.base import Base, load_base
from diffscale.train.configs import TrainConfig
from diffscale.train.methods import METHODS, Stage
from diffscale.train.optimisation import Losses, Optimisation
from diffscale.train.rewards import BadReward, Mixture, Reward
from diffscale.train.training_data import Materials

Told = Callable[[str, int, int, dict[str, float]], None]


@dataclass(frozen=True)
class Ended:
    """How a call of `train` ended: finished, or stopped by SIGTERM at step `step`; `result` of what is finished."""

    how: Literal["finished", "stopped"]
    step: int
    folder: Path
    result: dict[str, Any] = field(default_factory=dict)


def train(config: TrainConfig, told: Told | None = None) -> Ended:
    """Train as `config` says, into its `output_dir`.

    `told(what, done, of, values)`: progress, of the first process. SIGTERM saves a checkpoint after the step at hand
    and ends the call. Raises DiffscaleError for settings that cannot be met, for a loss or reward that is not finite,
    naming the last good checkpoint, and for a full disk, which leaves what was written before.
    """
    run_directory.check(config)
    accelerator = run_directory.accelerator_of(config)
    config = config.model_copy(update={"mixed_precision": accelerator.mixed_precision})
    with accelerator.main_process_first():
        resumed = run_directory.opened(config, accelerator.is_main_process)
    if config.allow_tf32:
        torch.backends.cuda.matmul.allow_tf32 = True
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    say = told if told is not None and accelerator.is_main_process else _silent
    dataset = training_data.load_data(config)
    base = load_base(config, accelerator.mixed_precision, str(accelerator.device))
    # The first one encodes, and the others find it done.
    with accelerator.main_process_first():
        made = training_data.prepare(
            config, base, dataset, accelerator.process_index, accelerator.num_processes,
            lambda what, done, of: say(what, done, of, {}),
        )  # fmt: skip
    return _Training(config, accelerator, base, made, say).run(resumed)


class _Training:
    """A training on its way."""

    def __init__(self, config: TrainConfig, accelerator: Accelerator, base: Base, made: Materials, say: Told) -> None:
        self.config, self.accelerator, self.base, self.materials, self.say = config, accelerator, base, made, say
        self.rewards: list[Reward] = rewards.load(config.reward, accelerator.device, rewards.image_model(base.name))
        self.reward = rewards.joined(self.rewards) if self.rewards else None
        shared: Callable[[list[Any]], list[Any]] = gather_object
        stage = Stage(config, made, self.rewards, self.reward, shared)
        self.method = METHODS[config.method](stage)
        accelerator.gradient_accumulation_steps = self.method.passes
        losses = Losses(base.policy.networks.values(), accelerator.device.type)
        self.optimisation = Optimisation(accelerator, config, list(base.trainable.values()), losses)
        checkpoint_state.leave_weights(accelerator)
        self.progress = checkpoint_state.Progress()
        self.state = checkpoint_state.State(
            accelerator, config, base, self.optimisation, self.method, self.reward, self.progress
        )
        self.decoding = rewards.Cost()
        _time_decoding(base, self.decoding)

    def run(self, resumed: Path | None) -> Ended:
        """All steps from the checkpoint `resumed` on, or from the first."""
        if resumed is not None:
            self.state.load(resumed)
        self.log = logs.Log(self.accelerator, self.config, self.progress.step)
        if resumed is None:
            self._look("before")
        with _terminated() as terminated:
            last_saved = self.progress.step
            while not self._over():
                self._step(terminated.is_set())
                step = self.progress.step
                if self.stop or step % self.config.checkpointing_steps == 0:
                    self.state.save()
                    last_saved = step
                if self.stop:
                    self.accelerator.end_training()
                    return Ended("stopped", step, self.config.output_dir)
                if self.config.validation_steps and step % self.config.validation_steps == 0:
                    self._look(f"step-{step}")
            if last_saved != self.progress.step:
                self.state.save()
        self._look("after")
        result: dict[str, Any] = {}
        if self.accelerator.is_main_process:
            with self.optimisation.averaged():
                result = output.write(
                    self.config, self.base, self.materials, self.rewards, self.progress, self.log.lines
                )
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()
        return Ended("finished", self.progress.step, self.config.output_dir, result)

    def _step(self, terminated: bool) -> None:
        """One optimiser step; sets `stop` if any process was told to."""
        began, cost = time.perf_counter(), self._cost()
        passes: list[dict[str, float]] = []
        rate, number = self.optimisation.rate, self.progress.step * self.method.passes
        try:
            for each in range(number, number + self.method.passes):
                gathered = self.method.gather(each)
                passes.append(self.optimisation.one_pass(partial(self.method.loss, gathered)))
        except BadReward as error:
            raise self._bad(str(error)) from error
        if self.accelerator.device.type == "cuda":
            torch.cuda.synchronize(self.accelerator.device)
        took = time.perf_counter() - began
        values, took, self.stop = self._shared(logs.averaged(passes), took, terminated)
        # A scaler of float16 leaves out steps of endless gradients by itself.
        norm = 0.0 if self.accelerator.mixed_precision == "fp16" else values["grad_norm"]
        if not math.isfinite(values["loss"]) or not math.isfinite(norm):
            raise self._bad(f"the loss is {values['loss']} and its gradient's norm {values['grad_norm']}")
        if isinstance(self.reward, Mixture):
            self.reward.settle(self._summed(self.reward.new))
        progress = self.progress
        progress.step, progress.seconds = progress.step + 1, progress.seconds + took
        for name, value in self._cost().items():
            setattr(progress, name, getattr(progress, name) + value - cost[name])
        values = {**values, "lr": rate, "seconds": took}
        self.log.say(progress.step, values)
        self.say("steps", progress.step, self.config.max_train_steps, values)

    def _over(self) -> bool:
        most = self.config.max_train_seconds
        return self.progress.step >= self.config.max_train_steps or (most is not None and self.progress.seconds >= most)

    def _shared(self, values: dict[str, float], took: float, stop: bool) -> tuple[dict[str, float], float, bool]:
        """Means over processes of what they log, the time of the slowest, and whether any is to stop."""
        every = gather_object([(values, took, stop)])
        return logs.averaged([one[0] for one in every]), max(one[1] for one in every), any(one[2] for one in every)

    def _summed(self, tensor: Tensor) -> Tensor:
        """The sum over processes."""
        every: list[Tensor] = gather_object([tensor])
        return torch.stack(every).sum(0)

    def _cost(self) -> dict[str, Any]:
        costs = [reward.cost for reward in self.rewards]
        return {
            "reward_seconds": sum(cost.seconds for cost in costs),
            "pictures": sum(cost.pictures for cost in costs),
            "decode_seconds": self.decoding.seconds,
        }

    def _bad(self, what: str) -> DiffscaleError:
        return DiffscaleError(
            f"Training stopped at step {self.progress.step + 1} since {what}; "
            f"{checkpoints.last_good(self.config.output_dir)}: go on from there with a lower learning rate or another "
            "reward."
        )

    def _look(self, name: str) -> None:
        """Sample what is looked at, in the first process, and keep it with its scores."""
        if self.accelerator.is_main_process:
            with self.optimisation.averaged():
                images = validation.sample(self.base, self.materials, self.config)
            prompts = validation.asked(self.materials, self.config)
            with self.method.measuring():
                said = validation.scores(images, prompts, self.rewards, self.base.name, self.accelerator.device)
            try:
                validation.save(self.config.output_dir, name, images, said)
            except OSError as error:
                raise DiffscaleError(
                    f"Pictures cannot be written to {self.config.output_dir} ({error.strerror}): make room; "
                    f"{checkpoints.last_good(self.config.output_dir)}."
                ) from error
        self.accelerator.wait_for_everyone()


def _time_decoding(base: Base, cost: rewards.Cost) -> None:
    own = base.policy.decode

    def decode(latents: Tensor) -> Tensor:
        began = time.perf_counter()
        images = own(latents)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        cost.seconds += time.perf_counter() - began
        return images

    base.policy.decode = decode  # type: ignore[method-assign]


@contextmanager
def _terminated() -> Iterator[threading.Event]:
    """An event that SIGTERM sets; threads other than the first cannot listen for it."""
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return
    before = signal.signal(signal.SIGTERM, lambda *_: told.set())
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)


def _silent(what: str, done: int, of: int, values: dict[str, float]) -> None:
    pass
