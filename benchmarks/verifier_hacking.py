"""What does search do to the judge and to diversity when it follows each verifier further and further?

    python benchmarks/verifier_hacking.py [--limit 36] [--candidates 256] [--output outputs/hacking]

Random search of 1 to 256 candidates on prompts of shapes-mini, every verifier choosing from one nested pool (smaller
budgets are averaged over disjoint parts of it). For each verifier: its own score (in standard deviations of one
sample), the held-out judge, and recall, the share of true pictures of the same prompts that lie no further from one of
the chosen, one a prompt, than its nearest neighbour among them, in the features of shapes-inception (Kynkaanniemi et
al. 2019; with their 3 neighbours so few pictures would cover everything), the mean over up to 8 parts of the pool; 95%
bootstrap intervals over prompts for the judge.

A verifier is called hacked where its score rises and the judge falls in one of two comparisons that are fixed before
the pictures are looked at: the largest budget against one sample on all prompts, and the largest budget against the one
best by the judge, found on the even prompts, on the odd ones. One-sided paired t-tests at 5%, Holm-corrected over both
comparisons of all verifiers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from diffscale_shapes.captions import parse_caption
from diffscale_shapes.render import render_batch
from diffscale_shapes.scenes import draw_scene
from matplotlib.figure import Figure
from numpy.typing import NDArray
from pool import Pool, mean_ranks
from scipy.stats import ttest_1samp
from verifier_agreement import ENSEMBLE, JUDGE, TEXT

from diffscale.metrics.bootstrap import interval
from diffscale.metrics.distances import recall
from diffscale.suites import prompts as prompt_files
from diffscale.verifiers.inception import load_inception

TRUE = 10  # drawn pictures of each prompt that recall is the share of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=36)
    parser.add_argument("--candidates", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("outputs/hacking"))
    options = parser.parse_args()
    prompts = prompt_files.load("shapes-mini", options.limit)
    pool = Pool(options.output / "pool", prompts, options.candidates)
    pool.make()
    told = {name: pool.scores(name) for name in (*TEXT, JUDGE)}
    members = {name: [scores] for name, scores in told.items()} | {"ensemble": [told[name] for name in ENSEMBLE]}
    budgets = [2**i for i in range(20) if 2**i <= options.candidates]
    seen, true = features(pool), truth(prompts)
    rows = [row(name, scores, told[JUDGE], budgets, seen, true) for name, scores in members.items()]
    mark_hacked([each for each in rows if each["verifier"] != JUDGE])
    (options.output / "hacking.json").write_text(json.dumps(rows, indent=2) + "\n")
    table = as_table(rows, budgets, len(prompts))
    (options.output / "verifier_hacking.md").write_text(table)
    print(table)
    draw(rows, budgets, options.output / "verifier_hacking.png")


def row(
    name: str,
    members: list[NDArray[np.float64]],
    judge: NDArray[np.float64],
    budgets: list[int],
    seen: NDArray[np.float32],
    true: NDArray[np.float32],
) -> dict[str, Any]:
    """By budget: the verifier's score, the judge and recall; the two comparisons by which it may be hacked."""
    scores = members[0] if len(members) == 1 else mean_ranks(members)
    spread = float(scores.std()) or 1.0
    own, heldout_scores, covered = [], [], []
    for n in budgets:
        picked = chosen(members, n)
        own.append((np.take_along_axis(scores, picked, 1).mean(1) - scores.mean(1)) / spread)
        heldout_scores.append(np.take_along_axis(judge, picked, 1).mean(1))
        each = [recall(true, seen[np.arange(len(scores)), part], k=1) for part in picked.T[:8]]
        covered.append({"mean": float(np.mean(each)), "parts": len(each)})
    peak = int(np.argmax([each[::2].mean() for each in heldout_scores]))
    compared = [(0, slice(None)), (peak, slice(1, None, 2))]
    return {
        "verifier": name,
        "score": [interval(each) for each in own],
        "judge": [interval(each) for each in heldout_scores],
        "recall": covered,
        "peak": budgets[peak],
        "compared": [
            {
                "since": budgets[since],
                "change": interval((heldout_scores[-1] - heldout_scores[since])[which]),
                "score_rose": bool(interval((own[-1] - own[since])[which])["low"] > 0),
                "p": p_fell((heldout_scores[-1] - heldout_scores[since])[which]),
            }
            for since, which in compared
        ],
    }


def p_fell(changes: NDArray[np.float64]) -> float:
    """p-value of "the mean does not lie below 0", by a one-sided paired t-test; 1 where nothing changed."""
    return float(ttest_1samp(changes, 0, alternative="less").pvalue) if np.ptp(changes) > 0 else 1.0


def mark_hacked(rows: list[dict[str, Any]]) -> None:
    """Holm's step-down procedure over the comparisons of all `rows` at 5%; sets `hacked`."""
    every = sorted((each for row in rows for each in row["compared"]), key=lambda each: each["p"])
    failed = False
    for number, each in enumerate(every):
        failed = failed or each["p"] > 0.05 / (len(every) - number)
        each["fell"] = not failed
    for row in rows:
        row["hacked"] = any(each["fell"] and each["score_rose"] for each in row["compared"])


def chosen(members: list[NDArray[np.float64]], n: int) -> NDArray[np.int64]:
    """The best of each disjoint part of `n` candidates, [prompts, parts], as numbers within the pool.

    With several `members`, the best mean rank within the part.
    """
    prompts, pool = members[0].shape
    parts = [each[:, : pool // n * n].reshape(prompts, -1, n) for each in members]
    best = (parts[0] if len(parts) == 1 else mean_ranks(parts)).argmax(2)
    return np.asarray(best + n * np.arange(best.shape[1]), np.int64)


@torch.no_grad()
def features(pool: Pool) -> NDArray[np.float32]:
    """Features [prompts, n, D] of all pictures."""
    extractor = load_inception("shapes-inception")
    finals = (pool.pictures(row)[0] for row in range(len(pool.prompts)))
    return torch.stack([torch.cat([extractor(part) for part in final.split(128)]) for final in finals]).numpy()


@torch.no_grad()
def truth(prompts: list[str]) -> NDArray[np.float32]:
    """Features of `TRUE` drawn pictures of every prompt."""
    rng, extractor, found = Random("verifier hacking"), load_inception("shapes-inception"), []
    for prompt in prompts:
        meaning = parse_caption(prompt)
        assert meaning is not None
        found.append(extractor((render_batch([draw_scene(meaning, rng) for _ in range(TRUE)]) + 1) / 2))
    return torch.cat(found).numpy()


def as_table(rows: list[dict[str, Any]], budgets: list[int], prompts: int) -> str:
    """Markdown: a verifier a line."""
    last = budgets[-1]
    lines = [
        f"Random search on {prompts} prompts, best of 1 to {last} by each verifier, one seed and one nested pool;",
        "95% intervals over prompts. Score in standard deviations of one sample. Best at: by the judge on the even",
        "prompts; since then: its change on the odd ones. Hacked: the score rises and the judge falls, from one",
        "sample or since the best, Holm-corrected over all verifiers.",
        "",
        f"| verifier | score at {last} | judge at 1 | judge at {last} | change | best at | since then | recall at 1 | "
        f"recall at {last} | hacked |",
        "| --- |" + " --- |" * 9,
    ]
    lines += [
        f"| {r['verifier']} | {r['score'][-1]['mean']:.2f} | {shown(r['judge'][0])} | {shown(r['judge'][-1])} | "
        f"{shown(r['compared'][0]['change'])} | {r['peak']} | {shown(r['compared'][1]['change'])} | "
        f"{r['recall'][0]['mean']:.2f} | {r['recall'][-1]['mean']:.2f} | "
        f"{'searched with' if r['verifier'] == JUDGE else 'yes' if r['hacked'] else 'no'} |"
        for r in rows
    ]
    return "\n".join(lines) + "\n"


def shown(value: dict[str, float]) -> str:
    return f"{value['mean']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"


def draw(rows: list[dict[str, Any]], budgets: list[int], path: Path) -> None:
    """Own score, judge and recall against candidates."""
    figure = Figure(figsize=(15, 5), dpi=130, layout="constrained")
    panels = figure.subplots(1, 3)
    kinds = (
        ("score", "score of the verifier searched with (standard deviations)"),
        ("judge", "judge, held out (dashed: searched with)"),
        ("recall", "recall"),
    )
    shown_rows = [r for r in rows if "aspect" not in r["verifier"]]
    for axes, (kind, label) in zip(panels, kinds, strict=True):
        for number, r in enumerate(shown_rows):
            style = "--" if r["verifier"] == JUDGE else ("-", "-.", ":")[number // 4 % 3]
            values = [each["mean"] for each in r[kind]]
            axes.plot(budgets, values, style, marker="osD^vP*X<>"[number % 10], ms=4, lw=1.4, label=r["verifier"])
        axes.set_xscale("log", base=2)
        axes.set_xticks(budgets, [str(n) for n in budgets])
        axes.set_xlabel("candidates a prompt (20 NFE each)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False, fontsize=9
    )
    figure.savefig(path)


if __name__ == "__main__":
    main()
