"""How much faster is lock-step over prompts, and what does the driver cost on top of the calls?

    python benchmarks/throughput.py [--prompts 32] [--candidates 8] [--repeats 3] [--device cpu]

Zero-order search with 2 neighbours on 32 prompts: all prompts at once, against a prompt at a time with a candidate
per call, in turns; seconds and their ratio with a 95% bootstrap interval over repeats (aim on a GPU: at least 4).
Then the wall time of that over the bare forwards, decodes and verifier calls at the same batch (bar: 1.05).
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from typing import Any

import numpy as np
import torch
from diffscale_shapes.prompts import suite

from diffscale.api import make_sampler
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval
from diffscale.models.options import LoadOptions
from diffscale.searches.zero_order import zero_order
from diffscale.verifiers import load

MODEL = "shapes-flux"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--candidates", type=int, default=8, help="a prompt")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    options = parser.parse_args()
    prompts = [prompt.text for prompt in suite("shapes-mini")][: options.prompts]
    sampler = make_sampler(
        MODEL, prompts, steps=None, pipe_args={}, loading=LoadOptions(device=options.device, dtype=options.dtype)
    )
    verifier = load("clip", device=options.device, image_model=MODEL)
    budget = options.candidates * sampler.steps
    tasks = [
        Task(partial(zero_order, n=2), row, noise.fold(noise.root(0), prompt), budget)
        for row, prompt in enumerate(prompts)
    ]
    rows = 2 * len(tasks)
    run_searches(tasks[:2], sampler, verifier, batch_size=4)  # warm up

    together, alone, overhead = [], [], []
    for _ in range(options.repeats):
        began = time.perf_counter()
        results = run_searches(tasks, sampler, verifier, batch_size=rows)
        together.append(time.perf_counter() - began)
        calls = sum(sum(result.ledger.seconds.values()) for result in results)
        overhead.append(together[-1] / bare(sampler, verifier, tasks, rows, options.candidates // 2))
        began = time.perf_counter()
        for task in tasks:
            run_searches([task], sampler, verifier, batch_size=1)
        alone.append(time.perf_counter() - began)
        print(f"lock-step {together[-1]:.1f} s ({calls:.1f} s in calls), one at a time {alone[-1]:.1f} s", flush=True)
    ratios = interval(np.array(alone) / np.array(together))
    over = interval(overhead)
    nfe = budget * len(tasks)
    print(f"{len(tasks)} prompts, {options.candidates} candidates each, {options.repeats} repeats, {options.device}")
    print(f"lock-step {nfe / np.median(together):.0f} NFE/s, one at a time {nfe / np.median(alone):.0f} NFE/s")
    print(f"lock-step is {ratios['mean']:.2f} [{ratios['low']:.2f}, {ratios['high']:.2f}] times faster")
    print(f"wall over bare calls {over['mean']:.3f} [{over['low']:.3f}, {over['high']:.3f}] (bar: 1.05)")


@torch.no_grad()
def bare(sampler: Any, verifier: Any, tasks: list[Task], rows: int, rounds: int) -> float:
    """Seconds of `rounds` times the network, decoder and verifier calls of a batch, on inputs as a search has them."""
    inputs: dict[str, list[tuple[Any, Any]]] = {"forward": [], "decode": []}
    networks = {"forward": sampler.pipeline._pipe.transformer, "decode": sampler.pipeline._pipe.vae.decoder}
    hooks = [
        network.register_forward_pre_hook(
            lambda _, args, kwargs, kind=kind: inputs[kind].append((args, kwargs)), with_kwargs=True
        )
        for kind, network in networks.items()
    ]
    keys = torch.arange(rows)
    state = sampler.run(sampler.prior(keys, torch.arange(rows) % len(tasks)))
    images = sampler.decode(state.x)
    for hook in hooks:
        hook.remove()
    texts = [sampler.prompts[row] for row in state.prompt_index.tolist()]
    began = time.perf_counter()
    for _ in range(rounds):
        for kind, network in networks.items():
            for args, kwargs in inputs[kind]:
                network(*args, **kwargs)
        verifier(images, texts)
    if images.is_cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
