"""Verifier hacking: the searched score rises while judges that were held out fall; and what they keep of the gain.

And the opposite, a verifier that has no opinion on what was found.

The comparison is within prompts: the pictures found against the plain samples of the same first noises, and against
those that the same search found with a smaller budget.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval, over_groups, ratio

LEAST: Final = 10
"""Prompts below which a bootstrap interval is too short to warn by."""

KEPT: Final = (
    "the judge's gain over that of the score, from the first sample to what was chosen, in standard deviations: the "
    "judge's over all first samples, the score's over the candidates of each prompt"
)
"""What `kept` says, for captions."""

_Sample = Mapping[str, Any]
_Value = Callable[[_Sample, str], float | None]


def hacked(cell: Cell, samples: Sequence[_Sample]) -> list[dict[str, Any]]:
    """The held-out judges that fell in `cell`, each with `judge`, `since` (NFE, 0: a plain sample) and `change`.

    `change`: mean over prompts with an interval that lies below 0, while that of the searched score lies above. The
    intervals have 95% for all comparisons of the cell together (Bonferroni). Under `LEAST` prompts nothing is said.
    """
    mine = _by_prompt(cell, samples)
    smaller = dict.fromkeys(s["budget"] for s in samples if s["budget"] < cell.budget)
    comparisons = []
    for since in (0, *smaller):
        before = _by_prompt(replace(cell, budget=since), samples) if since else {}
        pairs = [(before.get(key), sample) for key, sample in mine.items() if not since or key in before]
        # Scores within a pool do not compare with those of another pool.
        if not since or (pairs and not pairs[0][1].get("members")):
            comparisons += [(since, pairs, name, value) for name, value in held_out(cell, mine.values()).items()]
    share = 0.95 if not comparisons else 1 - 0.05 / len(comparisons)
    falls = []
    for since, pairs, name, value in comparisons:
        rose = _change(pairs, lambda s, end: s["score"][end], share)
        fell = _change(pairs, value, share)
        if rose is not None and fell is not None and rose["low"] > 0 > fell["high"]:
            falls.append({"judge": name, "since": since, "change": fell})
    return falls


def sentence(cell: Cell, fall: Mapping[str, Any]) -> str:
    """What to tell people of one entry of `hacked`."""
    since = f"since {fall['since']:,} NFE" if fall["since"] else "since the first sample"
    change = fall["change"]
    return (
        f"{cell.search} hacks {cell.verifier} at {cell.budget:,} NFE: {since} its score rose, but {fall['judge']} fell "
        f"by {-change['mean']:.3f} [{-change['high']:.3f}, {-change['low']:.3f}]; search less, or with an ensemble."
    )


def sentence_of_one(result: Mapping[str, Any]) -> str:
    """What to tell people of the `result.json` of one search where a held-out judge fell; else empty.

    One pair of pictures is no proof, so it says what to look at.
    """
    verifier, rose = result["verifier"].split()[0], result["best"]["score"] > result["baseline"]["score"]
    for name, scores in result["judges"].items():
        held_out = not (scores["searched_with"] or scores.get("chosen_by"))
        if rose and held_out and scores["best"]["score"] < scores["baseline"]["score"]:
            return (
                f"{verifier} rose and {name}, which was held out, fell: the search may have hacked its verifier; "
                "compare baseline.png, or search with an ensemble"
            )
    return ""


def sentence_of_alike(result: Mapping[str, Any]) -> str:
    """What to tell people of the `result.json` of one search whose candidates all have one score; else empty."""
    scores = [each["score"] for each in result.get("gallery", [])]
    if len(scores) < 2 or len(set(scores)) > 1 or result["compared"]:
        return ""
    verifier = result["verifier"].split()[0]
    return (
        f"the best {len(scores)} candidates have one {verifier} score, {scores[0]:.4g}: it does not tell these "
        "pictures apart, so nothing was chosen; search with another verifier"
    )


def sentence_of_unread(samples: Iterable[_Sample], judge: str | None) -> str:
    """What to tell people of a `judge` that can read some prompts and not others; else empty."""
    good = [s for s in samples if "error" not in s]
    prompts = {s["prompt"] for s in good}
    read = prompts - {s["prompt"] for s in good if not s["scores"].get(str(judge))}
    if judge is None or not 0 < len(read) < len(prompts):
        return ""
    return (
        f"{judge} can read {len(read)} of the {len(prompts)} prompts: its mean is not told, differences are over those"
    )


def _by_prompt(cell: Cell, samples: Sequence[_Sample]) -> dict[tuple[str, int], _Sample]:
    return {(s["prompt"], s["repeat"]): s for s in cell.samples_in(samples) if "error" not in s}


def kept(cell: Cell, samples: Sequence[_Sample]) -> dict[str, dict[str, float]]:
    """For each held-out judge of `cell` its gain over the searched gain, with an interval of 95% over prompts.

    A gain is the mean over prompts of what the chosen picture has more than the plain sample, in standard deviations:
    of the searched score those of the prompt's candidates (`spread`), of a judge those over all plain samples. A judge
    is left out where either has no deviation, or the interval of the searched gain does not lie above 0.
    """
    mine, shares = [s for s in _by_prompt(cell, samples).values() if s.get("spread")], {}
    for name, value in held_out(cell, mine).items():
        ends = [(value(s, "baseline"), value(s, "best"), s) for s in mine]
        both = [(first, best, s) for first, best, s in ends if first is not None and best is not None]
        if not (deviation := spread([first for first, _, _ in both])):
            continue
        prompts = [s["prompt"] for _, _, s in both]
        searched = [(s["score"]["best"] - s["score"]["baseline"]) / s["spread"] for _, _, s in both]
        judged = [(best - first) / deviation for first, best, _ in both]
        gains = over_groups(judged, prompts), over_groups(searched, prompts)
        if interval(gains[1])["low"] > 0:
            shares[name] = ratio(*gains)
    return shares


def spread(values: Sequence[float]) -> float:
    """The standard deviation of `values`; 0 of equal ones, without errors of rounding, and of none."""
    return float(np.std(values)) if len(set(values)) > 1 else 0.0


def held_out(cell: Cell, samples: Iterable[_Sample]) -> dict[str, _Value]:
    """What was neither searched nor chosen with, nor was a member of what was, and how to read it from a sample."""
    values: dict[str, _Value] = {}
    used = {cell.verifier, cell.verifier.split()[0]}
    for sample in samples:
        choose = sample.get("choose", "")
        used |= {*sample.get("members", ()), *sample.get("choose_members", ()), choose, choose.partition(" ")[0]}
        for name in sample["scores"]:
            values[name] = lambda s, end, name=name: s["scores"].get(name, {}).get(end)  # type: ignore[misc]
    return {name: value for name, value in values.items() if not {name, name.split()[0]} & used}


def _change(pairs: Sequence[tuple[_Sample | None, _Sample]], value: _Value, share: float) -> dict[str, float] | None:
    """Mean over prompts of `value` of the later sample less that of the earlier one, or of the plain sample.

    None where fewer than `LEAST` prompts have both.
    """
    changes, prompts = [], []
    for before, after in pairs:
        ends = (value(after, "baseline") if before is None else value(before, "best")), value(after, "best")
        if ends[0] is not None and ends[1] is not None:
            changes.append(ends[1] - ends[0])
            prompts.append(after["prompt"])
    means = over_groups(np.array(changes), prompts)
    return interval(means, share) if len(means) >= LEAST else None
