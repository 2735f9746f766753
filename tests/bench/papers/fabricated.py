"""Raw numbers of an item that was never run: of the right form, from a seeded generator."""

from __future__ import annotations

from typing import Any

import numpy as np

from diffscale.bench.papers.points import points_of
from diffscale.bench.papers.recipe import Setting

CATEGORIES = ("colour", "shape", "texture", "spatial", "numeracy", "complex")


def fabricated(item: str, setting: Setting, prompts: int = 24) -> dict[str, Any]:
    """`prompts` of each part, whatever the recipe says."""
    rng = np.random.default_rng(0)
    parts: dict[str, Any] = {}
    for name, part in setting.parts.items():
        series: dict[str, Any] = {}
        for each, of_it in part.series.items():
            series[each] = [
                {
                    "nfe": point.budget + 20,
                    "flops": 1e9 * (point.budget + 20),
                    "search_nfe": point.budget,
                    "model": point.call.model,
                    "scores": {judge: rng.normal(size=prompts * part.repeats).tolist() for judge in part.judges},
                    "sets": {
                        measure: {"prompts": rng.random(prompts).tolist()}
                        if measure == "diversity"
                        else {"value": 3.0, "without": rng.normal(3, 0.1, (4, 2)).tolist()}
                        for measure in part.sets
                    },
                }
                for point in points_of(part, of_it)
            ]
            for at, steps in zip(series[each], of_it.final if not of_it.verifier else [], strict=False):
                at["nfe"] = steps * (2 if part.model.startswith(("shapes-sit", "sit")) else 1)
        parts[name] = {
            "model": part.model,
            "prompts": [f"prompt {i}" for i in range(prompts)],
            "categories": [CATEGORIES[i % 6] for i in range(prompts)],
            "repeats": part.repeats,
            "series": series,
        }
        if part.pairs is not None:
            shape = prompts * part.repeats, part.pairs.candidates
            parts[name]["pairs"] = {text: rng.normal(size=shape).tolist() for text in part.pairs.of}
    steps = range(1, 121)
    logs = {
        name: [
            {"step": step, "seconds": 0.5, "loss": rng.random(), "reward": rng.random(), "reward_std": 0.1}
            for step in steps
        ]
        for name in setting.trainings
    }
    trainings = {
        name: {"log": f"{name}.jsonl", "method": each["method"], "base": each["model"], "steps": 120, "seconds": 60.0,
               "rows": 8, "reward": each.get("reward", [])}
        for name, each in setting.trainings.items()
    }  # fmt: skip
    return {"item": item, "made_of": "", "parts": parts, "trainings": trainings, "logs": logs}
