"""What does one budget over many prompts find, against the same NFE in equal parts?

    python benchmarks/shared_budget.py [--limit 60] [--pool 128] [--candidates 16 32 64] [--verifier clip]
        [--allocation threshold] [--output outputs/shared]

Random search on prompts of shapes-mini, replayed on one pool of pictures that is made once and can be stopped and gone
on with (7,680 pictures and their scores: 20 minutes on a CPU core that others use too). A prompt that is given n
candidates has the first n of its pool, and none can be given more than the pool has. Both deal out as many candidates:
where the allocation leaves some over, the equal parts get as many fewer, in whole candidates and the rest to prompts by
chance. Printed are means over prompts of the best score, of the judge that was held out, and of the differences, with
paired 95% bootstrap intervals. The draws of pools are averaged over: `--orders` permutations of every prompt's pool,
each replayed by itself.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pool import MODEL, Pool

from diffscale.engine.allocation import ALLOCATIONS, Account, Threshold
from diffscale.metrics.bootstrap import interval, with_interval
from diffscale.registry.arguments import made
from diffscale.suites import prompts as prompt_files

JUDGE = "shapes-judge"
Numbers = NDArray[np.float64]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--limit", type=int, default=60, help="prompts")
    parser.add_argument("--pool", type=int, default=128, help="pictures of a prompt")
    parser.add_argument("--candidates", type=int, nargs="+", default=[16, 32, 64], help="a prompt, on average")
    parser.add_argument("--verifier", default="clip")
    parser.add_argument("--allocation", default="threshold")
    parser.add_argument("--orders", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path("outputs/shared"))
    options = parser.parse_args()
    rule = made(options.allocation, "allocation", ALLOCATIONS)
    assert rule is not None
    prompts = prompt_files.load("shapes-mini", options.limit)
    pool = Pool(options.output, prompts, options.pool)
    pool.make()
    scores, judge = pool.scores(options.verifier), pool.scores(JUDGE)
    print(
        f"{MODEL}, {len(prompts)} prompts by {options.verifier}: {options.allocation}, {options.orders} orders of pools"
    )
    for candidates in options.candidates:
        report(scores, judge, candidates, rule, options.orders)


def report(scores: Numbers, judge: Numbers, candidates: int, rule: Threshold, orders: int) -> None:
    """Print what both find with `candidates` a prompt, on average."""
    rng, found = np.random.default_rng(0), []
    for _ in range(orders):
        order = rng.permuted(np.tile(np.arange(scores.shape[1]), (len(scores), 1)), axis=1)
        mine, judged = (np.take_along_axis(each, order, 1) for each in (scores, judge))
        shared = replayed(mine, candidates, rule)
        equal = np.full(len(scores), shared.sum() // len(scores))
        equal[rng.permutation(len(scores))[: shared.sum() - equal.sum()]] += 1
        found.append((*best(mine, judged, shared), *best(mine, judged, equal), shared, equal))
    score, judge_of, score_equal, judge_equal, given, given_equal = np.mean(found, axis=0)
    print(f"\n{candidates} candidates a prompt: {given.mean():.1f} spent ({given_equal.mean():.1f} in equal parts)")
    counts = np.array([each[4] for each in found])
    quartiles = np.quantile(counts, (0, 0.25, 0.5, 0.75, 1))
    print(f"  given to a prompt: {', '.join(f'{each:.0f}' for each in quartiles)} (least, quartiles, most)")
    for name, one, other in (("best score", score, score_equal), (JUDGE, judge_of, judge_equal)):
        less = with_interval(interval(one - other), "+.4f")
        print(f"  {name}: shared {one.mean():.4f}, equal {other.mean():.4f}, difference {less}")


def replayed(scores: Numbers, candidates: int, rule: Threshold) -> NDArray[np.int64]:
    """How many of its pool each prompt is given, where all together have that many a prompt."""
    total, size = candidates * len(scores), scores.shape[1]
    given = np.full(len(scores), rule.first(len(scores), total, 1))
    over = np.zeros(len(scores), bool)
    while grants := rule.grants(
        [Account(int(n), each[:n], bool(o)) for n, each, o in zip(given, scores, over, strict=True)],
        int(total - given.sum()), 1,
    ):  # fmt: skip
        for row, more in grants.items():
            grown = min(size, given[row] + more)
            over[row], given[row] = grown == given[row], grown
    return given


def best(scores: Numbers, judge: Numbers, given: NDArray[np.int64]) -> tuple[Numbers, Numbers]:
    """Of the first `given` candidates of each prompt, the score of the best one, and what the judge says of it."""
    chosen = [int(each[:n].argmax()) for each, n in zip(scores, given, strict=True)]
    rows = np.arange(len(scores))
    return scores[rows, chosen], judge[rows, chosen]


if __name__ == "__main__":
    main()
