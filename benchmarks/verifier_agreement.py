"""How far do verifiers agree with the judge, and with each other?

    python benchmarks/verifier_agreement.py [--copies 7] [--output outputs/agreement]

2,100 pictures of shapes-flux on the 300 prompts of the suite, which nothing was trained on, and 2,016 on the 48
classes. For every verifier: Spearman's rank correlation with the judge over the pictures of each category, and the mean
over prompts of that within a prompt's pictures, which is what a search can use; 95% intervals over prompts (bootstrap).
The ensemble ranks within a prompt, so its scores do not compare between prompts and it has the last column only.
Figure: the correlations of all pairs within prompts (as figures 5, left, and 15 of Ma et al. 2025).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from diffscale_shapes.prompts import suite
from diffscale_shapes.scenes import CATEGORIES
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pool import CLASS_PROMPTS, Pool, mean_ranks
from scipy.stats import rankdata

from diffscale.metrics.bootstrap import interval

TEXT = (
    "clip", "aesthetic", "image_reward", "pick_score", "shapes-grader", "shapes-grader aspect=accuracy",
    "shapes-grader aspect=creativity", "shapes-grader aspect=quality", "shapes-grader aspect=consistency",
    "clip_ssl", "dino_ssl", "siglip_ssl",
)  # fmt: skip
CLASS = ("clip", "clip_zeroshot", "dino_linear", "inception", "clip_ssl", "dino_ssl", "siglip_ssl")
ENSEMBLE = ("aesthetic", "clip", "image_reward")
JUDGE = "shapes-judge"
Scores = dict[str, NDArray[np.float64]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, default=7, help="pictures of a prompt")
    parser.add_argument("--output", type=Path, default=Path("outputs/agreement"))
    options = parser.parse_args()
    prompts = suite("shapes")
    text = Pool(options.output / "text", [prompt.text for prompt in prompts], options.copies)
    classes = Pool(options.output / "classes", CLASS_PROMPTS, 6 * options.copies)
    text.make()
    classes.make()
    told = {name: text.scores(name) for name in (*TEXT, JUDGE)}
    told["ensemble"] = mean_ranks([told[name] for name in ENSEMBLE])
    of_classes = {name: classes.scores(name) for name in (*CLASS, JUDGE)}
    category = np.array([prompt.description.category for prompt in prompts])
    rows = [row(name, told, category) for name in told if name != JUDGE]
    rows += [row(name, of_classes, np.full(len(CLASS_PROMPTS), "class")) for name in of_classes if name != JUDGE]
    (options.output / "agreement.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = as_table(rows, told[JUDGE].size, of_classes[JUDGE].size)
    (options.output / "verifier_agreement.md").write_text(table)
    print(table)
    draw(told, of_classes, options.output / "verifier_agreement.png")


def row(name: str, told: Scores, category: NDArray[Any]) -> dict[str, Any]:
    """Correlations of a verifier with the judge: by category over pictures, and within prompts."""
    found: dict[str, Any] = {"verifier": name}
    for each in dict.fromkeys(category) if name != "ensemble" else ():
        found[str(each)] = over_pictures(told[name][category == each], told[JUDGE][category == each])
    found["within_prompts"] = interval(within(told[name], told[JUDGE]))
    return found


def over_pictures(scores: NDArray[np.float64], judge: NDArray[np.float64]) -> dict[str, float]:
    """Spearman's correlation over all pictures of [prompts, n], with an interval by bootstrap over prompts."""
    draws = np.random.default_rng(0).integers(len(scores), size=(500, len(scores)))
    means = [spearman(scores[rows].ravel(), judge[rows].ravel()) for rows in draws]
    low, high = np.quantile(means, (0.025, 0.975))
    return {"mean": spearman(scores.ravel(), judge.ravel()), "low": float(low), "high": float(high)}


def within(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
    """Spearman's correlation within each prompt's pictures, of prompts where neither is constant."""
    return np.array([spearman(x, y) for x, y in zip(a, b, strict=True) if np.ptp(x) > 0 and np.ptp(y) > 0])


def spearman(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """Rank correlation, ties averaged; 0 where one of them is constant."""
    x, y = (rankdata(each) - (len(each) + 1) / 2 for each in (a, b))
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm else 0.0


def as_table(rows: list[dict[str, Any]], pictures: int, of_classes: int) -> str:
    """Markdown: a verifier a line, a category a column."""
    heads = [*CATEGORIES, "class", "within_prompts"]
    lines = [
        f"Spearman's correlation with the judge: {pictures:,} pictures of 300 prompts, {of_classes:,} of 48 classes;",
        "in brackets the 95% interval over prompts. The last column is the mean within a prompt's pictures.",
        "",
        "| verifier | " + " | ".join(head.replace("_", " ") for head in heads) + " |",
        "| --- |" + " --- |" * len(heads),
    ]
    for found in rows:
        cells = [shown(found.get(head)) for head in heads]
        of = " (classes)" if "class" in found else ""
        lines.append(f"| {found['verifier']}{of} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['mean']:.2f} [{value['low']:.2f}, {value['high']:.2f}]"


def draw(told: Scores, of_classes: Scores, path: Path) -> None:
    """Heat maps of the mean correlation within prompts of every pair, for texts and for classes."""
    figure = Figure(figsize=(15, 7.6), dpi=130, layout="constrained")
    both = figure.subplots(1, 2, width_ratios=(len(told), len(of_classes) + 2))
    for axes, scores, title in zip(both, (told, of_classes), ("300 texts", "48 classes"), strict=True):
        names = list(scores)
        grid = np.array([[mean(within(scores[a], scores[b])) for b in names] for a in names])
        image = axes.imshow(grid, vmin=-1, vmax=1, cmap="RdBu")
        for (i, j), value in np.ndenumerate(grid):
            dark = abs(value) > 0.55
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7.5, color="w" if dark else "k")
        labels = [name.replace("shapes-grader aspect=", "grader: ") for name in names]
        axes.set_xticks(range(len(names)), labels, rotation=60, ha="right", fontsize=8.5)
        axes.set_yticks(range(len(names)), labels, fontsize=8.5)
        axes.set_title(f"rank correlation within a prompt, mean over {title}", fontsize=11)
    figure.colorbar(image, ax=both, shrink=0.6, label="Spearman's correlation")
    figure.savefig(path)


def mean(values: NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else 0.0


if __name__ == "__main__":
    main()
