"""What does each Shapes model cost and what does best-of-16 gain on it?

    python benchmarks/families.py [--limit 48] [--candidates 16] [--models shapes-flux,...] [--output outputs/families]

Random search by clip, on prompts of shapes-mini and, for class-conditional models, as many classes; every model in a
process of its own. NFE per second and the shares of decoding and verifying are of the search's wall time, peak memory
is that of the process (on a GPU: of torch's allocations). The gain is the held-out judge's, best of 16 less the first
sample of the same search, with a 95% bootstrap interval over prompts; one seed, one thread.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from diffscale.api import make_sampler
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval, with_interval
from diffscale.models.load import load_pipeline
from diffscale.models.options import LoadOptions
from diffscale.searches.random import random
from diffscale.suites import prompts as prompt_files
from diffscale.verifiers import load
from diffscale.verifiers.heldout import heldout_scores

TEXT = ("shapes-flux", "shapes-pixart", "shapes-sdxl", "shapes-sdxl-dpo")
CLASS = ("shapes-sit-s", "shapes-sit-b", "shapes-sit-l")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=48, help="prompts")
    parser.add_argument("--candidates", type=int, default=16)
    parser.add_argument("--models", default=",".join((*TEXT, *CLASS)))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--output", type=Path, default=Path("outputs/families"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measured(options)))
        return
    rows = []
    for model in options.models.split(","):
        done = subprocess.run([*sys.orig_argv, "--one", model], stdout=subprocess.PIPE, check=True, text=True)
        rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(line(rows[-1]), flush=True)
    options.output.mkdir(parents=True, exist_ok=True)
    (options.output / "families.json").write_text(json.dumps(rows, indent=2) + "\n")
    head = (
        f"Best of {options.candidates} by clip, {options.limit} prompts, one seed, {options.device}, {options.dtype}."
    )
    columns = "model|million parameters|NFE a sample|NFE/s|decode|verify|peak MB|judge of one|judge of best|gain"
    rule = "| " + " | ".join(columns.split("|")) + " |\n|" + " --- |" * 10
    (options.output / "families.md").write_text("\n".join([head, "", rule, *map(line, rows)]) + "\n")


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The figures of model `options.one`."""
    name, torch_device = options.one, options.device
    if torch_device == "cpu":
        torch.set_num_threads(1)
    suite = "shapes-classes" if name in CLASS else "shapes-mini"
    prompts = prompt_files.load(suite, options.limit)
    loading = LoadOptions(device=torch_device, dtype=options.dtype)
    pipe = load_pipeline(name, loading)
    sampler = make_sampler(pipe, prompts, steps=None, pipe_args={}, loading=loading)
    verifier = load("clip", device=torch_device, image_model=name)
    budget = options.candidates * sampler.steps
    tasks = [
        Task(partial(random), row, noise.fold(noise.root(0), prompt), budget) for row, prompt in enumerate(prompts)
    ]
    run_searches(tasks[:4], sampler, verifier)  # warm up, and find the batch
    began = time.perf_counter()
    results = run_searches(tasks, sampler, verifier)
    wall = time.perf_counter() - began
    ends = [
        heldout_scores(name, prompt, {"first": result.baseline.image, "best": result.best.image})
        for prompt, result in zip(prompts, results, strict=True)
    ]
    first, best = (np.array([end[which]["score"] for end in ends]) for which in ("first", "best"))
    seconds = {kind: sum(result.ledger.seconds[kind] for result in results) for kind in ("decode", "verify")}
    return {
        "model": name,
        "parameters": parameters(pipe),
        "steps": sampler.steps,
        "nfe_per_second": sum(result.ledger.nfe for result in results) / wall,
        "decode": seconds["decode"] / wall,
        "verify": seconds["verify"] / wall,
        "peak_bytes": peak(torch_device),
        "first": interval(first),
        "best": interval(best),
        "gain": interval(best - first),
    }


def parameters(pipe: Any) -> int:
    """Of the denoiser."""
    network: nn.Module = (
        pipe.denoiser.network if hasattr(pipe, "denoiser") else getattr(pipe, "transformer", None) or pipe.unet
    )
    return sum(p.numel() for p in network.parameters())


def peak(device: str) -> int:
    """Most bytes held so far: of torch on a GPU, else of the process."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def line(row: dict[str, Any]) -> str:
    """A row of the table."""
    cells = [
        row["model"],
        f"{row['parameters'] / 1e6:.2f}",
        str(row["steps"]),
        f"{row['nfe_per_second']:.0f}",
        f"{row['decode']:.0%}",
        f"{row['verify']:.0%}",
        f"{row['peak_bytes'] / 1e6:.0f}",
        *(with_interval(row[kind]) for kind in ("first", "best", "gain")),
    ]
    return "| " + " | ".join(cells) + " |"


if __name__ == "__main__":
    main()
