"""`report.html` of a bench, made of the files in its folder."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from diffscale._util import config
from diffscale._util.files import read_json
from diffscale._util.numbers import rounded
from diffscale.bench.config import BenchConfig
from diffscale.bench.curves import score_curve
from diffscale.bench.hacking import sentence, sentence_of_unread
from diffscale.bench.run import SAMPLES, cells, read_samples
from diffscale.bench.series import Cell
from diffscale.metrics.bootstrap import interval, over_groups
from diffscale.report import charts, page
from diffscale.report.text import drawing
from diffscale.verifiers.heldout import judge_name

_Sample = Mapping[str, Any]
_MOST_LINES: Final = 8
"""Searches above which a chart is a tangle, and the table tells more."""


def write(folder: Path) -> None:
    """Write the page to `folder`, whose `results.json` is whole; where that fails, it is a warning."""
    with drawing(f"The report {folder / page.REPORT}"):
        page.write(folder, "bench.html", **_content(read_json(folder / "results.json") or {}, folder))


def _content(results: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = config.validated(BenchConfig, results["settings"])
    every, judge = cells(settings), judge_name(settings.model)
    known = read_samples(folder / SAMPLES)
    samples = {cell: [s for s in cell.samples_in(known) if "error" not in s] for cell in every}
    rows = dict(zip(every, results["cells"], strict=True))
    largest, pictures = max(settings.budget), page.PagePictures(folder)
    found = [each for mine in samples.values() for each in mine]
    return {
        "settings_of": settings,
        "prompts": len({each["prompt"] for each in found}),
        "judge": judge,
        "warnings": [
            *_failures(rows), *filter(None, [sentence_of_unread(found, judge)]),
            *(sentence(c, fall) for c in every for fall in rows[c].get("hacked", [])),
        ],
        "parts": [_part(settings, verifier, rows, samples, judge) for verifier in settings.verifier],
        "rows": _pictures(settings, samples, largest, judge, pictures),
        "budget": largest,
        "costs": [_cost(cell, mine) for cell, mine in samples.items() if mine],
        "kinds": list(dict.fromkeys(kind for each in found for kind in each["seconds"])),
        "command": f"diffscale bench {config.command_line(settings)} --output NEW_FOLDER",
        "settings": page.settings_table(settings.model_dump(mode="json")),
        "versions": results.get("versions", {}),
        "hardware": results.get("hardware", ""),
    }  # fmt: skip


def _failures(rows: Mapping[Cell, Mapping[str, Any]]) -> list[str]:
    return [
        f"{row['failed']} of {row['samples']} searches of {cell.name} failed: {row['errors'][0]}"
        for cell, row in rows.items() if row["errors"]
    ]  # fmt: skip


def _part(
    settings: BenchConfig, verifier: str, rows: Mapping[Cell, Mapping[str, Any]],
    samples: Mapping[Cell, Sequence[_Sample]], judge: str | None,
) -> dict[str, Any]:  # fmt: skip
    """What is told of the searches by one verifier: tables and charts."""
    mine = [cell for cell in rows if cell.verifier == verifier]
    first = settings.search[0] if len(settings.search) > 1 else ""
    told = []
    for cell in sorted(mine, key=lambda cell: cell.budget):
        row = dict(rows[cell])
        if first and cell.search != first:
            other = next(each for each in mine if (each.search, each.budget) == (first, cell.budget))
            row["change"] = difference(samples[other], samples[cell], lambda s: s["score"]["best"])
            row["judge_change"] = difference(samples[other], samples[cell], lambda s: _judged(s, judge))
        told.append(row)
    plain = [
        {"score": row["baseline_score"], "judge": row.get("judge_baseline")} for row in told if "baseline_score" in row
    ][:1]
    return {
        "verifier": verifier, "first": first, "rows": told, "plain": plain,
        "own_judge": any(row.get("judge_searched_with") for row in told),
        "charts": _charts(settings, verifier, mine, told, samples, judge),
    }  # fmt: skip


def _judged(sample: _Sample, judge: str | None) -> float | None:
    found: float | None = sample["scores"].get(judge, {}).get("best")
    return found


def difference(
    before: Sequence[_Sample], after: Sequence[_Sample], value: Callable[[_Sample], float | None]
) -> dict[str, float] | None:
    """The mean over prompts of `value` in `after` less that in `before`, of the same prompt and repeat, with its
    bootstrap interval; None where no prompt has both."""
    known = {(each["prompt"], each["repeat"]): value(each) for each in before}
    pairs = [(known.get((each["prompt"], each["repeat"])), value(each), each["prompt"]) for each in after]
    both = [(now - then, prompt) for then, now, prompt in pairs if then is not None and now is not None]
    if not both:
        return None
    return interval(over_groups([change for change, _ in both], [prompt for _, prompt in both]))


def _charts(
    settings: BenchConfig, verifier: str, mine: Sequence[Cell], rows: Sequence[Mapping[str, Any]],
    samples: Mapping[Cell, Sequence[_Sample]], judge: str | None,
) -> list[tuple[Any, str]]:  # fmt: skip
    """The best score, and the judge's mean, against NFE; none of more searches than can be told apart."""
    if len(settings.search) > _MOST_LINES:
        return []
    name, made = verifier.split()[0], []
    longest = {cell.search: cell for cell in mine if cell.budget == max(settings.budget)}
    curves = {search: curve for search, cell in longest.items() if (curve := score_curve(samples[cell]))}
    if curves:
        svg = charts.lines(curves, "NFE a prompt", f"best {name} so far", doubling=True)
        made.append((svg, f"The score that was searched with, {name}, of the best so far: means over prompts."))
    judged: dict[str, list[tuple[float, dict[str, float]]]] = {}
    for row in rows:
        if "judge" in row:
            judged.setdefault(row["search"], []).append((row["nfe"], row["judge"]))
    if judged:
        says = f"What {judge} says of the pictures that were found, against the NFE that each search spent."
        points = {search: sorted(curve, key=lambda point: point[0]) for search, curve in judged.items()}
        made.append((charts.lines(points, "NFE a prompt", str(judge), doubling=True), says))
    return made


def _pictures(
    settings: BenchConfig, samples: Mapping[Cell, Sequence[_Sample]], budget: int, judge: str | None,
    pictures: page.PagePictures,
) -> list[dict[str, Any]]:  # fmt: skip
    """For each verifier and prompt a row: the plain sample, and what each search found with `budget`."""
    rows: list[dict[str, Any]] = []
    for part, verifier in enumerate(settings.verifier):
        by_prompt: dict[tuple[str, int], dict[str, _Sample]] = {}
        for cell, mine in samples.items():
            if cell.verifier == verifier and cell.budget == budget:
                for each in mine:
                    by_prompt.setdefault((each["prompt"], each["repeat"]), {})[cell.search] = each
        for (prompt, repeat), found in by_prompt.items():
            highest = max(each["score"]["best"] for each in found.values())
            some = next(iter(found.values()))
            shown = [_shown(some, "baseline", "first sample", some.get("plain_image"), verifier, judge, pictures)]
            for search in settings.search:
                if search in found:
                    each = found[search]
                    told = _shown(each, "best", search, each["image"], verifier, judge, pictures)
                    shown.append(told | {"highest": each["score"]["best"] == highest})
                else:
                    shown.append({"title": search, "absent": "it found nothing", "says": ""})
            more = f" (repeat {repeat + 1})" if settings.repeats > 1 else ""
            rows.append({"prompt": f"{prompt}{more}", "part": part, "pictures": shown})
    return rows


def _shown(
    sample: _Sample, end: str, title: str, image: str | None, verifier: str, judge: str | None,
    pictures: page.PagePictures,
) -> dict[str, Any]:  # fmt: skip
    says = [f"{verifier.split()[0]} {rounded(sample['score'][end])}"]
    judged = sample["scores"].get(judge, {}).get(end)
    says += [f"{judge} {rounded(judged)}"] if judged is not None and judge != verifier.split()[0] else []
    return {
        "title": title, "says": "\n".join(says), "source": pictures.small(image), "link": pictures.link(image),
        "absent": "it was not kept" if image is None else "the picture is not there",
    }  # fmt: skip


def _cost(cell: Cell, samples: Sequence[_Sample]) -> dict[str, Any]:
    """The mean costs of a search of a cell."""
    means = {name: float(np.mean([s[name] for s in samples])) for name in ("nfe", "flops")}
    kinds = dict.fromkeys(kind for s in samples for kind in s["seconds"])
    return {
        "search": cell.search, "verifier": cell.verifier, **means,
        "forwards": float(np.mean([s["network_forwards"] for s in samples])),
        "decodes": float(np.mean([s.get("decodes", 0) for s in samples])),
        "seconds": {kind: float(np.mean([s["seconds"].get(kind, 0.0) for s in samples])) for kind in kinds},
    }  # fmt: skip
