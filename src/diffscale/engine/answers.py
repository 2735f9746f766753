"""Answers to requests as tensors by rows, which journals keep and executors send, and back."""

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from diffscale.types import (
    Draft,
    Evaluate,
    Gradient,
    Predict,
    PredictGradient,
    Request,
    Run,
    Sampler,
    Score,
    State,
    nearest,
)


def answer_tensors(request: Request, after: State) -> dict[str, Tensor]:
    """What the state `after` a Predict, Run or Solve adds to the state that was asked about."""
    if isinstance(request, Predict):
        assert after.model_output is not None
        return {"model_output": after.model_output}
    solver = {f"solver.{name}": value for name, value in after.solver.items()}
    level = torch.full((len(after),), math.nan if after.level is None else after.level, dtype=torch.float64)
    recorded = {} if after.recorded is None else {"recorded": after.recorded}
    return {"x": after.x, "step": torch.full((len(after),), after.step), "level": level, **recorded, **solver}


def answer_of(request: Request, tensors: dict[str, Tensor], sampler: Sampler, record: float | None) -> Any:
    """The whole answer to `request` from the tensors of all its rows; `record` as in `Sampler.run`."""
    state = request.state
    if isinstance(request, Score | Evaluate | Draft):
        return tensors["scores"]
    if isinstance(request, Gradient):
        return tensors["scores"], tensors["grad"].to(state.x)
    if isinstance(request, Predict):
        return _predicted(state, tensors, sampler, record)
    if isinstance(request, PredictGradient):
        state = _predicted(state, tensors, sampler, record)
        return state, tensors["scores"], tensors["grad"].to(state.x)
    level = float(tensors["level"][0])
    solver = {
        name.removeprefix("solver."): value.to(state.x.device) if value.ndim > 1 else value
        for name, value in tensors.items()
        if name.startswith("solver.")
    }
    return replace(
        state,
        x=tensors["x"].to(state.x.device),
        step=int(tensors["step"][0]),
        level=None if math.isnan(level) else level,
        x0=None,
        model_output=None,
        solver=solver,
        recorded=tensors["recorded"].to(state.x.device) if "recorded" in tensors else None,
    )


def _predicted(state: State, tensors: dict[str, Tensor], sampler: Sampler, record: float | None) -> State:
    state = sampler.predicted(state, tensors["model_output"].to(state.x.device))
    passes = record is not None and state.level is None and state.step == nearest(sampler.levels[:-1], record)
    return replace(state, recorded=state.x0) if passes else state


def finishes(request: Request, sampler: Sampler) -> bool:
    """Whether the rows of the request end as finished, scored candidates."""
    if isinstance(request, Score):
        return request.state.step == sampler.steps
    return isinstance(request, Evaluate | Gradient)


def answers_itself(request: Request, sampler: Sampler) -> bool:
    """Whether the answer is the state that was asked about."""
    if isinstance(request, Run):
        return request.state.step == (sampler.steps if request.to is None else request.to)
    return isinstance(request, Predict) and request.state.x0 is not None
