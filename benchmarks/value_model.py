"""What does a value model add, on prompts that it was not learned from, and how does that grow with its prompts?

    diffscale tape record train.txt --model shapes-flux --candidates 8 --predictions 5,7,9,11 --drafts 3,4,5 --views \
        --output outputs/value/train.tape
    diffscale tape record shapes-mini --model shapes-flux --candidates 32 --predictions 5,7,9,11 --drafts 3,4,5 \
        --views --output outputs/value/held-out.tape
    python benchmarks/value_model.py outputs/value/train.tape outputs/value/held-out.tape \
        benchmarks/tapes/shapes-flux-suite.tape [--output docs/frontier/shapes-flux-values-60x32.md]

A value model is learned from a quarter, a half and all of the prompts of the first tape, which are not among those of
the second. On the second, candidates' looks are ranked by the verifier's score and by the value: printed are the mean
rank correlations with the finished samples, and what searches are worth by both (the multiplier, see `tape.replay`),
the ratio of the two, and the difference by the judge. Random search's curve is of the third tape, which has more
candidates of the same prompts. Intervals have 95%, by a bootstrap over prompts that is paired.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from diffscale.searches import choose_search
from diffscale.tape.curves import best_of, candidates_worth
from diffscale.tape.replay import Found, replay
from diffscale.tape.tape import Tape, load_tape
from diffscale.tape.value import foretold, learn

JUDGE = "shapes-judge"
SEARCHES = (
    ("halving at=7,11", 160), ("halving at=7,11", 240), ("halving at=5,11", 160), ("halving at=7", 160),
    ("draft", 160), ("draft steps=4 at=11", 160), ("auto", 160),
)  # fmt: skip
Numbers = NDArray[np.float64]


def agreement(looks: Numbers, finals: Numbers) -> Numbers:
    """Spearman's rank correlations [P] of the candidates [P, N] of each prompt."""
    ranks = [rankdata(each, axis=1) for each in (looks, finals)]
    away = [each - each.mean(1, keepdims=True) for each in ranks]
    return np.asarray((away[0] * away[1]).sum(1) / np.sqrt((away[0] ** 2).sum(1) * (away[1] ** 2).sum(1)))


def shown(of: Callable[[Any], float], count: int, sign: str = "") -> str:
    """`of` all of `count` prompts, and its 95% interval over resampled ones."""
    draws = np.random.default_rng(0).integers(count, size=(2000, count))
    low, high = np.quantile([of(rows) for rows in draws], (0.025, 0.975))
    return f"{of(np.arange(count)):{sign}.3f} [{low:{sign}.3f}, {high:{sign}.3f}]"


def looks(train: Tape, held_out: Tape, verifier: str) -> list[str]:
    """The table of rank correlations."""
    kept = [train.rows(slice(0, len(train.prompts) // part)) for part in (4, 2, 1)]
    names = [f"prediction after {steps}" for steps in held_out.predictions]
    names += [f"draft of {kind.steps}" for kind in held_out.drafts]
    counts = " | ".join(f"value of {len(tape.prompts)} prompts" for tape in kept)
    lines = [f"| look | score | {counts} | last less score |", "|---|---|---|---|---|---|"]
    finals = held_out.finals(verifier).numpy()
    values = [foretold(held_out, learn(tape, verifier)[0]).numpy() for tape in kept]
    for column, name in enumerate(names):
        plain = agreement(held_out.scores[verifier][..., column].numpy(), finals)
        each = [agreement(value[..., column], finals) for value in values]
        means = " | ".join(f"{one.mean():.3f}" for one in (plain, *each))
        more = each[-1] - plain
        lines.append(f"| {name} | {means} | {shown(lambda rows, m=more: m[rows].mean(), len(plain), '+')} |")
    return lines


def searches(train: Tape, held_out: Tape, pool: Tape, verifier: str, draws: int) -> list[str]:
    """The table of multipliers."""
    curves = np.stack([best_of(pool.finals(verifier).numpy(), k) for k in range(1, pool.candidates + 1)], 1)
    lines = ["| search | NFE | by the score | by the value | ratio | judge, by the value - by the score |"]
    lines += ["|---|---|---|---|---|---|"]

    def worth(found: Found, rows: Any) -> float:
        return candidates_worth(curves[rows].mean(0), found.score[rows].mean()) * pool.steps / found.nfe[rows].mean()

    with TemporaryDirectory() as folder:
        learn(train, verifier)[0].save(path := Path(folder, "a.value"))
        for search, budget in SEARCHES:
            made, count = choose_search(search).make(), len(pool.prompts)
            plain, valued = (
                replay(held_out, made, by, budget, judges=[JUDGE], draws=draws)
                for by in (verifier, f"valued file={path} of={verifier}")
            )
            judged = valued.judged[JUDGE] - plain.judged[JUDGE]
            cells = [
                shown(lambda rows, f=plain: worth(f, rows), count),
                shown(lambda rows, f=valued: worth(f, rows), count),
                shown(lambda rows, p=plain, v=valued: worth(v, rows) / worth(p, rows), count),
                shown(lambda rows, j=judged: j[rows].mean(), count, "+"),
            ]
            lines.append(f"| `{search}` | {budget} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tapes", type=Path, nargs=3)
    parser.add_argument("--draws", type=int, default=4)
    parser.add_argument("--output", type=Path, default=Path("outputs/value/page.md"))
    options = parser.parse_args()
    train, held_out, pool = map(load_tape, options.tapes)
    pool = pool.rows([list(pool.prompts).index(prompt) for prompt in held_out.prompts])
    assert not set(train.prompts) & set(held_out.prompts)
    verifier = next(iter(train.views))
    size = f"{len(held_out.prompts)} held-out prompts x {held_out.candidates} candidates, {options.draws} draws"
    lines = [f"# A value model of `{verifier}`, on {size}", "", *looks(train, held_out, verifier), ""]
    print("\n".join(lines), flush=True)
    lines += searches(train, held_out, pool, verifier, options.draws)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
