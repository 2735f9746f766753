"""Which search finds the best pictures for its NFE, and for its seconds?

    python benchmarks/quality_per_nfe.py [--suite shapes-mini] [--limit 12] [--verifier clip] [--search ...]
        [--seconds FOLDER] [--output outputs/quality]

All algorithms x verifiers x budgets of 4, 16, 64 and 128 candidates, on prompts of `--suite`, in the dtype that
`auto` is on the machine (the tables in docs are of bfloat16); resumable (`diffscale bench` runs it), with a folder
for each verifier, so that two can run side by side. Cells add up over calls: the table shows all that are complete
for `--limit` prompts. For each cell: the mean of the held-out judge with a 95% bootstrap interval over prompts, its
difference to random search at the same budget (paired by prompt), the verifier's own score, the diversity (mean over
prompts of the mean distance 1 - cos between shapes-clip features of its repeats' best pictures; - unless all have
two), and the multiplier: how many times more NFE, and seconds, random search needs for the same judge mean
(interpolated in log NFE, 95% bootstrap interval over prompts; `>`: its largest budget does not reach it, `<`: its
smallest has it). The judge's difference to random search in equal seconds is that to its mean interpolated in log
seconds, between those of one sample, which every pool's first candidate is, and of its budgets; in the same way its
difference where the own score is equal, which is below 0 where a search exploits the verifier; the bootstrap draws
scores and seconds of prompts (`<`: at most that, as the search took more seconds than random search was measured
with, which would hardly be worse with more; `>`: at least that, as it took less than one sample). Seconds compare
where all cells ran on a machine that did nothing else: `--seconds` takes the mean of each cell from the folder of
such a run, on few prompts. Two figures for each verifier show the differences at equal NFE and in equal seconds, of
the judge and of the verifier's own score: first searches with the highest means in equal seconds, last those whose
cells all took more seconds than random search.
With the verifier shapes-judge the judge is what was searched with: an oracle, an upper bound for any verifier.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from diffscale.bench.config import BenchConfig
from diffscale.bench.report import write
from diffscale.bench.run import cells, read_samples, run, settle
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval
from diffscale.report import plots
from diffscale.searches import SEARCHES
from diffscale.suites import prompts as prompt_files
from diffscale.verifiers import load

STEPS = 20
CANDIDATES = (4, 16, 64, 128)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=12)
    parser.add_argument("--suite", default="shapes-mini")
    parser.add_argument("--repeats", type=int, default=2, help="at least 2 for the diversity")
    parser.add_argument("--verifier", action="append", help="[clip and shapes-judge]")
    parser.add_argument("--search", action="append", help="[all]")
    parser.add_argument("--candidates", type=int, action="append", help="[4 16 64 128]")
    parser.add_argument("--seconds", type=Path, help="the --output of a run on a quiet machine [that of this run]")
    parser.add_argument("--output", type=Path, default=Path("outputs/quality"))
    options = parser.parse_args()
    searches = options.search or list(SEARCHES)
    for verifier in options.verifier or ["clip", "shapes-judge"]:
        settings = BenchConfig(
            search=searches if "random" in searches else ["random", *searches],
            verifier=[verifier],
            budget=[STEPS * n for n in options.candidates or CANDIDATES],
            repeats=options.repeats,
            suite=options.suite,
            limit=options.limit,
        )
        folder = options.output / verifier
        settings = settle(settings, folder)
        folder.mkdir(parents=True, exist_ok=True)
        # The oracle has no gradient.
        wanted = [c for c in cells(settings) if (c.search.split()[0], c.verifier) != ("first_order", "shapes-judge")]
        prompts = prompt_files.load(settings.suite, settings.limit)
        samples = run(settings, prompts, folder, only=wanted, judges=["shapes-judge"])
        write(settings, wanted, samples, folder)
    show(options.output, options.suite, options.limit, options.seconds)


def show(output: Path, suite: str, limit: int, quiet: Path | None) -> None:
    """The table and the figures of all cells in `output` that are complete for `limit` prompts."""
    prompts = prompt_files.load(suite, limit)
    table = []
    for verifier in sorted(path.parent.name for path in output.glob("*/samples.jsonl")):
        samples = [s for s in read_samples(output / verifier / "samples.jsonl") if s["prompt"] in prompts]
        rows = [row_of(cell, samples, prompts, output / verifier) for cell in dict.fromkeys(map(cell_of, samples))]
        rows = [row for row in rows if row]
        if quiet is not None:
            take_seconds(rows, read_samples(quiet / verifier / "samples.jsonl"))
        for row in rows:
            random = [r for r in rows if r["search"] == "random"]
            row |= multipliers(row, random) | in_equal_seconds(row, random) | at_equal_score(row, random)
        table += rows
    write_table(table, suite, limit, output)


def cell_of(sample: dict[str, Any]) -> Cell:
    return Cell(sample["search"], sample["verifier"], sample["budget"])


def row_of(cell: Cell, samples: list[dict[str, Any]], prompts: list[str], folder: Path) -> dict[str, Any]:
    """Judge, score, diversity, cost of a cell, by prompt in the order of the prompts; nothing if one is missing."""
    mine = [s for s in samples if cell_of(s) == cell]
    good = [s for s in mine if "error" not in s]
    if {s["prompt"] for s in mine} != set(prompts):
        return {}
    row: dict[str, Any] = {
        "search": cell.search,
        "verifier": cell.verifier,
        "budget": cell.budget,
        "failed": len(mine) - len(good),
    }
    if row["failed"]:
        return row
    return row | {
        "judge": by_prompt(good, prompts, lambda s: s["scores"]["shapes-judge"]["best"]),
        "score": by_prompt(good, prompts, lambda s: s["score"]["best"]),
        "first_judge": by_prompt(good, prompts, lambda s: s["scores"]["shapes-judge"]["baseline"]),
        "first_score": by_prompt(good, prompts, lambda s: s["score"]["baseline"]),
        "nfe": float(np.mean([s["nfe"] for s in good])),
        "seconds": by_prompt(good, prompts, lambda s: sum(s["seconds"].values())),
        "repeats": len(good) / len(prompts),
        "diversity": diversity(good, folder),
    }


def take_seconds(rows: list[dict[str, Any]], samples: list[dict[str, Any]]) -> None:
    """Give each of `rows` the mean seconds that its cell took in `samples`, which another run made.

    Raises SystemExit for a cell that is not among them.
    """
    for row in rows:
        cell = Cell(row["search"], row["verifier"], row["budget"])
        taken = [sum(s["seconds"].values()) for s in samples if cell_of(s) == cell and "error" not in s]
        if not taken:
            raise SystemExit(f"Run {cell.search} with {cell.budget} NFE in the folder of --seconds too.")
        if not row["failed"]:
            row["seconds"] = np.full(len(row["judge"]), np.mean(taken))


def by_prompt(samples: list[dict[str, Any]], prompts: list[str], value: Any) -> NDArray[np.float64]:
    groups: dict[str, list[float]] = {prompt: [] for prompt in prompts}
    for sample in samples:
        groups[sample["prompt"]].append(value(sample))
    return np.array([np.mean(values) for values in groups.values()])


@torch.no_grad()
def diversity(samples: list[dict[str, Any]], folder: Path) -> float:
    """Mean over prompts of the mean pairwise 1 - cos of shapes-clip picture features of its repeats."""
    clip = load("clip", image_model="shapes-flux")
    groups: dict[str, list[torch.Tensor]] = {}
    for sample in samples:
        picture = np.asarray(Image.open(folder / sample["image"]), np.float32) / 255
        groups.setdefault(sample["prompt"], []).append(torch.from_numpy(picture).permute(2, 0, 1))
    if min(map(len, groups.values())) < 2:
        return float("nan")
    distances = []
    for pictures in groups.values():
        features = torch.nn.functional.normalize(clip.features(torch.stack(pictures)), dim=-1)
        pairs = torch.triu_indices(len(features), len(features), 1)
        distances += (1 - (features @ features.T)[pairs[0], pairs[1]]).tolist()
    return float(np.mean(distances))


def multipliers(row: dict[str, Any], random: list[dict[str, Any]]) -> dict[str, str]:
    """NFE and seconds that random search needs for the judge mean of `row`, over what the row took, with intervals."""
    if row["failed"] or any(r["failed"] for r in random):
        return {"times_nfe": "-", "times_seconds": "-"}
    heldout_scores, reached = np.array([r["judge"] for r in random]), row["judge"]
    found = {}
    for kind in ("nfe", "seconds"):
        cost = np.log([np.mean(r[kind]) for r in random]) - np.log(np.mean(row[kind]))
        times = np.array(
            [needed(reached[rows].mean(), heldout_scores[:, rows].mean(1), cost) for rows in draws(len(reached))]
        )
        point = needed(reached.mean(), heldout_scores.mean(1), cost)
        low, high = np.quantile(times, (0.025, 0.975))
        found[f"times_{kind}"] = f"{times_of(point, cost)} [{times_of(low, cost)}, {times_of(high, cost)}]"
    return found


def draws(prompts: int) -> NDArray[np.int64]:
    """The prompts of each draw of a bootstrap."""
    return np.random.default_rng(0).integers(prompts, size=(1000, prompts))


def in_equal_seconds(row: dict[str, Any], random: list[dict[str, Any]]) -> dict[str, Any]:
    """How much more the judge's mean, and that of the own score, is than random search's in as many seconds.

    The end of what was measured of `random` stands for what is outside of it: `<` says that the difference is at most
    that, as the row took more seconds, `>` at least.
    """
    if row["failed"] or any(r["failed"] for r in random):
        return {}
    least = min(random, key=lambda r: r["nfe"])
    seconds = np.stack([least["seconds"] * STEPS / least["nfe"], *(r["seconds"] for r in random)])
    found: dict[str, Any] = {"outside": outside(row["seconds"], seconds)}
    for kind in ("judge", "score"):
        values = with_first(random, kind)
        found[f"{kind}_in_seconds"] = gain_at_equal(row["seconds"], row[kind], seconds, values, np.log)
    return found


def at_equal_score(row: dict[str, Any], random: list[dict[str, Any]]) -> dict[str, Any]:
    """How much more the judge's mean is than that of random search where its mean own score is the same.

    Below 0 where a search raises its verifier's score by what the verifier is wrong about. Outside of the scores that
    `random` reaches as in `in_equal_seconds`: `<` for a row with a higher score.
    """
    if row["failed"] or any(r["failed"] for r in random):
        return {}
    scores = with_first(random, "score")
    gain = gain_at_equal(row["score"], row["judge"], scores, with_first(random, "judge"), lambda mean: mean)
    return {"at_score": outside(row["score"], scores) + shown(gain)}


def with_first(random: list[dict[str, Any]], kind: str) -> NDArray[np.float64]:
    """The judge or score of one sample and of random search, by budget and prompt."""
    least = min(random, key=lambda r: r["nfe"])
    return np.stack([least[f"first_{kind}"], *(r[kind] for r in random)])


def outside(mine: NDArray[np.float64], measured: NDArray[np.float64]) -> str:
    """Whether the mean of `mine` lies above (`<`) or below (`>`) all means of `measured`, by budget and prompt."""
    means = measured.mean(1)
    return "<" if mine.mean() > means.max() else ">" if mine.mean() < means.min() else ""


def gain_at_equal(
    at: NDArray[np.float64], reached: NDArray[np.float64], measured_at: NDArray[np.float64],
    measured: NDArray[np.float64], scale: Any,
) -> dict[str, float]:  # fmt: skip
    """The mean that is `reached` less that `measured` [budgets, prompts], which is interpolated where the means, on a
    `scale`, of `measured_at` are that of `at`; with its bootstrap interval."""

    def gain(rows: Any) -> float:
        where, means = measured_at[:, rows].mean(1), measured[:, rows].mean(1)
        rising = where.argsort()
        there = np.interp(scale(at[rows].mean()), scale(where[rising]), means[rising])
        return float(reached[rows].mean() - there)

    low, high = np.quantile([gain(rows) for rows in draws(len(at))], (0.025, 0.975))
    return {"mean": gain(slice(None)), "low": float(low), "high": float(high)}


def needed(reached: float, means: NDArray[np.float64], cost: NDArray[np.float64]) -> float:
    """The log cost at which random search, `means` at `cost`, has `reached`; just outside of `cost` where none has."""
    # Its best mean so far: a larger budget can be used as a smaller one.
    means = np.maximum.accumulate(means)
    rising = np.concatenate([[True], np.diff(means) > 0])
    beyond = 1e-6 * (float(reached > means[-1]) - float(reached < means[0]))
    return float(np.interp(reached, means[rising], cost[rising])) + beyond


def times_of(value: float, cost: NDArray[np.float64]) -> str:
    """A factor; with < or > at the ends of what was measured."""
    sign = ">" if value > cost[-1] else "<" if value < cost[0] else ""
    return f"{sign}{np.exp(value):.2f}"


def write_table(table: list[dict[str, Any]], suite: str, prompts: int, folder: Path) -> None:
    lines = [f"shapes-flux, {prompts} prompts of {suite}, 95% bootstrap intervals over prompts", ""]
    lines += [
        "| verifier | search | NFE | repeats | judge | minus random | minus random in equal seconds | "
        "minus random at equal own score | own score | diversity | x NFE | x seconds |",
        "|" + "---|" * 12,
    ]
    curves: dict[str, dict[str, list[tuple[float, dict[str, float]]]]] = {}
    for row in table:
        if row["failed"]:
            lines.append(
                f"| {row['verifier']} | {row['search']} | {row['budget']} | | {row['failed']} failed | | | | | | | |"
            )
            continue
        (base,) = [
            r for r in table if (r["search"], r["verifier"], r["budget"]) == ("random", row["verifier"], row["budget"])
        ]
        judge, gain = interval(row["judge"]), interval(row["judge"] - base["judge"])
        in_seconds = row["outside"] + shown(row["judge_in_seconds"]) if "outside" in row else "-"
        curves.setdefault(row["verifier"], {}).setdefault(row["search"], []).append((row["nfe"], judge))
        lines.append(
            f"| {row['verifier']} | {row['search']} | {row['nfe']:.0f} | {row['repeats']:.1f} | {shown(judge)} | "
            f"{shown(gain)} | {in_seconds} | {row.get('at_score', '-')} | {row['score'].mean():.3f} | "
            f"{row['diversity']:.3f} | {row['times_nfe']} | {row['times_seconds']} |".replace("| nan |", "| - |")
        )
    (folder / f"quality_per_nfe-{prompts}.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))
    for verifier, by_search in curves.items():
        plots.curves(
            by_search, "judge mean", f"searched by {verifier}", folder / f"quality_per_nfe-{prompts}-{verifier}.png"
        )
        mine = [row for row in table if row["verifier"] == verifier]
        longer = all(row.get("outside") != ">" for row in mine)
        for kind, name in (("judge", "judge"), ("score", "own score")):
            plots.forest(
                differences(mine, kind), ["at equal NFE", "in equal seconds"],
                f"{name} minus that of random search, 95% intervals over {prompts} prompts, searched by {verifier}",
                folder / f"quality_per_nfe-{prompts}-{verifier}-{kind}-minus-random.png",
                "at most that, as random search was not measured in so many seconds" if longer else
                "outside of the seconds in which random search was measured",
            )  # fmt: skip


def differences(rows: list[dict[str, Any]], kind: str) -> dict[str, dict[str, list[dict[str, float]]]]:
    """What `plots.forest` draws of the `rows` of one verifier: by search and budget at equal NFE, and in equal seconds.

    Searches with the highest means of what was measured in equal seconds come first, those with no such cell last.
    """
    base = {row["budget"]: row for row in rows if row["search"] == "random"}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    for row in sorted(rows, key=lambda row: row["budget"]):
        if row["search"] != "random" and "outside" in row:
            there = row[f"{kind}_in_seconds"] | {"beyond": float(row["outside"] != "")}
            mark = f"{row['budget']} NFE"
            found.setdefault(row["search"], {})[mark] = [interval(row[kind] - base[row["budget"]][kind]), there]

    def worth(search: str) -> tuple[bool, float]:
        cells = [there for _, there in found[search].values()]
        measured = [each["mean"] for each in cells if not each["beyond"]]
        return bool(measured), float(np.mean(measured or [each["mean"] for each in cells]))

    return {search: found[search] for search in sorted(found, key=worth, reverse=True)}


def shown(values: dict[str, float]) -> str:
    mean, low, high = (f"{round(values[each], 3) + 0.0:.3f}" for each in ("mean", "low", "high"))  # no -0.000
    return f"{mean} [{low}, {high}]"


if __name__ == "__main__":
    main()
