"""What do many workers give? Throughput here, a simulation at FLUX.1-dev's costs, and the bytes of a candidate.

    python benchmarks/scale.py [--parts machine simulation memory] [--output outputs/scale] [--repeats 5]

machine: random search on shapes-flux by workers of Ray of one thread each, 2 against 1, in turns: candidates a second
and their ratio, with a 95% bootstrap interval over repeats. Beside it the same ratio of two processes that only
multiply matrices, which is all that this machine has to give (two hardware threads of one core give less than two).
The bytes that travel for a candidate are of the same runs.

simulation: the driver, its queue, pool and journal run as they are, on latents of FLUX.1-dev's size (28 steps at
1024x1024); its networks are replaced by a wait, of which the clock skips the rest. A sample takes the counted
operations of FLUX.1-dev (74 TFLOP a step, 10.6 for decoding and a CLIP score) at `--tflops` a second, times a
lognormal factor of `--spread` for every micro-batch. The driver's own time, as measured, goes on the same clock, one
micro-batch after the other. Efficiency: the time that workers compute, over all that they have until the end.

memory: how much the process of the driver grows from 1,000 to 10,000 candidates.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import os
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

import diffscale.engine.pool
from diffscale._util.files import write_json
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.journal import Journal
from diffscale.engine.output import Output
from diffscale.engine.pool import Pool
from diffscale.engine.task import Task
from diffscale.engine.transport import Answered, Event, Joined
from diffscale.engine.travel import Traffic
from diffscale.engine.verifier_worker import hand_in_pictures
from diffscale.engine.work import Job
from diffscale.metrics.bootstrap import interval, with_interval
from diffscale.samplers.toy import ToySampler
from diffscale.searches import choose_search
from diffscale.testing import NearPoint

STEPS = 28
STEP, DECODE_AND_SCORE = 74.0, 10.6  # TFLOP a row, see benchmarks/frontier.py


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parts", nargs="+", default=["machine", "simulation", "memory"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tflops", type=float, default=500.0, help="what a worker computes a second")
    parser.add_argument("--spread", type=float, default=0.05)
    parser.add_argument("--output", type=Path, default=Path("outputs/scale"))
    options = parser.parse_args()
    found: dict[str, Any] = {}
    for part in options.parts:
        found[part] = {"machine": machine, "simulation": simulation, "memory": memory}[part](options)
        write_json(options.output / f"{part}.json", found[part])


def machine(options: argparse.Namespace) -> dict[str, Any]:
    """Ratios of throughputs on this machine."""
    bare = [two_processes() for _ in range(options.repeats)]
    paces: dict[int, list[float]] = {1: [], 2: []}
    travelled: dict[str, float] = {}
    for count in (1, 2):
        with_workers(count, options.repeats, paces[count], travelled)
    ratios = np.array(paces[2]) / np.array(paces[1])
    told = {
        "candidates a second, 1 worker": interval(np.array(paces[1])),
        "candidates a second, 2 workers": interval(np.array(paces[2])),
        "ratio": interval(ratios),
        "ratio of two bare processes": interval(np.array(bare)),
        **travelled,
    }
    for name, value in told.items():
        print(f"{name}: {with_interval(value) if isinstance(value, dict) else format(value, ',.0f')}")
    return told


def with_workers(count: int, repeats: int, paces: list[float], travelled: dict[str, float]) -> None:
    """Candidates a second of random search by `count` workers of Ray, of one thread each."""
    from diffscale.api import make_sampler
    from diffscale.api.workers import Crew, ModelRecipe, worker_options
    from diffscale.models.options import LoadOptions
    from diffscale.verifiers import load

    prompts = ["a red circle above a blue square", "a green triangle"]
    asked = {"prompts": prompts, "steps": None, "pipe_args": {}}
    recipe = ModelRecipe("shapes-flux", LoadOptions(dtype="float32"), make_sampler, asked, "clip", None, "shapes-flux")
    verifier = load("clip", image_model="shapes-flux")
    with Crew(worker_options(None, f"ray n={count} gpus=0 cpus=0.5")) as crew:
        sampler, executor = crew.serve(recipe, 8)
        for repeat in range(repeats + 1):
            candidates = 64 if repeat else 8 * count
            given = [
                Task(choose_search("random").make(), row, noise.root(1000 * repeat + row), candidates * sampler.steps)
                for row in range(len(prompts))
            ]
            began = time.perf_counter()
            results = run_searches(given, sampler, verifier, 8, executor=executor)
            seconds = time.perf_counter() - began
            if repeat:  # the first one warms up
                paces.append(sum(each.candidates for each in results) / seconds)
        travelled["bytes a candidate, shapes-flux"] = crew.traffic.bytes_per_candidate


def two_processes() -> float:
    """How much two processes that multiply matrices do together, over what one does alone."""
    rates = []
    for count in (1, 2):
        with multiprocessing.get_context("spawn").Pool(count) as pool:
            rates.append(sum(pool.map(multiply, [2.0] * count, chunksize=1)))
    return rates[1] / rates[0]


def multiply(seconds: float) -> float:
    """Multiplications a second of one thread, once it is warm."""
    torch.set_num_threads(1)
    one = torch.randn(512, 512)
    time.sleep(0.5)  # until the other process is there
    end, done = time.perf_counter() + seconds, 0
    while time.perf_counter() < end:
        one @ one
        done += 1
    return done / seconds


class FluxSized(ToySampler):
    """A toy whose latents have the size of FLUX.1-dev's, and whose steps are never computed."""

    def __init__(self, prompts: Sequence[str]) -> None:
        super().__init__(list(prompts), STEPS, dtype=torch.float32)
        self._like = torch.empty(0, 4096, 64)


class Waits:
    """A Transport to `count` workers on a clock that skips to the next answer, and goes on with the driver's own time.

    `seconds`: of a sample of one row. `own`: seconds that the driver took so far, `busy`: those that workers computed.
    """

    patient = False

    def __init__(self, count: int, seconds: float, spread: float) -> None:
        self.now, self.own, self.busy, self.jobs, self.last = 0.0, 0.0, 0.0, 0, 0.0
        self.traffic, self._seconds, self._spread = Traffic(), seconds, spread
        self._chance = random.Random(0)
        self._due: list[tuple[float, int, Event]] = []
        self._joined: list[Event] = [Joined(f"{i}") for i in range(count)]
        self._picture = torch.rand(1, 3, 1024, 1024, generator=torch.Generator().manual_seed(0))
        self._since = time.perf_counter()

    def monotonic(self) -> float:
        """The clock, as the pool reads it."""
        return self.now

    def submit(self, worker: str, number: int, job: Job, pictures: Any = None) -> None:
        """See Transport."""
        self._pass()
        rows = len(job)
        scores = noise.uniform(job.request.state.key)
        output = Output({"scores": scores.double()}, decodes=1, seconds={"denoise": 1.0})
        hand_in_pictures(output, job, self._picture.expand(rows, -1, -1, -1), job.request.state.x)
        self.traffic.count_job(job)
        self.traffic.count_output(output)
        taken = rows * self._seconds * math.exp(self._chance.gauss(0, self._spread))
        self.busy, self.jobs = self.busy + taken, self.jobs + 1
        self._due.append((self.now + taken, number, Answered(worker, number, output)))
        self._since = time.perf_counter()  # what a worker does is none of the driver's time

    def tell(self, worker: str, news: Any) -> None:
        """There is no verifier."""

    def wait(self, seconds: float | None) -> Sequence[Event]:
        """See Transport."""
        self._pass()
        if self._joined:
            joined, self._joined = self._joined, []
            return joined
        first = min(self._due)
        self._due.remove(first)
        self.now = self.last = max(self.now, first[0])
        return [first[2]]

    def replace(self, worker: str) -> None:
        """Nobody hangs."""

    def close(self) -> None:
        """There is nobody."""

    def _pass(self) -> None:
        """Let the driver's own time pass."""
        now = time.perf_counter()
        self.own, self.now = self.own + now - self._since, self.now + now - self._since
        self._since = now


def simulated(options: argparse.Namespace, workers: int, batch: int, prompts: int, n: int) -> dict[str, float]:
    """Random search of `n` candidates for each of so many prompts, by so many workers."""
    texts = [f"prompt {i}" for i in range(prompts)]
    seconds = (STEPS * STEP + DECODE_AND_SCORE) / options.tflops
    sampler = FluxSized(texts)
    given = [Task(choose_search("random").make(), i, noise.root(i), n * STEPS, f"{i}") for i in range(prompts)]
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder, "journal.sqlite"), {})
        transport = Waits(workers, seconds, options.spread)
        diffscale.engine.pool.time = SimpleNamespace(monotonic=transport.monotonic)  # type: ignore[attr-defined]
        try:
            executor = Pool(transport, sampler, batch, workers)
            results = run_searches(given, sampler, NearPoint(), batch, gallery=8, journal=journal, executor=executor)
        finally:
            diffscale.engine.pool.time = time  # type: ignore[attr-defined]
        journal.close()
    assert sum(each.candidates for each in results) == prompts * n
    return {
        "workers": workers,
        "rows at once": batch,
        "candidates": prompts * n,
        "driver, ms a micro-batch": 1000 * transport.own / transport.jobs,
        "driver, ms a candidate": 1000 * transport.own / (prompts * n),
        "efficiency": transport.busy / (workers * transport.last),
        "bytes a candidate": transport.traffic.bytes_per_candidate,
    }


def simulation(options: argparse.Namespace) -> list[dict[str, float]]:
    """How busy workers are kept, by how many there are."""
    cases = [(8, 8, 32, 32), (64, 8, 128, 32), (64, 1, 128, 32), (512, 8, 256, 64)]
    found = [simulated(options, *case) for case in cases]
    print("| " + " | ".join(found[0]) + " |\n|" + " --- |" * len(found[0]))
    for row in found:
        print("| " + " | ".join(f"{value:.3g}" if value < 1000 else f"{value:,.0f}" for value in row.values()) + " |")
    return found


def memory(options: argparse.Namespace) -> dict[str, float]:
    """What the driver's process holds after runs of more and more candidates, in MB."""
    found = {}
    for candidates in (1000, 1000, 10_000):
        simulated(options, 8, 8, 10, candidates // 10)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        found[f"MB after {candidates:,} candidates"] = pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    for name, value in found.items():
        print(f"{name}: {value:,.0f}")
    return found


if __name__ == "__main__":
    main()
