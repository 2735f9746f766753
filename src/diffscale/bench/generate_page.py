"""`report.html` of a run of `diffscale generate`, made of the files in its folder."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from scipy.stats import spearmanr

from diffscale._util import config
from diffscale._util.files import read_json
from diffscale._util.numbers import rounded
from diffscale.bench.config import GenerateConfig
from diffscale.bench.hacking import sentence_of_alike, sentence_of_one
from diffscale.report import charts, page
from diffscale.report.text import drawing

_FEWEST: Final = 8
"""Candidates below which a rank correlation says nothing."""


def write(folder: Path) -> None:
    """Write the page to `folder`, whose `result.json` is whole; where that fails, it is a warning."""
    with drawing(f"The report {folder / page.REPORT}"):
        result = read_json(folder / "result.json") or {}
        page.write(folder, "generate.html", **_content(result, folder))


def _content(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = config.resolve(GenerateConfig, folder / "config.yaml")
    pictures, verifier = page.PagePictures(folder), result["verifier"].split()[0]
    candidates = _candidates(result, pictures, verifier)
    told = filter(None, [sentence_of_one(result), sentence_of_alike(result)])
    dropped = f"{result['dropped']} of {result['candidates']} candidates could not be scored."
    return {
        "result": result,
        "prompt": result["prompt"],
        "warnings": [*([dropped] if result["dropped"] else []), *told],
        "ends": [_end(result, name, title, pictures, verifier) for name, title in _ENDS.items()],
        "numbers": _numbers(result, verifier),
        "trajectory": charts.trajectory(
            result["trace"], [(each["nfe"], each["score"]) for each in result.get("gallery", [])],
            [nfe for _, nfe in result.get("rounds", [])][:-1], verifier,
        ),
        "agreements": _agreements(result, verifier),
        "rounds": _rounds(result),
        "steps_up": _steps_up(result),
        "candidates": candidates,
        "scores": list(candidates[0]["by"]) if candidates else [],
        "ledger": _ledger(result),
        "command": f"diffscale generate {config.command_line(settings)} --output NEW_FOLDER",
        "settings": page.settings_table(settings.model_dump(mode="json")),
    }  # fmt: skip


_ENDS: Final = {"baseline": "before: the first sample", "best": "after: the best"}


def _end(
    result: Mapping[str, Any], name: str, title: str, pictures: page.PagePictures, verifier: str
) -> dict[str, str]:
    end = result[name]
    said = [f"{verifier} {rounded(end['score'], 4)}"]
    said += [f"{result['choose'].split()[0]} {rounded(end['value'], 4)}"] if "value" in end else []
    said += [f"{judge} {rounded(scores[name]['score'])}" for judge, scores in result["judges"].items()]
    alt = f"{'The first sample' if name == 'baseline' else 'The picture that was found'} of “{result['prompt'][:200]}”"
    source = pictures.large(end["image"])
    return {"title": title, "says": ", ".join(said), "source": source, "link": pictures.link(end["image"]), "alt": alt}


def _numbers(result: Mapping[str, Any], verifier: str) -> list[tuple[str, str]]:
    """What a reader looks for first."""
    first, best = result["baseline"]["score"], result["best"]["score"]
    numbers = [(f"{verifier}, from {rounded(first)} to {rounded(best)}", rounded(best - first, sign=True))]
    for judge, scores in result["judges"].items():
        before, after = (scores[name]["score"] for name in _ENDS)
        how = "" if scores["searched_with"] or scores.get("chosen_by") else ", held out"
        says = f"{judge}{how}, from {rounded(before)} to {rounded(after)}"
        numbers.append((says, rounded(after - before, sign=True)))
    numbers.append(("candidates", f"{result['candidates']:,}"))
    return [*numbers, ("NFE", f"{result['nfe']:,}"), ("seconds", f"{result['seconds']:.1f}")]


def _agreements(result: Mapping[str, Any], verifier: str) -> list[tuple[Any, str]]:
    """A chart of each judge's score of the candidates against that which was searched with, and what to make of it."""
    made = []
    shown = result.get("gallery", [])
    for judge, scores in result["judges"].items():
        if scores["searched_with"]:
            continue
        points = [(each["score"], each["scores"][judge]) for each in shown if judge in each["scores"]]
        if len(points) < 2:
            continue
        ranks = float(spearmanr(*zip(*points, strict=True)).statistic) if len(points) >= _FEWEST else math.nan
        says = f"Each point is a candidate; {judge} took no part in the search."
        if math.isfinite(ranks):
            says += f" Their rank correlation is {ranks:.2f}."
        best = result["best"]["score"], scores["best"]["score"]
        made.append((charts.agreement(points, best, verifier, judge), says))
    return made


def _steps_up(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Where the best score rose, and what was spent since it did before."""
    rows: list[dict[str, Any]] = []
    spent, best = 0, None
    for nfe, score in result["trace"]:
        if best is None or score > best:
            gain = None if best is None else score - best
            rows.append({"nfe": nfe, "since": nfe - spent, "best": score, "gain": gain})
            spent, best = nfe, score
    return rows


def _rounds(result: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What each round took and brought; its best is that of the trace at its end."""
    rows: list[dict[str, Any]] = []
    before, spent, took, best = 0, 0, 0.0, None
    for number, (finished, nfe) in enumerate(result.get("rounds", [])):
        seconds = result["seconds_by_round"][number]
        reached = [score for at, score in result["trace"] if at <= nfe]
        now = max(reached) if reached else None
        gain = None if now is None or best is None else now - best
        rows.append(
            {"number": number + 1, "candidates": finished - before, "nfe": nfe - spent, "seconds": seconds - took,
             "best": now, "gain": gain}
        )  # fmt: skip
        before, spent, took, best = finished, nfe, seconds, now
    return rows


def _candidates(result: Mapping[str, Any], pictures: page.PagePictures, verifier: str) -> list[dict[str, Any]]:
    """The candidates whose pictures are there, best first, with all numbers that they can be sorted by."""
    rows = []
    best = result["best"]["key"]
    for each in result.get("gallery", []):
        if not (source := pictures.small(each["image"])):
            continue
        by = {verifier: each["score"]}
        by |= {f"{result['choose'].split()[0]} (chose)": each["value"]} if "value" in each else {}
        by |= {**each["scores"], "NFE": each["nfe"], "number": each["number"]}
        told = [f"{name} {value:.4g}" for name, value in by.items() if name not in ("NFE", "number")]
        title = f"no. {each['number']}" + (" (best)" if each["key"] == best else "")
        rows.append(
            {**each, "source": source, "link": pictures.link(each["image"]), "by": by, "title": title,
             "says": f"{title}, at {each['nfe']:,} NFE: {', '.join(told)}", "chosen": each["key"] == best}
        )  # fmt: skip
    return rows


def _ledger(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    counts = {"NFE": "nfe", "network forwards (rows)": "network_forwards", "decodes": "decodes",
              "pictures scored": "verifier_calls", "comparisons": "comparisons"}  # fmt: skip
    rows = [(says, f"{result[name]:,}") for says, name in counts.items() if result[name] or name != "comparisons"]
    rows.insert(2, ("FLOPs of the model", page.large_number(result["flops"])))
    rows.append(("FLOPs of the verifier", page.large_number(result["verifier_flops"])))
    seconds: Sequence[tuple[str, float]] = [*result["seconds_by_kind"].items(), ("in all", result["seconds"])]
    return [*rows, *((f"seconds, {kind}", f"{each:.2f}") for kind, each in seconds)]
