"""Why a pipeline's first call failed, as one sentence: most of what it is called with cannot be checked before."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from diffscale._util.errors import first_line
from diffscale.samplers.arguments import PICTURES


def stepless(pipe: Any, inference_steps: int, args: Mapping[str, Any]) -> str:
    """The sentence for a `strength`, given or the pipeline's own, that leaves no step to run; empty if it leaves one.

    A pipeline that starts from a noised picture runs the last `strength` * `inference_steps` steps alone.
    """
    known = inspect.signature(type(pipe).__call__).parameters
    strength = args.get("strength", known["strength"].default) if "strength" in known else None
    if not isinstance(strength, int | float) or strength < 0 or int(inference_steps * strength):
        return ""
    return (
        f"A strength of {strength} leaves {type(pipe).__name__} none of its {inference_steps} steps: give a larger "
        "strength, or more steps."
    )


def explained(
    pipe: Any, inference_steps: int, args: Mapping[str, Any], doubtful: Sequence[str], error: Exception
) -> str:
    """The sentence for `error` of a call with `args`, of which those named in `doubtful`, or options, may be why.

    Empty where nothing that was given, or left out, can be the reason.
    """
    if said := stepless(pipe, inference_steps, args):
        return said
    known = inspect.signature(type(pipe).__call__).parameters
    missing = [name for name in PICTURES if name in known and args.get(name) is None]
    if not doubtful and not missing:
        return ""
    given = f" with {', '.join(doubtful)} as given" if doubtful else ""
    lacks = f"give {', '.join(missing)} too, from Python in pipe_args" if missing else ""
    mend = lacks or "change what does not suit it, or leave it out"
    return f"{type(pipe).__name__} does not run{given} ({first_line(error).rstrip('.')}): {mend}."
