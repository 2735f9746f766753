"""What a step of sharpening costs beside a step of plain LoRA fine-tuning of the same batch: time, memory, the reward.

    python benchmarks/training_cost.py [--batch 8] [--seeds 3] [--output outputs/training_cost]

LoRAs of shapes-sdxl with the settings of bench/papers/recipes/trainings/B.yaml but for the batch, each in a
process of its own with one thread, one method after the other for every seed. A round of RLHF sharpening, which samples
first and then takes three steps on each batch, is as long as a run, so that means of steps have its sampling in them.
Ratios to fine-tuning are paired by seeds, with a 95% t-interval of their logarithm.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
from scipy.stats import t

from diffscale.bench.papers.recipe import RECIPES
from diffscale.bench.papers.trainings import draw, expanded, make

BATCHES: Final = 8  # of own samples in a round
STEPS: Final = 3 * BATCHES
PLAIN: Final = "sft"
METHODS: Final = (PLAIN, "sharpen-sft", "sharpen-rlhf")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/training_cost"))
    options = parser.parse_args()
    if options.one:
        make(short(options.one[0], int(options.one[1]), options.batch), options.one[0], options.output / "cache")
        return
    draw("plain size=256", options.output / "cache" / "data")
    found: dict[str, list[dict[str, Any]]] = {method: [] for method in METHODS}
    for seed in range(options.seeds):
        for method in METHODS:
            found[method].append(run(options, method, seed))
    print(as_table(found, options.batch))


def short(method: str, seed: int, batch: int) -> dict[str, Any]:
    """The settings of the recipes for a few steps of that batch."""
    changed = {"max_train_seconds": None, "max_train_steps": STEPS, "train_batch_size": batch, "data": "plain size=256"}
    own = {"samples_per_round": BATCHES * batch} if method == "sharpen-rlhf" else {}
    like = expanded({method: {"like": method, "seed": seed}}, RECIPES, "B", "shapes")[method]
    return {**like, **changed, **own}


def run(options: argparse.Namespace, method: str, seed: int) -> dict[str, Any]:
    """Seconds a step, peak memory and the reward's share of time, of one training in a process of its own."""
    given = ["--batch", str(options.batch), "--output", str(options.output), "--one", method, str(seed)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, *given], check=True, env=environment, stdout=subprocess.DEVNULL)
    folder = make(short(method, seed, options.batch), method, options.output / "cache")
    told = json.loads((folder / "result.json").read_text())
    seconds = [json.loads(line)["seconds"] for line in (folder / "log.jsonl").read_text().splitlines()]
    return {
        "seconds": float(np.mean(seconds)),
        "peak": told["peak_memory_bytes"],
        "reward": told.get("reward", {}).get("share_of_time", 0.0),
    }


def as_table(found: dict[str, list[dict[str, Any]]], batch: int) -> str:
    """Markdown: a row a method."""
    seeds = len(found[PLAIN])
    lines = [
        f"LoRAs of shapes-sdxl, {STEPS} steps of batch {batch}, {seeds} seeds, one thread.",
        "",
        f"| | s a step | times that of {PLAIN} | of it the reward | peak MB | times that of {PLAIN} |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for method, runs in found.items():
        mean = {name: float(np.mean([each[name] for each in runs])) for name in runs[0]}
        cells = [method, f"{mean['seconds']:.2f}", ratio(runs, found[PLAIN], "seconds"), f"{mean['reward']:.0%}"]
        cells += [f"{mean['peak'] / 1e6:.0f}", ratio(runs, found[PLAIN], "peak")]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def ratio(runs: list[dict[str, Any]], plain: list[dict[str, Any]], name: str) -> str:
    """The geometric mean of ratios by seed, with its interval."""
    logs = np.log([a[name] / b[name] for a, b in zip(runs, plain, strict=True)])
    if runs is plain or len(logs) < 2:
        return f"{np.exp(logs.mean()):.2f}"
    half = float(t.ppf(0.975, len(logs) - 1) * logs.std(ddof=1) / len(logs) ** 0.5)
    low, high = np.exp([logs.mean() - half, logs.mean() + half])
    return f"{np.exp(logs.mean()):.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
