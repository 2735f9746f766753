"""Does a model that was sharpened give at the plain cost what the base gives by search? All methods at equal FLOPs.

    python benchmarks/sharpening.py [--model shapes-sdxl] [--tflop 31 ...] [--seeds 3] [--limit 300] [--jobs 1]
        [--methods group-dpo nft ...] [--reward clip] [--mixed_precision bf16] [--output outputs/sharpening]

Every method of `diffscale train` trains a LoRA with the settings of sharpening.yaml, with `--reward` where it takes
one, from each of the seeds, in processes of one thread. Each has as many optimiser steps as make up `--tflop` counted
operations (denoiser, decoder and rewards, forwards and backwards): 31 are what `sharpen-rlhf` did in ten minutes of
one core of the first machine. Of several `--tflop`, the longer trainings go on with the shorter ones. A method with
`parts` is several LoRAs that are trained one beside the other, each with its share of the operations, and loaded
together. Then each is called as the base is, for every prompt of the suite `shapes` (none of which is in the data),
from the base's noises. Beside them the base itself, and the best of 4 and of 16 of its samples by the reward.

What is told: the judge, which nothing was trained or searched by, at 1x and for the best of 4 and 16 by clip of the
trained model itself, and how much better that is than the same search on the base; other verifiers; recall as
benchmarks/verifier_hacking.py has it; diversity, 1 less the mean cosine of two pictures of a prompt in the same
features; the operations, steps and seconds of training, and after how many pictures it has paid for itself: how many
searches of the base, with as many candidates as it takes to be as good by the judge, have as many operations as the
training. Gains are paired by prompt and noise. The standard error adds up two parts: between prompts, and between
seeds. A call that was killed goes on. What was measured of each training is kept in OUTPUT/MODEL, N prompts/results:
with those of docs/sharpening/results copied there, nothing that they have is trained again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from diffscale._util.files import write_json
from diffscale._util.pixels import eight_bit
from diffscale.bench.papers.recipe import RECIPES
from diffscale.bench.papers.trainings import config_of, draw, expanded, id_of, make
from diffscale.engine import noise
from diffscale.engine.flops import count_flops
from diffscale.metrics.distances import diversity, recall
from diffscale.models.load import load_pipeline, plain_call
from diffscale.models.options import LoadOptions
from diffscale.samplers.diffusers import DiffusersSampler
from diffscale.suites import prompts as prompt_files
from diffscale.tape.curves import best_of, candidates_worth
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

Cell = dict[str, Any]  # the results of one training, or of the base


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
    texts = prompt_files.load("shapes", options.limit)
    kept = options.output / f"{options.model}, {len(texts)} prompts"
    runs = [(method, seed) for seed in range(options.seeds) for method in options.methods]
    runs = [run for run in runs if not all(result_file(options, kept, each, *run).exists() for each in options.tflop)]
    methods = sorted({part for method, _ in runs for part in parts(options, method)})
    for data in sorted({given(options, method)["data"] for method in methods}):
        draw(data, options.output / "cache" / "data")
    (options.output / "cache" / "encoded").mkdir(parents=True, exist_ok=True)
    for method in methods:
        flops_of(options, method)
    with ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(partial(train, options), runs))
    base = measured(kept / "results" / "base.json", partial(measure_base, options, kept, texts))
    for tflop in options.tflop:
        compare(options, tflop, texts, base, kept)


def result_file(options: argparse.Namespace, kept: Path, tflop: float, method: str, seed: int) -> Path:
    """Where the results of a training are kept, whatever machine they were made on."""
    return kept / "results" / name_of(options, tflop) / f"{method}-{seed}.json"


def name_of(options: argparse.Namespace, tflop: float) -> str:
    """What trainings of one table have in common."""
    return f"{tflop:g} TFLOP by {' and '.join(options.reward)}"


def measured(path: Path, measure: Callable[[], Cell]) -> Cell:
    """The results at `path`, which are small and go with a repository, or those that `measure` makes."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, measure())
    cell: Cell = json.loads(path.read_text())
    return cell


def measure_base(options: argparse.Namespace, kept: Path, texts: list[str]) -> Cell:
    """The base at 1x for each seed, the best of 4 and of 16 by clip, and how good the best of 1, 2, ... 16 is."""
    pool = scored(kept / "base", options.model, [], texts, range(POOL))
    own = (pool[:, seed * COPIES : (seed + 1) * COPIES] for seed in range(POOL // COPIES))
    return {
        "1x": [summary(each, texts) for each in own],
        "all": summary(pool, texts),
        "curve": curve(pool, range(1, POOL + 1)),
        **{f"best of {n}": [summary(best_by_clip(pool, n), texts)] for n in (4, POOL)},
    }


def measure_training(
    options: argparse.Namespace, kept: Path, texts: list[str], tflop: float, run: tuple[str, int]
) -> Cell:
    """What a training took, its model at 1x and, for seed 0, how good the best of 1, 2, 4, 8 and 16 by clip is."""
    method, seed = run
    folders = [
        make(settings(options, part, seed, tflop * share), part, options.output / "cache")
        for part, share in parts(options, method).items()
    ]
    of = kept / "+".join(folder.parent.name for folder in folders)
    own = scored(of / "1x", options.model, folders, texts, range(seed * COPIES, (seed + 1) * COPIES))
    told = [json.loads((folder / "result.json").read_text()) for folder in folders]
    cell = {"1x": summary(own, texts)} | {key: sum(each[key] for each in told) for key in ("steps", "seconds")}
    cell["peak_memory_bytes"] = max(each["peak_memory_bytes"] for each in told)
    if seed == 0 and not options.no_search:
        pool = scored(of / f"{POOL}x", options.model, folders, texts, range(POOL))
        cell["curve"] = curve(pool, BUDGETS)
        cell |= {f"best of {n}": summary(best_by_clip(pool, n), texts) for n in (4, POOL)}
    return cell


def curve(pool: NDArray[np.float64], sizes: Iterable[int]) -> dict[int, list[float]]:
    """By number of candidates, the judge's expected score of the best by clip of so many of a `pool`, by prompt."""
    clip, judge = (pool[..., JUDGES.index(name)] for name in ("clip", JUDGE))
    return {n: best_of(clip, n, judge).round(4).tolist() for n in sizes}


def best_by_clip(pool: NDArray[np.float64], n: int) -> NDArray[np.float64]:
    """The best of each `n` candidates of a `pool` [prompts, copies, ...] by clip, [prompts, copies / n, ...]."""
    parts = pool.reshape(len(pool), -1, n, pool.shape[-1])
    best = parts[..., JUDGES.index("clip")].argmax(2)
    return np.asarray(np.take_along_axis(parts, best[:, :, None, None], 2)[:, :, 0])


def summary(found: NDArray[np.float64], texts: list[str]) -> Cell:
    """Of what `scored` gave: the mean of each prompt by each judge, recall, and diversity (None for one copy)."""
    means = found[..., : len(JUDGES)].mean(1)
    features = [found[:, copy, len(JUDGES) :] for copy in range(found.shape[1])]
    true = truth(texts)
    return {
        "judges": {name: means[:, number].round(4).tolist() for number, name in enumerate(JUDGES)},
        "recall": float(np.mean([recall(true, each, k=1) for each in features])),
        "diversity": diversity(np.concatenate(features), [*range(len(texts))] * len(features)),
    }


def compare(options: argparse.Namespace, tflop: float, texts: list[str], base: Cell, kept: Path) -> None:
    """Print and keep the table of what trainings of `tflop` give, beside the base and searches on it."""
    sample = flops_of_sample(options.model)
    plain = base["1x"][: options.seeds]
    rows = [row_of("base", 1, plain, plain)]
    rows += [row_of(f"best of {n} by clip", n, base[f"best of {n}"], [base["all"]]) for n in (4, POOL)]
    for method in options.methods:
        cells = []
        for seed in range(options.seeds):
            path = result_file(options, kept, tflop, method, seed)
            cells.append(measured(path, partial(measure_training, options, kept, texts, tflop, (method, seed))))
        row = row_of(method, 1, [cell["1x"] for cell in cells], plain) | {"tflop": tflop}
        row |= {key: float(np.mean([cell[key] for cell in cells])) for key in ("steps", "seconds", "peak_memory_bytes")}
        row["pays after"] = pays_after(row, base["curve"], tflop * 1e12, sample)
        rows.append(row)
        if "curve" in cells[0]:
            row["search on it"] = {n: gain_of_search(cells[0]["curve"][str(n)], base["curve"][str(n)]) for n in BUDGETS}
            rows += [row_of(f"best of {n} of it", n, [cells[0][f"best of {n}"]], [base["all"]]) for n in (4, POOL)]
    name = name_of(options, tflop)
    write_json(kept / f"{name}.json", rows)
    table = as_table(options, tflop, rows, len(texts))
    (kept / f"{name}.md").write_text(table)
    print(table)


def parts(options: argparse.Namespace, method: str) -> dict[str, float]:
    """The trainings of a method, with the share that each has of the operations: itself, or those of its `parts`."""
    shares: dict[str, float] = config.read(SETTINGS)[options.model][method].get("parts", {method: 1.0})
    return shares


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
    for part, share in parts(options, method).items():
        every = [settings(options, part, seed, tflop * share) for tflop in options.tflop]
        for own in every:
            make(own, part, options.output / "cache", among=every)


@torch.no_grad()
def scored(folder: Path, base: str, trained: Sequence[Path], prompts: list[str], copies: range) -> NDArray[np.float64]:
    """What every judge says, and after that features, [prompts, copies, judges + D]; one sample of each."""
    path = folder / "scores.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        pictures = sampled(folder, base, trained, prompts, copies)
        judges, extractor = [load(name, image_model=base) for name in JUDGES], load_inception("shapes-inception")
        found = []
        for prompt, made in zip(prompts, pictures.float() / 255, strict=True):
            said = [judge(made, [prompt] * len(made)).double().flatten() for judge in judges]
            found.append(torch.cat([torch.stack(said, 1), extractor(made).double()], 1))
        np.save(path, torch.stack(found).numpy())
    return np.asarray(np.load(path), float)


def sampled(folder: Path, base: str, trained: Sequence[Path], prompts: list[str], copies: range) -> Tensor:
    """Pictures uint8 [prompts, copies, 3, 64, 64], as users call what was `trained`: one model, or LoRAs together."""
    path = folder / "pictures.safetensors"
    if not path.exists():
        together = list(map(str, trained)) if len(trained) > 1 else []
        model = str(trained[0]) if len(trained) == 1 else base
        pipe = load_pipeline(model, LoadOptions(device="cpu", lora=together))
        call, root = plain_call(pipe), noise.root(0)
        sampler = DiffusersSampler(pipe, prompts, call.steps, call.args)
        keys = torch.tensor([noise.fold(root, prompt, "sharpening", copy) for prompt in prompts for copy in copies])
        rows = torch.arange(len(prompts)).repeat_interleave(len(copies))
        made = []
        for part in track(torch.arange(len(keys)).split(BATCH), " + ".join([model, *together])):
            state = sampler.run(sampler.prior(keys[part], rows[part]), sampler.steps)
            made.append(eight_bit(sampler.decode(state.x)))
        save_file({"pictures": torch.cat(made)}, path)
    return load_file(path)["pictures"].unflatten(0, (len(prompts), len(copies)))


def row_of(name: str, cost: int, after: list[Cell], before: list[Cell]) -> dict[str, Any]:
    """Means over prompts and seeds of `summary` for each seed, and gains over those `before` from the same noises."""
    heldout_scores = {}
    for judge in JUDGES:
        scores = np.array([cell["judges"][judge] for cell in after])  # [seeds, prompts]
        gains = scores - np.array([cell["judges"][judge] for cell in before])
        error = (gains.mean(0).var(ddof=1) / gains.shape[1]) + (
            gains.mean(1).var(ddof=1) / len(gains) if len(gains) > 1 else 0
        )
        heldout_scores[judge] = {
            "mean": float(scores.mean()),
            "gain": float(gains.mean()),
            "standard_error": float(error**0.5),
        }
    told = [cell["diversity"] for cell in after if cell["diversity"] is not None]
    return {
        "row": name,
        "cost": cost,
        "judges": heldout_scores,
        "recall": float(np.mean([cell["recall"] for cell in after])),
        "diversity": float(np.mean(told)) if told else None,
    }


def gain_of_search(after: list[float], before: list[float]) -> tuple[float, float]:
    """The judge of the best of n by clip of a trained model less that of the base; mean and standard error."""
    gains = np.subtract(after, before)
    return float(gains.mean()), float(gains.std(ddof=1) / len(gains) ** 0.5)


def pays_after(row: Mapping[str, Any], base: Mapping[str, list[float]], training: float, sample: float) -> float | None:
    """How many pictures by search cost as much as a training, each as good by the judge; None if one sample is."""
    curve = np.array([np.mean(base[str(n)]) for n in range(1, POOL + 1)])
    candidates = candidates_worth(curve, row["judges"][JUDGE]["mean"])
    return training / ((candidates - 1) * sample) if candidates > 1 else None


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
            cells += [f"{row['steps']:.0f}", f"{row['seconds']:.0f}", f"{row['peak_memory_bytes'] / 1e6:.0f}"]
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
