"""Does a model that was sharpened give at the plain cost what the base gives by search? All methods at equal FLOPs.

    python benchmarks/sharpening.py [--model shapes-sdxl] [--tflop 31 ...] [--seeds 3] [--limit 300] [--jobs 1]
        [--methods group-dpo nft ...] [--reward clip] [--mixed_precision bf16] [--output outputs/sharpening]

Every method of `diffscale train` trains a LoRA with the settings of sharpening.yaml, with `--reward` where it takes
one, from each of the seeds, in processes of one thread. Each has as many optimiser steps as make up `--tflop` counted
operations (denoiser, decoder and rewards, forwards and backwards): 31 are what `sharpen-rlhf` did in ten minutes of
one core of the first machine. Of several `--tflop`, the longer trainings go on with the shorter ones. Then each is
called as the base is, for every prompt of the suite `shapes` (none of which is in the data), from the base's noises.
Beside them the base itself, and the best of 4 and of 16 of its samples by the reward.

What is told: the judge, which nothing was trained or searched by, at 1x and for the best of 4 and 16 by clip of the
trained model itself, and how much better that is than the same search on the base; other verifiers; recall as
benchmarks/verifier_hacking.py has it; diversity, 1 less the mean cosine of two pictures of a prompt in the same
features; the operations, steps and seconds of training, and after how many pictures it has paid for itself: how many
searches of the base, with as many candidates as it takes to be as good by the judge, have as many operations as the
training. Gains are paired by prompt and noise. The standard error adds up two parts: between prompts, and between
seeds. A call that was killed goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.progress import track
from safetensors.torch import load_file, save_file
from torch import Tensor
from verifier_hacking import truth

from diffscale._util import config
from diffscale._util.files import replacing, write_json
from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.recipe import RECIPES
from diffscale.bench.papers.trainings import config_of, draw, expanded, folder_of, id_of, make
from diffscale.engine import noise
from diffscale.engine.flops import count_flops
from diffscale.metrics.distances import diversity, recall
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.suites import prompts as prompt_files
from diffscale.tape.curves import best_of, candidates_worth
from diffscale.train.run_directory import list_checkpoints
from diffscale.train.traits import InnerEpochs
from diffscale.verifiers import load
from diffscale.verifiers.inception import load_inception

SETTINGS: Final = Path(__file__).with_suffix(".yaml")
JUDGE: Final = "shapes-judge"
JUDGES: Final = (JUDGE, "clip", "image_reward", "aesthetic")
BATCH: Final = 64
COPIES: Final = 2  # of every prompt, for each seed
POOL: Final = 16  # candidates of a search at most
BUDGETS: Final = (1, 2, 4, 8, POOL)  # candidates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes-sdxl")
    parser.add_argument("--tflop", type=float, nargs="+", default=[31.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--limit", type=int, default=300)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--reward", action="append")
    parser.add_argument("--mixed_precision", default="no", choices=("no", "bf16"), help="of training; see --tflop")
    parser.add_argument("--no_search", action="store_true", help="no best of 4 and 16 of the trained model")
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--output", type=Path, default=Path("outputs/sharpening"))
    options = parser.parse_args()
    options.methods = options.methods or list(config.read(SETTINGS)[options.model])
    options.reward = options.reward or ["clip"]
    options.tflop.sort()
    if options.one:
        method, seed = options.one
        train_in_turn(options, method, int(seed))
        return
    for data in sorted({given(options, method)["data"] for method in options.methods}):
        draw(data, options.output / "cache" / "data")
    (options.output / "cache" / "encoded").mkdir(parents=True, exist_ok=True)
    runs = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    for method in options.methods:
        flops_of(options, method)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(partial(train, options), runs))
    texts = prompt_files.load("shapes", options.limit)
    kept = options.output / f"{options.model}, {len(texts)} prompts"
    base = scored(kept / "base", options.model, options.model, texts, range(max(options.seeds * COPIES, POOL)))
    for tflop in options.tflop:
        compare(options, tflop, texts, base, kept)


def compare(options: argparse.Namespace, tflop: float, texts: list[str], base: NDArray[np.float64], kept: Path) -> None:
    """Print and keep the table of what trainings of `tflop` give, beside the base and searches on it."""
    sample = flops_of_sample(options.model)
    rows = [row_of("base", [base[:, seed * COPIES : (seed + 1) * COPIES] for seed in range(options.seeds)], base)]
    rows += [searched(f"best of {n} by clip", n, base, base, options.seeds) for n in (4, POOL)]
    for method in options.methods:
        found, told = [], []
        for seed in range(options.seeds):
            folder = make(settings(options, method, seed, tflop), method, options.output / "cache")
            of = kept / folder.parent.name
            own = range(seed * COPIES, (seed + 1) * COPIES)
            found.append(scored(of / "1x", options.model, str(folder), texts, own))
            if seed == 0 and not options.no_search:
                pool = scored(of / f"{POOL}x", options.model, str(folder), texts, range(POOL))
            told.append(json.loads((folder / "result.json").read_text()))
        row = row_of(method, found, base) | cost_of(told) | {"tflop": tflop}
        row["pays after"] = pays_after(row, base, tflop * 1e12, sample)
        rows.append(row)
        if not options.no_search:
            row["search on it"] = {n: gain_of_search(n, pool, base) for n in BUDGETS}
            rows += [searched(f"best of {n} of it", n, pool, base, 1) for n in (4, POOL)]
    true = truth(texts)
    for row in rows:
        features = row.pop("features")
        row["recall"] = float(np.mean([recall(true, each, k=1) for each in features]))
        row["diversity"] = diversity(np.concatenate(features), [*range(len(texts))] * len(features))
    name = f"{tflop:g} TFLOP by {' and '.join(options.reward)}"
    write_json(kept / f"{name}.json", rows)
    table = as_table(options, tflop, rows, len(texts))
    (kept / f"{name}.md").write_text(table)
    print(table)


def settings(options: argparse.Namespace, method: str, seed: int, tflop: float) -> dict[str, Any]:
    """Those of a training with all its steps."""
    steps = tflop * 1e12 / flops_of(options, method)
    return {**given(options, method), "seed": seed, "max_train_steps": max(1, round(steps))}


def given(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """The settings of a method in sharpening.yaml, some of which are those of paper B, with the rewards asked for."""
    own = expanded({method: config.read(SETTINGS)[options.model][method]}, RECIPES, "B", "shapes")[method]
    own |= {"max_train_seconds": None, "checkpointing_steps": 50, "mixed_precision": options.mixed_precision}
    return own | {"reward": options.reward} if "reward" in own else own


def flops_of(options: argparse.Namespace, method: str) -> float:
    """Counted operations of an optimiser step, over a whole round of samples; they are counted once and kept.

    Those of a run of two rounds less those of one: without loading, encoding and validation.
    """
    own = given(options, method)
    path = options.output / "flops" / f"{id_of(own)}.json"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        full = config_of(own)
        passes = full.batches_per_round * full.num_inner_epochs if isinstance(full, InnerEpochs) else 1
        steps = max(1, passes // full.gradient_accumulation_steps)
        counted = []
        for rounds in (1, 1, 2):  # the first one encodes the prompts, which all trainings share
            with TemporaryDirectory() as folder, count_flops() as flops:
                for shared in ("data", "encoded"):
                    (Path(folder) / shared).symlink_to((options.output / "cache" / shared).resolve())
                make({**own, "max_train_steps": rounds * steps}, method, Path(folder))
            counted.append(flops.total)
        write_json(path, (counted[2] - counted[1]) / steps)
    return float(json.loads(path.read_text()))


@torch.no_grad()
def flops_of_sample(model: str) -> float:
    """Counted operations of a sample, with its decoding and its score by clip."""
    pipe = load_pipeline(model, LoadOptions(device="cpu"))
    call = plain_call(pipe)
    sampler, clip = DiffusersSampler(pipe, ["a red circle"], call.steps, call.args), load("clip", image_model=model)
    one = torch.zeros(1, dtype=torch.int64)
    with count_flops() as flops:
        clip(sampler.decode(sampler.run(sampler.prior(one, one)).x), ["a red circle"])
    return float(flops.total)


def train(options: argparse.Namespace, run: tuple[str, int]) -> None:
    """The trainings of a method and seed, or what is left of them, in a process of one thread."""
    same = ["--model", options.model, "--tflop", *map(str, options.tflop), "--output", str(options.output)]
    same += ["--mixed_precision", options.mixed_precision]
    same += [part for reward in options.reward for part in ("--reward", reward)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, *same, "--one", run[0], str(run[1])]
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)


def train_in_turn(options: argparse.Namespace, method: str, seed: int) -> None:
    """Each training begins with what the next shorter one has learned, as its own first steps are the same."""
    before = None
    for tflop in options.tflop:
        own, cache = settings(options, method, seed, tflop), options.output / "cache"
        folder = folder_of(id_of(own), cache)
        if before and not list_checkpoints(folder):
            last = list_checkpoints(before)[-1]
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(before / "config.yaml", folder)
            with replacing(folder / last.name) as fresh:
                shutil.copytree(last, fresh)
        before = make(own, method, cache)


@torch.no_grad()
def scored(folder: Path, base: str, model: str, prompts: list[str], copies: range) -> NDArray[np.float64]:
    """What every judge says, and after that features, [prompts, copies, judges + D]; one sample of each."""
    path = folder / "scores.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = sampled(folder, model, prompts, copies)
        judges, extractor = [load(name, image_model=base) for name in JUDGES], load_inception("shapes-inception")
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


def searched(name: str, n: int, pool: NDArray[np.float64], base: NDArray[np.float64], seeds: int) -> dict[str, Any]:
    """The best of each `n` candidates of a model's `pool` by clip; gains are over the base."""
    parts = pool.reshape(len(pool), -1, n, pool.shape[-1]) if pool.shape[1] % n == 0 else pool[:, None, :n]
    best = parts[..., JUDGES.index("clip")].argmax(2)
    picked = np.take_along_axis(parts, best[:, :, None, None], 2)[:, :, 0]
    groups = [picked[:, i::seeds] for i in range(min(seeds, picked.shape[1]))]
    features = [picked[:, i, len(JUDGES) :] for i in range(picked.shape[1])]
    means = [each.mean(1) for each in groups]
    return _row(name, means, [base.mean(1)] * len(means)) | {"cost": n, "features": features}


def gain_of_search(n: int, pool: NDArray[np.float64], base: NDArray[np.float64]) -> tuple[float, float]:
    """The judge of the best of `n` by clip of a trained model less that of the base; mean and standard error."""
    clip, judge = JUDGES.index("clip"), JUDGES.index(JUDGE)
    after, before = (best_of(each[:, :POOL, clip], n, each[:, :POOL, judge]) for each in (pool, base))
    gains = after - before
    return float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)


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


def pays_after(row: Mapping[str, Any], base: NDArray[np.float64], training: float, sample: float) -> float | None:
    """How many pictures by search cost as much as a training, each as good by the judge; None if one sample is."""
    clip, judge = (base[..., JUDGES.index(name)] for name in ("clip", JUDGE))
    curve = np.array([best_of(clip, k, judge).mean() for k in range(1, POOL + 1)])
    candidates = candidates_worth(curve, row["judges"][JUDGE]["mean"])
    return training / ((candidates - 1) * sample) if candidates > 1 else None


def cost_of(told: list[dict[str, Any]]) -> dict[str, Any]:
    """What training took, means over seeds."""
    return {
        "steps": float(np.mean([each["steps"] for each in told])),
        "seconds": float(np.mean([each["seconds"] for each in told])),
        "peak_bytes": float(np.mean([each["peak_memory_bytes"] for each in told])),
    }


def as_table(options: argparse.Namespace, tflop: float, rows: list[dict[str, Any]], prompts: int) -> str:
    """Markdown: a row a method."""
    lines = [
        f"LoRAs of {options.model}, {tflop:g} TFLOP of training each by {', '.join(options.reward)},",
        f"{options.seeds} seeds, {prompts} prompts, {COPIES} samples a prompt and seed from the noises of the base.",
        "Gains are of the judge, held out, with standard errors; cost is that of sampling. The best of 4 and 16 of a",
        f"trained model are of seed 0, by clip, from {POOL} samples a prompt.",
        "",
        "| | cost | judge | gain | recall | diversity | clip | image_reward | aesthetic | steps | seconds | peak MB | "
        "pays after |",
        "| --- |" + " --- |" * 12,
    ]
    for row in rows:
        judge = row["judges"][JUDGE]
        cells = [row["row"], f"{row['cost']}x", f"{judge['mean']:.3f}"]
        cells += [f"{judge['gain']:+.3f} ± {judge['standard_error']:.3f}", f"{row['recall']:.2f}"]
        cells += ["" if row["diversity"] is None else f"{row['diversity']:.3f}"]
        cells += [f"{row['judges'][name]['mean']:.3f}" for name in JUDGES[1:]]
        if "steps" in row:
            cells += [f"{row['steps']:.0f}", f"{row['seconds']:.0f}", f"{row['peak_bytes'] / 1e6:.0f}"]
            cells += ["never" if row["pays after"] is None else f"{row['pays after']:,.0f} pictures"]
        lines.append("| " + " | ".join([*cells, *[""] * (13 - len(cells))]) + " |")
    if any("search on it" in row for row in rows):
        lines += ["", "The judge of the best of n by clip, of a trained model less of the base.", ""]
        lines += ["| n | " + " | ".join(map(str, BUDGETS)) + " |", "| --- |" + " --- |" * len(BUDGETS)]
    for row in rows:
        if "search on it" in row:
            gains = [f"{gain:+.3f} ± {error:.3f}" for gain, error in row["search on it"].values()]
            lines.append("| " + " | ".join([row["row"], *gains]) + " |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
