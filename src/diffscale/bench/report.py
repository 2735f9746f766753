"""What a bench leaves behind: results.json, results.csv and scaling plots."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffscale.bench.config import BenchConfig
from diffscale.bench.run import Cell
from diffscale.bench.tables import as_csv, summarise
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.report import plots


def write(
    settings: BenchConfig, cells: Sequence[Cell], samples: Sequence[dict[str, Any]], folder: Path
) -> list[dict[str, Any]]:
    """Write all of it to `folder`; returns the rows of the table."""
    rows = summarise(cells, samples)
    results = {"settings": settings.model_dump(), "cells": rows}
    _replace(folder / "results.json", json.dumps(results, indent=2, ensure_ascii=False) + "\n")
    _replace(folder / "results.csv", as_csv(rows))
    for verifier in settings.verifier:
        name = verifier.split()[0]
        curves = {search: _curve(samples, search, verifier, max(settings.budget)) for search in settings.search}
        drawn = {search: curve for search, curve in curves.items() if curve}
        if drawn:
            plots.curves(
                drawn, f"best {name} score so far", f"{settings.model}, {settings.suite}",
                folder / f"scaling-{name}.png",
            )  # fmt: skip
        heldout_scores: dict[str, list[tuple[float, dict[str, float]]]] = {}
        for row in rows:
            if row["verifier"] == verifier and "judge" in row:
                heldout_scores.setdefault(row["search"], []).append((row["nfe"], row["judge"]))
        if heldout_scores:
            plots.curves(
                {search: sorted(points, key=lambda point: point[0]) for search, points in heldout_scores.items()},
                "judge mean", f"{settings.model}, {settings.suite}, searched by {name}", folder / f"judge-{name}.png",
            )  # fmt: skip
    return rows


def _curve(
    samples: Sequence[dict[str, Any]], search: str, verifier: str, budget: int
) -> list[tuple[float, dict[str, float]]]:
    """Mean over prompts of the best score so far, wherever all samples have one; of the largest budget.

    Repeats of a prompt are averaged first.
    """
    mine = [
        s
        for s in samples
        if (s["search"], s["verifier"], s["budget"]) == (search, verifier, budget) and "error" not in s
    ]
    traces, prompts = [np.array(s["trace"], float) for s in mine], [s["prompt"] for s in mine]
    if not traces:
        return []
    first, last = max(trace[0, 0] for trace in traces), max(trace[-1, 0] for trace in traces)
    points = np.unique(np.geomspace(first, last, 24).round())
    found = []
    for nfe in points:
        # A trace has the NFE at which a score was reached; it holds until the next.
        values = [trace[np.searchsorted(trace[:, 0], nfe, side="right") - 1, 1] for trace in traces]
        found.append((float(nfe), interval(over_groups(values, prompts))))
    return found


def _replace(path: Path, text: str) -> None:
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(text, encoding="utf-8")
    os.replace(fresh, path)
