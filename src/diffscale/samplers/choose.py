"""The sampler of any pipeline: windowed where that is possible, whole where it is not."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.samplers.whole import WholeSampler
from diffscale.samplers.windowed.loop import NotWindowed

_log = logging.getLogger(__name__)


def sampler_of(
    pipe: Any, prompts: Sequence[str], inference_steps: int, pipe_args: Mapping[str, Any] | None = None
) -> DiffusersSampler | WholeSampler:
    """A DiffusersSampler of `pipe`, or a WholeSampler with a warning that says why; arguments as of these.

    Raises DiffscaleError for pipelines that can be neither, and for arguments that they do not take.
    """
    try:
        return DiffusersSampler(pipe, prompts, inference_steps, pipe_args)
    except NotWindowed as refused:
        _log.warning(
            "%s is run whole, for searches over noises only, because %s.", type(pipe).__name__, why := str(refused)
        )
        return WholeSampler(pipe, prompts, inference_steps, pipe_args, why)
