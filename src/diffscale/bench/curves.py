"""Curves of scores against NFE, over the prompts of a cell."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from diffscale.metrics.bootstrap import interval, over_groups

Curve = list[tuple[float, dict[str, float]]]


def score_curve(samples: Sequence[Mapping[str, Any]]) -> Curve:
    """Mean over prompts, repeats averaged first, of the best score so far, wherever all `samples` have one."""
    traces = [np.array(s["trace"], float) for s in samples]
    if not traces:
        return []
    first, last = max(trace[0, 0] for trace in traces), max(trace[-1, 0] for trace in traces)
    curve = []
    for nfe in np.unique(np.geomspace(first, last, 24).round()):
        # A trace has the NFE at which a score was reached; it holds until the next.
        values = [trace[np.searchsorted(trace[:, 0], nfe, side="right") - 1, 1] for trace in traces]
        curve.append((float(nfe), interval(over_groups(values, [s["prompt"] for s in samples]))))
    return curve
