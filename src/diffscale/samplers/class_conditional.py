"""Class-conditional sampling with classifier-free guidance."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from diffscale._util.errors import DiffscaleError
from diffscale.engine.flops import count_flops
from diffscale.samplers import solvers
from diffscale.samplers.formulas import Marginal
from diffscale.samplers.levels import Schedule
from diffscale.samplers.solved import SolvedSampler
from diffscale.types import ClassLabel


class Denoiser(Protocol):
    """A network of latents [B, *shape] and class ids.

    `null`: number of the class that means none, None if it knows no such class. `guided`: how many channels guidance
    acts on, as its publishers have it.
    """

    shape: tuple[int, ...]
    classes: int
    null: int | None
    guided: int

    @property
    def network(self) -> torch.nn.Module: ...

    def schedule(self, steps: int) -> Schedule:
        """The schedule it was trained on, in `steps` intervals."""

    def __call__(self, x: Tensor, at: Marginal, ids: Tensor) -> Tensor:
        """Its output [B, *shape], as `schedule.prediction` says, for latents of classes `ids` (int64 [B])."""


class ClassSampler(SolvedSampler):
    """A Sampler over a class-conditional network in the latents of `vae`, a diffusers AutoencoderKL.

    `labels`: the classes that rows are of, its `prompts`. `inference_steps`: intervals of the network's schedule;
    `steps`, the denoiser evaluations of a trajectory, is larger for Heun (two an interval). `guidance_scale` w: where
    not 1, every evaluation is two rows, and the output is out_null + w (out_class - out_null) on the first
    `guided_channels` (None: as the network's publishers have it) and out_class on the others. `solver`: one of
    `solvers.SOLVERS`, with `eta` for DDIM: `euler`, `heun`, `ddim` and `dpmpp_2m` solve the ODE, `sde_euler` and
    `sde_heun` the SDE. Latents are float32, or float64 if the network is, and stay on
    `device`, where the network runs, else where its weights lie.

    Building one evaluates the network once, in no ledger, for `flops_per_forward`. Raises DiffscaleError for settings
    that cannot be met.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        vae: Any,
        labels: Sequence[ClassLabel],
        inference_steps: int,
        guidance_scale: float = 1.0,
        solver: str = "heun",
        eta: float | None = None,
        guided_channels: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        if not labels:
            raise DiffscaleError("Give at least one class.")
        if inference_steps < 1:
            raise DiffscaleError(f"A sample takes 1 step or more, not {inference_steps}.")
        if guidance_scale != 1 and denoiser.null is None:
            raise DiffscaleError("This network was trained without a null class: leave guidance_scale at 1.")
        guided = denoiser.guided if guided_channels is None else guided_channels
        if not 1 <= guided <= denoiser.shape[0]:
            raise DiffscaleError(f"guided_channels must be from 1 to {denoiser.shape[0]}, not {guided}.")
        first = next(denoiser.network.parameters())
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        device = first.device if device is None else device
        like = torch.empty(0, *denoiser.shape, dtype=dtype, device=device)
        super().__init__(list(labels), denoiser.schedule(inference_steps), solvers.solver(solver, eta), like)
        self._denoiser, self._vae, self._scale, self._guided = denoiser, vae, guidance_scale, guided
        self._ids = torch.tensor([label.class_id for label in labels], device=device)
        self.forwards_per_nfe = 1.0 if guidance_scale == 1 else 2.0
        self.flops_per_forward = self._probe()

    def decode(self, latents: Tensor) -> Tensor:
        config = self._vae.config
        x = latents / config.scaling_factor + (getattr(config, "shift_factor", None) or 0.0)
        with torch.set_grad_enabled(torch.is_grad_enabled() and latents.requires_grad):
            images = self._vae.decode(x.to(self._vae.dtype)).sample
        return (images.float() / 2 + 0.5).clamp(0, 1)

    def _evaluate(self, x: Tensor, at: Marginal, rows: Tensor) -> Tensor:
        ids = self._ids[rows.to(self._ids.device)]
        self.forwards += int(len(x) * self.forwards_per_nfe)
        # The network's parameters ask for gradients; only latents that do so get any.
        with torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad):
            if self._scale == 1:
                return self._denoiser(x, at, ids)
            assert self._denoiser.null is not None
            null = torch.full_like(ids, self._denoiser.null)
            given, without = self._denoiser(torch.cat([x, x]), at, torch.cat([ids, null])).chunk(2)
            n = self._guided
            led = without[:, :n] + self._scale * (given[:, :n] - without[:, :n])
            return torch.cat([led, given[:, n:]], 1)

    def _probe(self) -> float:
        one = torch.zeros(1, dtype=torch.int64)
        with count_flops() as flops:
            self.predict(self.prior(one, one))
        forwards, self.forwards = self.forwards, 0
        return flops.total / forwards
