"""Optimiser steps: the module that accelerate wraps, AdamW, the schedule, and the moving average of weights."""

import importlib.util
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import Accelerator
from diffusers.optimization import get_scheduler
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffscale._util.errors import DiffscaleError, explained
from diffscale.train.settings import TrainConfig

Loss = tuple[Tensor, dict[str, float]]


class Losses(nn.Module):
    """The networks with a loss of theirs as the forward, so that gradients of several processes are averaged."""

    def __init__(self, networks: Iterable[nn.Module], device: str) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self._device = device

    def forward(self, loss: Callable[[], Loss]) -> Loss:
        """Return what `loss` gives; all but the networks themselves computes in full precision."""
        with torch.autocast(self._device, enabled=False):
            return loss()


class Optimisation:
    """Steps of AdamW on `parameters`; `module` is called for the loss."""

    def __init__(
        self, accelerator: Accelerator, settings: TrainConfig, parameters: list[nn.Parameter], losses: Losses
    ) -> None:
        self._accelerator, self._settings, self._parameters = accelerator, settings, parameters
        optimizer = _adamw(settings, parameters)
        # accelerate steps a schedule once for each process, as diffusers' scripts account for.
        with explained("There is no such schedule: {why}.", ValueError):
            schedule = get_scheduler(
                settings.lr_scheduler,
                optimizer,
                num_warmup_steps=settings.lr_warmup_steps * accelerator.num_processes,
                num_training_steps=settings.max_train_steps * accelerator.num_processes,
            )
        self.module, self._optimizer, self._schedule = accelerator.prepare(losses, optimizer, schedule)
        self._ema = EMAModel(parameters) if settings.use_ema else None

    @property
    def rate(self) -> float:
        """The learning rate of the next step."""
        return float(self._schedule.get_last_lr()[0])

    def one_pass(self, loss_of: Callable[[], Loss]) -> dict[str, float]:
        """Forward and back, and a step after its last pass; what to log."""
        logs: dict[str, float]
        with self._accelerator.accumulate(self.module):
            loss, logs = self.module(loss_of)
            self._accelerator.backward(loss)
            if self._accelerator.sync_gradients:
                norm = self._accelerator.clip_grad_norm_(self._parameters, self._settings.max_grad_norm)
                logs = {**logs, "grad_norm": float(norm)}
            self._optimizer.step()
            self._schedule.step()
            self._optimizer.zero_grad()
            if self._accelerator.sync_gradients and self._ema is not None:
                self._ema.step(self._parameters)
        return logs

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Give the networks the moving average, if there is one, until the block ends."""
        if self._ema is None:
            yield
            return
        self._ema.store(self._parameters)
        self._ema.copy_to(self._parameters)
        try:
            yield
        finally:
            self._ema.restore(self._parameters)

    def average(self) -> dict[str, Tensor]:
        """The moving average by number, to be kept; empty without."""
        return {} if self._ema is None else {f"{i:05}": tensor for i, tensor in enumerate(self._ema.shadow_params)}

    def load_average(self, tensors: dict[str, Tensor], step: int) -> None:
        """Go on from what `average` gave after `step` steps."""
        if self._ema is not None:
            shadow = [tensors[name].to(p) for name, p in zip(sorted(tensors), self._parameters, strict=True)]
            self._ema.load_state_dict({"shadow_params": shadow, "optimization_step": step})


def check_libraries(settings: TrainConfig) -> None:
    """Raises DiffscaleError if the optimiser needs a library that is not installed."""
    if settings.use_8bit_adam and importlib.util.find_spec("bitsandbytes") is None:
        raise DiffscaleError("8-bit AdamW needs the library bitsandbytes: pip install bitsandbytes.")


def _adamw(settings: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    kind: Any = torch.optim.AdamW
    if settings.use_8bit_adam:
        import bitsandbytes  # an extra

        kind = bitsandbytes.optim.AdamW8bit
    return kind(
        parameters,
        lr=settings.learning_rate,
        betas=(settings.adam_beta1, settings.adam_beta2),
        weight_decay=settings.adam_weight_decay,
        eps=settings.adam_epsilon,
    )
