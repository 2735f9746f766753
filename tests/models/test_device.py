"""Latents stay where the model is; scores, the best pictures and thumbnails leave."""

from __future__ import annotations

from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pipelines import PROMPTS, Brightness
from torch.overrides import TorchFunctionMode

from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.searches import SEARCHES

LATENTS, PICTURE = (4, 8, 8), (3, 8, 8)


class _Leaving(TorchFunctionMode):
    """Within it all that is taken off its device, in the ways that wait for the device: shape and dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: list[tuple[tuple[int, ...], torch.dtype]] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("cpu", "numpy", "tolist", "item", "__array__"):
            self.shapes.append((tuple(args[0].shape), args[0].dtype))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("search", ["random", "paths", "fk", "svdd", "demon", "free2guide"])
def test_only_what_leads_leaves_the_device(search: str, sd: SimpleNamespace) -> None:
    sampler = DiffusersSampler(sd.pipe, PROMPTS, 4, sd.args)
    # The first row that is decoded leaves: it shows what the pipeline's tensors are between.
    sampler.decode(torch.zeros(1, *LATENTS))
    with _Leaving() as leaving:
        (result,) = run_searches([Task(partial(SEARCHES[search]), 0, noise.root(0), 60)], sampler, Brightness(), 4)
    batched = [shape for shape, _ in leaving.shapes if len(shape) > 1]
    # One picture with its latents whenever the best improved, and the noise of one that was sampled in one go; nothing
    # else of more than one dimension.
    pictures = batched.count(PICTURE)
    assert 1 <= pictures <= result.candidates
    assert sorted(batched) == sorted([LATENTS, PICTURE] * pictures + [LATENTS] * pictures * (search == "random"))
    assert (PICTURE, torch.uint8) in leaving.shapes
