"""The one training loop of the Shapes networks: resumable, averaged weights, what was measured in a log."""

import copy
import json
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from diffscale._util import hardware
from diffscale._util.errors import DiffscaleError, explained
from diffscale._util.files import read_text, replacing, split_lines

Net = TypeVar("Net", bound=nn.Module)


class Step(NamedTuple):
    """A step's number, from 0, and its sources of randomness, which are functions of the seed and that number."""

    number: int
    rng: Random
    generator: torch.Generator


def autocast() -> torch.autocast:
    """bfloat16 where the processor has it, else float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=hardware.fast_bfloat16())


def fit(
    net: Net,
    loss: Callable[[Step], Tensor],  # a scalar
    seed: str,
    folder: Path,  # checkpoints and the log; training goes on from what is there
    steps: int,
    *,
    lr: float,  # peak of AdamW, after a linear warm-up
    muon: bool = False,  # Muon (Jordan et al. 2024), at three times that rate, for the weights of linear layers
    warmup: int = 200,  # steps
    decay: float = 0.4,  # share of the steps, at the end, in which the rate falls linearly to zero
    weight_decay: float = 0.01,
    average: float = 0.999,  # decay of the exponential moving average of the weights
    every: int = 500,  # steps between checkpoints
    evaluate: Callable[[Net], dict[str, float]] | None = None,  # on the averaged weights
) -> Net:
    """Train `net` in place and return its averaged copy, frozen and in evaluation mode.

    Killed at any moment, the same call goes on from the last checkpoint. Raises DiffscaleError for a checkpoint of
    another training, and for a loss or weights that are not finite, which leaves the last good checkpoint.
    """
    optimisers = _optimisers(net, lr, weight_decay, muon)
    # Its ramp forgets the random start, which a constant decay keeps for thousands of steps.
    ema = EMAModel(net.parameters(), decay=average, foreach=True)
    parts = {"net": net, "mean": ema, **{type(each).__name__: each for each in optimisers}}
    first, saved = 0, folder / "checkpoint.pt"
    if saved.exists():
        sentence = f"{saved} is no checkpoint of this training ({{why}}): remove {folder} to train anew."
        with explained(sentence, LookupError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError):
            state = torch.load(saved, map_location="cpu", weights_only=True)
            first = state["step"]
            for name, part in parts.items():
                part.load_state_dict(state[name])

    def averaged() -> Net:
        mean = copy.deepcopy(net)
        ema.copy_to(mean.parameters())
        return mean.eval().requires_grad_(False)

    began, losses = time.monotonic(), []
    for number in range(first, steps):
        value = loss(Step(number, Random(f"{seed} {number}"), torch.Generator().manual_seed(number)))
        if not torch.isfinite(value):
            raise _broken(f"the loss is {value} at step {number}", saved)
        value.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for optimiser in optimisers:
            for group in optimiser.param_groups:
                group["lr"] = group["peak"] * min((number + 1) / warmup, 1.0, (steps - number) / (decay * steps))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        ema.step(net.parameters())
        losses.append(value.detach())
        done = number + 1
        if done == steps or done % every == 0:
            if not all(tensor.isfinite().all() for tensor in (*net.parameters(), *ema.shadow_params)):
                raise _broken(f"weights are not finite after step {number}", saved)
            seconds = (time.monotonic() - began) / len(losses)
            figures = {"step": done, "loss": float(torch.stack(losses).mean()), "seconds_per_step": seconds}
            if evaluate is not None:
                with torch.no_grad():
                    figures |= evaluate(averaged())
            _log(folder, figures)
            with replacing(saved) as fresh:
                torch.save({"step": done, **{name: part.state_dict() for name, part in parts.items()}}, fresh)
            began, losses = time.monotonic(), []
    return averaged()


def _broken(what: str, saved: Path) -> DiffscaleError:
    last = f"the last good checkpoint is {saved}" if saved.exists() else "there is no checkpoint yet"
    return DiffscaleError(f"Training stopped since {what}; {last}: lower the recipe's rate and give the same command.")


def _optimisers(net: nn.Module, lr: float, weight_decay: float, muon: bool) -> list[torch.optim.Optimizer]:
    matrices = {id(m.weight): m.weight for m in net.modules() if isinstance(m, nn.Linear)} if muon else {}
    rest = [p for p in net.parameters() if p.requires_grad and id(p) not in matrices]
    groups = [{"params": rest, "peak": lr}]
    adam = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), weight_decay=weight_decay, fused=True)
    if not matrices:
        return [adam]
    # Needs torch 2.9. On the vision tower of shapes-clip it learned in 300 steps what took AdamW more than 500.
    groups = [{"params": list(matrices.values()), "peak": 3 * lr}]
    return [adam, torch.optim.Muon(groups, lr=3 * lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")]


def _log(folder: Path, figures: dict[str, float]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps(figures) + "\n")
    print(json.dumps(figures), flush=True)


def last_figures(folder: Path) -> dict[str, Any]:
    """The last line of a training's log."""
    return dict(json.loads(split_lines(read_text(folder / "log.jsonl"))[-1]))
