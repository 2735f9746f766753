"""Does a model that was sharpened give at the plain cost what the base gives by search? Seven methods at equal time.

    python benchmarks/sharpening.py [--seconds 600] [--seeds 3] [--limit 100] [--jobs 2] [--output outputs/reproduction]

Every method of `diffscale train` trains a LoRA of shapes-sdxl for the same wall time, in processes of one thread, with
clip as the reward where it takes one, from each of the seeds and with the settings of
bench/papers/recipes/trainings/B.yaml: those of seed 0 are the trainings of B.table1. Then each is called as
the base is, once for every copy of every prompt of the suite `shapes` (none of which is in the data), from the base's
noises. Beside them the base itself, and the best of 4 and of 16 of its samples by clip. What is told: the judge, which
nothing was trained or searched by; clip, which is no fair judge here; recall as benchmarks/verifier_hacking.py has it.

Gains are paired by prompt and noise. The standard error adds up two parts: between prompts, and between seeds.
Trainings are kept where `diffscale reproduce --output` of the same folder has them: a call that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from verifier_hacking import truth

from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.recipe import RECIPES
from diffscale.bench.papers.trainings import draw, expanded, make
from diffscale.engine import noise
from diffscale.metrics.distances import recall
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.suites import prompts as prompt_files
from diffscale.verifiers import load
from diffscale.verifiers.inception import load_inception

MODEL: Final = "shapes-sdxl"
REWARD: Final = "clip"
JUDGES: Final = ("shapes-judge", REWARD, "image_reward", "aesthetic")
BATCH: Final = 64
METHODS: Final = ["sft", "dpo", "ddpo", "d3po", "iterpo", "sharpen-sft", "sharpen-rlhf"]
COPIES: Final = 2  # of every prompt, for each seed
POOL: Final = 16  # candidates of a search at most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/reproduction"))
    options = parser.parse_args()
    if options.one:
        method, seed = options.one
        make(settings(method, int(seed), options.seconds), method, options.output / "cache")
        return
    for data in ("plain", "pairs"):
        draw(data, options.output / "cache" / "data")
    # Seed 0 last, as reproduce may be at it.
    runs = [(method, seed) for seed in reversed(range(options.seeds)) for method in options.methods]
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(partial(train, options), runs))
    texts = prompt_files.load("shapes", options.limit)
    copies = options.seeds * COPIES
    kept = options.output / "sharpening" / f"{len(texts)} prompts"
    base = scored(kept / "base", MODEL, texts, range(max(copies, POOL)))
    rows = [row_of("base", [base[:, seed * COPIES : (seed + 1) * COPIES] for seed in range(options.seeds)], base)]
    rows += [searched(n, base, options.seeds) for n in (4, POOL)]
    for method in options.methods:
        found, told = [], []
        for seed in range(options.seeds):
            folder = make(settings(method, seed, options.seconds), method, options.output / "cache")
            own = range(seed * COPIES, (seed + 1) * COPIES)
            found.append(scored(kept / folder.parent.name, str(folder), texts, own))
            told.append(json.loads((folder / "result.json").read_text()))
        rows.append(row_of(method, found, base) | cost_of(told))
    true = truth(texts)
    for row in rows:
        row["recall"] = float(np.mean([recall(true, each, k=1) for each in row.pop("features")]))
    (kept / "sharpening.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = as_table(rows, options.seconds, options.seeds, len(texts))
    (kept / "sharpening.md").write_text(table)
    print(table)


def settings(method: str, seed: int, seconds: float) -> dict[str, Any]:
    """Those of the recipes, for another seed and time."""
    given = {"like": method, "seed": seed, "max_train_seconds": seconds}
    return expanded({method: given}, RECIPES, "B", "shapes")[method]


def train(options: argparse.Namespace, run: tuple[str, int]) -> None:
    """One training, or what is left of it, in a process of one thread."""
    given = ["--seconds", str(options.seconds), "--output", str(options.output), "--one", run[0], str(run[1])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, __file__, *given], check=True, env=environment, stdout=subprocess.DEVNULL)


@torch.no_grad()
def scored(folder: Path, model: str, prompts: list[str], copies: range) -> NDArray[np.float64]:
    """What every judge says, and after that features, [prompts, copies, judges + D]; one sample of each."""
    path = folder / "scores.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = sampled(folder, model, prompts, copies)
        judges, extractor = [load(name, image_model=MODEL) for name in JUDGES], load_inception("shapes-inception")
        found = []
        for prompt, made in zip(prompts, pictures.float() / 255, strict=True):
            said = [judge(made, [prompt] * len(made)).double().flatten() for judge in judges]
            found.append(torch.cat([torch.stack(said, 1), extractor(made).double()], 1))
        np.save(path, torch.stack(found).numpy())
    return np.asarray(np.load(path), float)


def sampled(folder: Path, model: str, prompts: list[str], copies: range) -> Tensor:
    """Pictures uint8 [prompts, copies, 3, 64, 64], as users call the model."""
    path = folder / "pictures.safetensors"
    if not path.exists():
        pipe = load_pipeline(model, LoadOptions(device="cpu"))
        call, root = plain_call(pipe), noise.root(0)
        sampler = DiffusersSampler(pipe, prompts, call.steps, call.args)
        keys = torch.tensor([noise.fold(root, prompt, "sharpening", copy) for prompt in prompts for copy in copies])
        rows = torch.arange(len(prompts)).repeat_interleave(len(copies))
        made = []
        for part in track(torch.arange(len(keys)).split(BATCH), model):
            state = sampler.run(sampler.prior(keys[part], rows[part]), sampler.steps)
            made.append(eight_bit(sampler.decode(state.x)))
        save_file({"pictures": torch.cat(made)}, path)
    return load_file(path)["pictures"].unflatten(0, (len(prompts), len(copies)))


def row_of(name: str, found: list[NDArray[np.float64]], base: NDArray[np.float64]) -> dict[str, Any]:
    """Means over prompts, seeds and copies, and gains over the base from the same noises, of what `scored` gave."""
    before = [base[:, seed * COPIES : (seed + 1) * COPIES] for seed in range(len(found))]
    return _row(name, [each.mean(1) for each in found], [each.mean(1) for each in before]) | {
        "cost": 1,
        "features": [each[:, copy, len(JUDGES) :] for each in found for copy in range(COPIES)],
    }


def searched(n: int, base: NDArray[np.float64], seeds: int) -> dict[str, Any]:
    """The best of each `n` candidates of the base by the reward."""
    parts = base.reshape(len(base), -1, n, base.shape[-1]) if base.shape[1] % n == 0 else base[:, None, :n]
    best = parts[..., JUDGES.index(REWARD)].argmax(2)
    picked = np.take_along_axis(parts, best[:, :, None, None], 2)[:, :, 0]
    groups = [picked[:, i::seeds] for i in range(min(seeds, picked.shape[1]))]
    features = [picked[:, i, len(JUDGES) :] for i in range(picked.shape[1])]
    means = [each.mean(1) for each in groups]
    return _row(f"best of {n} by {REWARD}", means, [base.mean(1)] * len(means)) | {"cost": n, "features": features}


def _row(name: str, after: list[NDArray[np.float64]], before: list[NDArray[np.float64]]) -> dict[str, Any]:
    heldout_scores = {}
    for number, judge in enumerate(JUDGES):
        gains = np.array([(a - b)[:, number] for a, b in zip(after, before, strict=True)])  # [seeds, prompts]
        error = (gains.mean(0).var(ddof=1) / gains.shape[1]) + (
            gains.mean(1).var(ddof=1) / len(gains) if len(gains) > 1 else 0
        )
        heldout_scores[judge] = {
            "mean": float(np.mean([a[:, number].mean() for a in after])),
            "gain": float(gains.mean()),
            "standard_error": float(error**0.5),
        }
    return {"row": name, "judges": heldout_scores}


def cost_of(told: list[dict[str, Any]]) -> dict[str, Any]:
    """What training took, means over seeds."""
    return {
        "steps": float(np.mean([each["steps"] for each in told])),
        "seconds_per_step": float(np.mean([each["seconds_per_step"] for each in told])),
        "reward_share": float(np.mean([each.get("reward", {}).get("share_of_time", 0.0) for each in told])),
        "peak_bytes": float(np.mean([each["peak_memory_bytes"] for each in told])),
    }


def as_table(rows: list[dict[str, Any]], seconds: float, seeds: int, prompts: int) -> str:
    """Markdown: a row a method."""
    lines = [
        f"LoRAs of {MODEL}, {seconds:.0f} s of training each, {seeds} seeds, {prompts} prompts, {COPIES} samples a",
        "prompt and seed from the noises of the base. Gains are of the judge, held out, with standard errors; cost is",
        "that of sampling. The reward is clip, so that clip is what was trained for.",
        "",
        "| | cost | judge | gain | gain / error | recall | clip | image_reward | aesthetic | steps | s a step | "
        "reward | peak MB |",
        "| --- |" + " --- |" * 12,
    ]
    for row in rows:
        judge = row["judges"]["shapes-judge"]
        ratio = f"{judge['gain'] / judge['standard_error']:.1f}" if judge["standard_error"] else ""
        cells = [row["row"], f"{row['cost']}x", f"{judge['mean']:.3f}"]
        cells += [f"{judge['gain']:+.3f} ± {judge['standard_error']:.3f}", ratio, f"{row['recall']:.2f}"]
        cells += [f"{row['judges'][name]['mean']:.3f}" for name in JUDGES[1:]]
        if "steps" in row:
            cells += [f"{row['steps']:.0f}", f"{row['seconds_per_step']:.2f}", f"{row['reward_share']:.0%}"]
            cells += [f"{row['peak_bytes'] / 1e6:.0f}"]
        lines.append("| " + " | ".join([*cells, *[""] * (13 - len(cells))]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
