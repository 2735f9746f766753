"""What a bench leaves behind, of means with intervals over prompts: results.json, results.csv, plots and a page."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffscale._util import config
from diffscale._util.errors import explained
from diffscale._util.files import write_json, write_text
from diffscale._util.hardware import device_name
from diffscale._util.versions import versions
from diffscale.bench import bench_page
from diffscale.bench.config import BenchConfig
from diffscale.bench.curves import Curve, score_curve
from diffscale.bench.hacking import hacked, held_out, kept
from diffscale.bench.series import Cell, safe_name
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.models.load import best_device
from diffscale.report import plots
from diffscale.report.text import drawing, one_line
from diffscale.verifiers.heldout import judge_name

_Sample = Mapping[str, Any]


def write(
    settings: BenchConfig, cells: Sequence[Cell], samples: Sequence[_Sample], folder: Path
) -> list[dict[str, Any]]:
    """Write all of it to `folder`; returns the rows of the table. `settings` name the dtype that was used."""
    rows = summarise(cells, samples, judge_name(settings.model))
    stated = settings.model_dump() | {"dtype": settings.used_dtype()}
    mend = "make room and run the same command again"
    with explained(f"All is found, but {folder} cannot be written to ({{why}}): {mend}.", OSError):
        made_with = {"versions": versions(), "hardware": settings.workers or device_name(best_device(settings.device))}
        config.save(settings, folder / "config.yaml")
        write_json(folder / "results.json", {"settings": stated, "cells": rows, **made_with})
        write_text(folder / "results.csv", as_csv(rows))
    shared = settings.allocation or ""
    title = f"{settings.model}, {settings.suite}" + (f", budget shared by {shared}" if shared else "")
    names = [verifier.split()[0] for verifier in settings.verifier]
    for verifier, name in zip(settings.verifier, names, strict=True):
        name = verifier if names.count(name) > 1 else name
        largest = {search: Cell(search, verifier, max(settings.budget), 0, shared) for search in settings.search}
        if curves := {
            search: curve for search, cell in largest.items() if (curve := score_curve(_found(cell, samples)))
        }:
            with drawing(f"The plot of {one_line(name, 80)}"):
                plots.curves(curves, f"best {name} score so far", title, folder / f"scaling-{safe_name(name)}.png")
        judged: dict[str, Curve] = {}
        for row in rows:
            if row["verifier"] == verifier and "judge" in row:
                judged.setdefault(row["search"], []).append((row["nfe"], row["judge"]))
        if judged:
            points = {search: sorted(curve, key=lambda point: point[0]) for search, curve in judged.items()}
            with drawing(f"The plot of judges by {one_line(name, 80)}"):
                path = folder / f"judge-{safe_name(name)}.png"
                plots.curves(points, "judge mean", f"{title}, searched by {name}", path)
    bench_page.write(folder)
    return rows


def _found(cell: Cell, samples: Sequence[_Sample]) -> list[_Sample]:
    return [s for s in cell.samples_in(samples) if "error" not in s]


def summarise(cells: Sequence[Cell], samples: Sequence[_Sample], judge: str | None = None) -> list[dict[str, Any]]:
    """For each cell: means over prompts, repeats of a prompt averaged first, since they are no independent samples.

    `judge`: the verifier that was held out and can tell exactly. `value` is what the verifier of `choose` says of the
    picture that it chose, `kept` as of `hacking.kept`. `errors` has the sentences of the searches that failed, each
    once.
    """
    rows = []
    for cell in cells:
        mine = cell.samples_in(samples)
        good, errors = [s for s in mine if "error" not in s], [s["error"] for s in mine if "error" in s]
        row: dict[str, Any] = {
            "search": cell.search, "verifier": cell.verifier, "budget": cell.budget, "samples": len(mine),
            "failed": len(errors), "errors": list(dict.fromkeys(errors)),
            **({"allocation": cell.allocation} if cell.allocation else {}),
        }  # fmt: skip
        if good:
            row["score"] = _mean(good, lambda s: s["score"]["best"])
            row["baseline_score"] = _mean(good, lambda s: s["score"]["baseline"])
            if (choose := good[0].get("choose")) is not None:
                row["choose"] = choose
                row["value"] = _mean(good, lambda s: s["value"]["best"])
                row["baseline_value"] = _mean(good, lambda s: s["value"]["baseline"])
            row["other_verifiers"] = _others([cell.verifier, judge, choose], good)
            row |= {name: float(np.mean([s[name] for s in good])) for name in ("nfe", "network_forwards", "flops")}
            row["seconds"] = float(np.mean([sum(s["seconds"].values()) for s in good]))
            row["dropped"] = sum(s["dropped"] for s in good)
            if judge is not None and all(s["scores"].get(judge) for s in good):
                row["judge"] = _mean(good, lambda s: s["scores"][judge]["best"])
                row["judge_baseline"] = _mean(good, lambda s: s["scores"][judge]["baseline"])
                row["judge_searched_with"] = judge not in held_out(cell, good)
            row["hacked"], row["kept"] = hacked(cell, samples), kept(cell, samples)
        rows.append(row)
    return rows


def _others(known: Sequence[str | None], samples: Sequence[_Sample]) -> dict[str, dict[str, float]]:
    """Means of the verifiers that are not among those `known`, over the pictures that each could score."""
    means = {}
    for name in dict.fromkeys(name for s in samples for name in s["scores"] if name not in known):
        if scored := [s for s in samples if s["scores"].get(name, {}).get("best") is not None]:
            means[name] = _mean(scored, lambda s, name=name: s["scores"][name]["best"])  # type: ignore[misc]
    return means


def _mean(samples: Sequence[_Sample], value: Callable[[_Sample], float]) -> dict[str, float]:
    return interval(over_groups([value(sample) for sample in samples], [sample["prompt"] for sample in samples]))


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """The rows with intervals spread over columns `name`, `name_low`, `name_high`."""
    flat = [_flat(row) for row in rows]
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in flat for name in row)))
    writer.writeheader()
    writer.writerows(flat)
    return file.getvalue()


def _flat(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict) and set(value) == {"mean", "low", "high"}:
            flat |= {
                prefix + name: value["mean"],
                f"{prefix}{name}_low": value["low"],
                f"{prefix}{name}_high": value["high"],
            }
        elif isinstance(value, dict):
            flat |= _flat(value, f"{name}.")
        elif name == "errors":
            flat[name] = " ".join(value)
        elif name == "hacked":
            flat[name] = " ".join(dict.fromkeys(fall["judge"] for fall in value))
        else:
            flat[prefix + name] = value
    return flat
