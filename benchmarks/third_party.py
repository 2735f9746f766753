"""Which search pays on a network that nobody here made? A flow on handwritten digits, by its NFE and by its seconds.

    python benchmarks/third_party.py --weights ../shared/third_party/mnist [--repeats 12] [--samples 2 4 8]
        [--search ...] [--output docs/third_party]

The network comes through the door for one's own (docs/own_network.md) and is sampled without guidance in 25 Euler
steps; its weights, the judge's and their licence are told in examples/mnist. The verifier is the OCR of
`diffscale[ocr]`, the judge another network, LeNet: its probability of the digit, in [0, 1], and how often that is
below one half. Every search has the same digits and seeds, `--repeats` of each digit, with the NFE of `--samples` whole
samples. Differences to random search are paired by digit and seed, with 95% bootstrap intervals: at equal NFE, and at
equal seconds of this machine, where random search is interpolated between its own budgets. A call that was killed goes
on with the searches and budgets that are missing.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from diffscale._util.files import write_json
from diffscale.engine import noise
from diffscale.engine.driver import run_searches
from diffscale.engine.task import Task
from diffscale.metrics.bootstrap import interval, with_interval
from diffscale.report import plots
from diffscale.searches import choose_search
from diffscale.verifiers import load

sys.path.insert(0, str(Path(__file__).parents[1] / "examples" / "mnist"))
from mnist import DIGITS, DigitProbability, digit_sampler

SEARCHES: Final = ("random", "zero_order", "draft", "fk", "auto")
RANDOM: Final = (1, 2, 4, 8, 16)  # whole samples; a wider range than others have, for what equal seconds buy
DOUBTED: Final = 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=12)
    parser.add_argument("--samples", type=int, nargs="+", default=[2, 4, 8])
    parser.add_argument("--search", nargs="+", default=[*SEARCHES])
    parser.add_argument("--output", type=Path, default=Path("outputs/third_party"))
    options = parser.parse_args()
    wanted = [("random", n) for n in sorted({*RANDOM, *options.samples})]
    wanted += [(name, n) for name in options.search if name != "random" for n in options.samples]
    cells = [cell(options, name, n) for name, n in wanted]
    random = [each for each in cells if each["search"] == "random"]
    text = table(options, cells, random)
    (options.output / "mnist.md").write_text(text)
    print(text)
    lines: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for each in cells:
        lines.setdefault(each["search"], []).append((np.mean(each["nfe"]), interval(each["judge"])))
    plots.curves(lines, "the judge's probability of the digit", "MNIST by others, OCR", options.output / "mnist.png")


def cell(options: argparse.Namespace, name: str, samples: int) -> dict[str, Any]:
    """What a search found for every digit and seed with the NFE of `samples`; it is computed once and kept."""
    path = options.output / "cells" / f"{options.repeats}, {name}, {samples}.json"
    if not path.exists():
        sampler, root = digit_sampler(options.weights), noise.root(0)
        tasks = [
            Task(choose_search(name).make(), digit, noise.fold(root, digit, repeat), samples * sampler.steps)
            for digit in range(len(DIGITS))
            for repeat in range(options.repeats)
        ]
        results = run_searches(tasks, sampler, load("ocr"))
        images = torch.stack([each.best.image for each in results])
        judge = DigitProbability(options.weights)(images, [DIGITS[task.prompt_index] for task in tasks])
        found = {
            "search": name,
            "samples": samples,
            "judge": judge.double().tolist(),
            "score": [each.best.score for each in results],
            "nfe": [each.ledger.nfe for each in results],
            "seconds": [sum(each.ledger.seconds.values()) for each in results],
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, found)
    return dict(json.loads(path.read_text()))


def table(options: argparse.Namespace, cells: list[dict[str, Any]], random: list[dict[str, Any]]) -> str:
    """Markdown: a row for each search and budget."""
    lines = [
        f"A flow on MNIST digits by others, searched by OCR, judged by LeNet; {len(DIGITS)} digits x {options.repeats} "
        "seeds, 25 steps a sample: `python benchmarks/third_party.py --weights WEIGHTS`. The weights are those of",
        "github.com/sofia-dominguezc/MNIST-diffusion and github.com/csinva/gan-vae-pretrained-pytorch, both under the",
        "MIT licence; see examples/mnist.",
        "",
        "| search | NFE | seconds | OCR | judge | judge below .5, % | less random search at equal NFE | "
        "at equal seconds |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for each in cells:
        judge = np.array(each["judge"])
        equal = next(other for other in random if other["samples"] == each["samples"])
        parts = [each["search"], f"{np.mean(each['nfe']):.0f}", f"{np.mean(each['seconds']):.2f}"]
        parts += [f"{np.mean(each['score']):.3f}", f"{judge.mean():.3f}", f"{100 * (judge < DOUBTED).mean():.1f}"]
        if each["search"] != "random":
            less = judge - np.array(equal["judge"]), judge - at_seconds(random, each)
            parts += [with_interval(interval(differences), "+.3f") for differences in less]
        lines.append("| " + " | ".join([*parts, *[""] * (8 - len(parts))]) + " |")
    return "\n".join(lines) + "\n"


def at_seconds(random: list[dict[str, Any]], cell: dict[str, Any]) -> NDArray[np.float64]:
    """The judge of random search for each digit and seed, interpolated to the seconds of `cell` in their logarithm."""
    known = np.log([np.mean(each["seconds"]) for each in random])
    judged = np.array([each["judge"] for each in random])
    now = np.log(np.mean(cell["seconds"]))
    return np.array([np.interp(now, known, each) for each in judged.T])


if __name__ == "__main__":
    main()
