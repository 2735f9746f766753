"""The one training loop of the Shapes networks: resumable, averaged weights, figures beside the weights."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn


def fit(
    net: nn.Module,
    loss: Callable[[int], Tensor],  # step -> scalar; draws its own batch as a function of the step alone
    *,
    folder: Path,  # checkpoints and the log; training goes on from what is there
    steps: int,
    lr: float,  # peak of AdamW, after a linear warm-up
    muon: bool = False,  # Muon (Jordan et al. 2024), at three times that rate, for the weights of linear layers
    warmup: int = 200,  # steps
    decay: float = 0.4,  # share of the steps, at the end, in which the rate falls linearly to zero
    weight_decay: float = 0.01,
    average: float = 0.999,  # decay of the exponential moving average of the weights
    every: int = 500,  # steps between checkpoints
    evaluate: Callable[[nn.Module, int], dict[str, float]] | None = None,  # on the averaged weights
) -> nn.Module:
    """Train `net` in place and return its averaged copy.

    Killed at any moment, the same call goes on from the last checkpoint; a loss that is not finite stops the
    training with FloatingPointError and leaves that checkpoint.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mean = torch.optim.swa_utils.AveragedModel(net, multi_avg_fn=_ramped_average(average))
    mean.requires_grad_(False)
    optimisers = _optimisers(net, lr, weight_decay, muon)
    saved = folder / "checkpoint.pt"
    first = 0
    if saved.exists():
        state = torch.load(saved, map_location="cpu", weights_only=True)
        net.load_state_dict(state["net"])
        mean.load_state_dict(state["mean"])
        for optimiser, kept in zip(optimisers, state["optimisers"], strict=True):
            optimiser.load_state_dict(kept)
        first = state["step"]
    began, recent = time.monotonic(), []
    for step in range(first, steps):
        for group in (group for optimiser in optimisers for group in optimiser.param_groups):
            group["lr"] = group["peak"] * min((step + 1) / warmup, 1.0, (steps - step) / (decay * steps))
        value = loss(step)
        if not torch.isfinite(value):
            raise FloatingPointError(f"the loss is {value} at step {step}; the last good checkpoint is {saved}")
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser in optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        mean.update_parameters(net)
        recent.append(value.detach())
        done = step + 1
        if done % every == 0 or done == steps:
            figures = {"step": done, "loss": float(torch.stack(recent).mean())}
            figures["seconds_per_step"] = (time.monotonic() - began) / len(recent)
            if evaluate is not None:
                figures |= evaluate(mean.module, done)
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(figures) + "\n")
            print(json.dumps(figures), flush=True)
            _save(
                saved,
                {
                    "net": net.state_dict(),
                    "mean": mean.state_dict(),
                    "optimisers": [optimiser.state_dict() for optimiser in optimisers],
                    "step": done,
                },
            )
            began, recent = time.monotonic(), []
    return mean.module


def _optimisers(net: nn.Module, lr: float, weight_decay: float, muon: bool) -> list[torch.optim.Optimizer]:
    matrices = {id(m.weight): m.weight for m in net.modules() if isinstance(m, nn.Linear)} if muon else {}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in matrices]
    groups = [{"params": rest, "peak": lr}]
    found: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    ]
    if matrices:
        # Needs torch 2.9. On the vision tower of shapes-clip it learned in 300 steps what took AdamW more than 500.
        groups = [{"params": list(matrices.values()), "peak": 3 * lr}]
        found.append(torch.optim.Muon(groups, lr=3 * lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"))
    return found


def _save(path: Path, state: dict[str, object]) -> None:
    fresh = path.with_suffix(".new")
    with fresh.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)  # a full disk or a kill leaves the previous checkpoint whole


def _ramped_average(decay: float) -> Callable[..., None]:
    @torch.no_grad()
    def update(means: list[Tensor], values: list[Tensor], count: Tensor | int) -> None:
        n = int(count)
        # The ramp forgets the random start, which a constant decay keeps for thousands of steps.
        torch._foreach_lerp_(means, values, 1 - min(decay, (1 + n) / (10 + n)))

    return update
