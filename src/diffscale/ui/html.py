"""What the page shows of runs, as HTML: all that users typed, and files say, is escaped."""

from collections.abc import Callable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from diffscale._util.errors import first_line
from diffscale._util.files import read_text
from diffscale._util.numbers import rounded
from diffscale.ui.runs import Run

_MOST: Final = 60  # candidates on the page
_LONG: Final = 60  # characters of a setting in a comparison
STYLE: Final = """
.ds-status { border-left: 4px solid var(--border-color-primary); padding: .4em .8em; }
.ds-status[data-kind=failed], .ds-message { border-left: 4px solid #c0392b; padding: .4em .8em; }
.ds-status[data-kind=done] { border-left-color: #1e8449; }
.ds-status[data-kind=running], .ds-status[data-kind=elsewhere] { border-left-color: #1f5fa8; }
.ds-status progress { width: 100%; accent-color: #1f5fa8; }
.ds-status small { overflow-wrap: anywhere; opacity: .8; }
.ds-pictures { display: grid; gap: .5em; margin: .6em 0; grid-template-columns: repeat(auto-fill, minmax(78px, 1fr)); }
.ds-pictures.large { grid-template-columns: repeat(2, minmax(60px, 256px)); }
.ds-pictures figure { margin: 0 !important; text-align: center; font-size: .8em; line-height: 1.3; }
.ds-pictures.large figure { font-size: .95em; }
.ds-pictures a { display: block; }
.ds-pictures img { width: 100%; aspect-ratio: 1; object-fit: contain; border-radius: 3px; margin: 0 !important; }
.ds-pictures figcaption { margin: .3em 0 0 !important; color: var(--body-text-color); }
.ds-pictures figure.new img { outline: 2px dashed #1f5fa8; }
.ds-pictures figure.best img { outline: 3px solid #1e8449; }
.ds-table { border: 0 !important; border-collapse: collapse; width: 100%; }
.ds-table th, .ds-table td { text-align: left; vertical-align: top; padding: .25em .6em; overflow-wrap: anywhere;
  border: 0 !important; }
.ds-table tr { border: 0 !important; border-bottom: 1px solid var(--border-color-primary) !important; }
.ds-table th { min-width: 7em; }
@media (max-width: 640px) {
  .ds-table tr { display: grid; grid-template-columns: 1fr 1fr; }
  .ds-table th { grid-column: 1 / -1; padding-bottom: 0; }
  .ds-table .ds-pictures.large { grid-template-columns: 1fr; }
}
.ds-report { width: 100%; height: 80vh; border: 1px solid var(--border-color-primary); background: white; }
"""


def message(sentence: str) -> str:
    """What is wrong with what was asked for; empty for no sentence."""
    return f'<div class="ds-message" role="alert">{escape(sentence)}</div>' if sentence else ""


def standing(run: Run, place: int | None) -> str:
    """In a word how a run stands: done, waiting, running, elsewhere, failed, stopped or other.

    `place`: see `Jobs.place`. `elsewhere`: it is computed by a process that this page did not start. `other`: a run
    that is no search for one prompt.
    """
    if not run.searches_one_prompt:
        return "other"
    if place is not None:
        return "waiting" if place else "running"
    if run.result is not None:
        return "done"
    if run.computed_elsewhere:
        return "elsewhere"
    return "failed" if run.error else "stopped"


def status(run: Run, place: int | None) -> str:
    """How a run stands, in a sentence, with a bar of what is spent, and what is known of its result."""
    kind = standing(run, place)
    last = run.points[-1] if run.points else None
    best = "" if last is None or last.best is None else f", best score {rounded(last.best, 4)}"
    spent = "" if last is None else f"{last.nfe:,} of {last.total:,} NFE{best}"
    sentence = {
        "done": _found(run),
        "waiting": f"Waiting: {place} {'search comes' if place == 1 else 'searches come'} first.",
        "running": f"Searching: {spent}." if spent else "The model is being loaded.",
        "elsewhere": f"Searching in another process{spent and ': '}{spent}.",
        "failed": f"Failed: {run.error}",
        "stopped": f"Stopped {f'at {spent}' if spent else 'before the first sample'}: go on, and nothing is paid for "
        "twice.",
        "other": "A run of another command, "
        + ("whose report can be opened below." if run.report else "which has no report.html to open."),
    }[kind]
    bar = f'<progress value="{last.nfe}" max="{last.total}"></progress>' if last and kind != "done" else ""
    more = "".join(f"<br>{escape(line)}" for line in _remarks(run.result or {}))
    return (
        f'<div class="ds-status" data-kind="{kind}" role="status">{escape(sentence)}{more}{bar}<br>'
        f"<small>{escape(_about(run))}</small></div>"
    )


def _about(run: Run) -> str:
    if not run.searches_one_prompt:
        return str(run.folder)
    names = ("model", "search", "verifier", "budget", "seed")
    known = [f"{name} {run.settings[name]}" for name in names if name in run.settings]
    return " · ".join([f"“{run.settings['prompt']}”", *known, str(run.folder)])


def _found(run: Run) -> str:
    if (result := run.result) is None:
        return ""
    best, first = result["best"]["score"], result["baseline"]["score"]
    return (
        f"Done: first sample {rounded(first, 4)}, best of {result['candidates']} {rounded(best, 4)} "
        f"({rounded(best - first, 4, sign=True)}) for {result['nfe']:,} NFE in {result['seconds']:.1f} s."
    )


def _remarks(result: Mapping[str, Any]) -> list[str]:
    """What a search settled on, and what held-out judges say of what it found."""
    lines = list(result.get("decisions", []))
    for name, scores in result.get("judges", {}).items():
        before, after = scores["baseline"]["score"], scores["best"]["score"]
        held_out = not (scores["searched_with"] or scores.get("chosen_by"))
        lines.append(
            f"{name}{', which was held out' if held_out else ''}: first sample {before:.2f}, best {after:.2f}."
        )
        if held_out and after < before and result["best"]["score"] > result["baseline"]["score"]:
            lines.append(f"The score rose and {name} fell: the search may have hacked its verifier.")
    if dropped := result.get("dropped"):
        lines.append(f"{dropped} of {result['candidates']} candidates could not be scored.")
    return lines


def pictures(run: Run) -> str:
    """The first sample and the best one, and below them the finished candidates, the best first."""
    return _ends(run) + _candidates(run)


def _ends(run: Run) -> str:
    usable = [each for each in run.candidates if None not in each.score]
    if run.result is not None:
        names = (("first sample", "baseline"), ("best", "best"))
        ends = [(name, run.folder / f"{end}.png", [run.result[end]["score"]]) for name, end in names]
    elif usable:
        ends = [("first finished", usable[0].picture, usable[0].score)]
        if len(usable[0].score) == 1:  # components of an ensemble make a score among all candidates alone, at the end
            best = max(usable, key=_order)
            ends += [("best so far", best.picture, best.score)]
    else:
        return ""
    figures = [_figure(path, f"{name} {_score(score)}") for name, path, score in ends]
    return f'<div class="ds-pictures large">{"".join(figures)}</div>'


def _candidates(run: Run) -> str:
    every = run.candidates
    if not every:
        return ""
    ranked = len(every[0].score) == 1
    order = sorted(every, key=_order, reverse=True) if ranked else every[::-1]
    marks = {} if run.result is not None else {every[-1].picture: "new"}
    marks |= {order[0].picture: "best"} if ranked else {}
    figures = [_figure(each.picture, _score(each.score), marks.get(each.picture, "")) for each in order[:_MOST]]
    count = f"{len(every)} {'candidate' if len(every) == 1 else 'candidates'}"
    head = f"{count}, the {'best' if ranked else 'last'} first" + (f" ({_MOST} shown)" if len(every) > _MOST else "")
    return f'<div>{head}</div><div class="ds-pictures candidates">{"".join(figures)}</div>'


def _order(candidate: Any) -> float:
    score: float | None = candidate.score[0]
    return float("-inf") if score is None else score


def _score(components: Sequence[float | None]) -> str:
    return " / ".join("no score" if each is None else rounded(each, 4) for each in components)


def _figure(path: Path, caption: str, mark: str = "") -> str:
    try:
        version = path.stat().st_mtime_ns
    except OSError:
        return ""
    # Relative, so that it is right behind a proxy too.
    link, name = f"gradio_api/file={quote(str(path))}?{version}", escape(caption)
    return (
        f'<figure class="{mark}"><a href="{link}" target="_blank"><img src="{link}" alt="{name}" loading="lazy"></a>'
        f"<figcaption>{name}</figcaption></figure>"
    )


def report(run: Run) -> str:
    """Its report.html in a frame of its own, in which it can neither read this page nor act in its name."""
    if run.report is None:
        return message(f"{run.folder} has no report.html.")
    try:
        content = escape(read_text(run.report))
    except (OSError, UnicodeDecodeError) as error:
        return message(f"{run.report} cannot be read: {first_line(error)}.")
    return f'<iframe class="ds-report" title="report" sandbox="allow-scripts allow-popups" srcdoc="{content}"></iframe>'


def comparison(runs: Sequence[Run]) -> str:
    """Two runs of `diffscale generate` beside each other: what they found, and which of their settings differ."""
    if others := [run for run in runs if not run.searches_one_prompt]:
        return message(f"{others[0].folder} is no search for one prompt: choose another run.")
    names = dict.fromkeys(name for run in runs for name in run.settings)
    differing = [name for name in names if len({str(run.settings.get(name)) for run in runs}) > 1]
    rows = {
        "": [f"<b>{escape(str(run.folder))}</b>" for run in runs],
        "pictures": [_ends(run) for run in runs],
        **{name: [escape(read(run)) for run in runs] for name, read in _FIGURES.items()},
        **{name: [escape(str(run.settings.get(name))[:_LONG]) for run in runs] for name in differing},
    }
    body = "".join(
        f"<tr><th>{escape(name)}</th>{''.join(f'<td>{value}</td>' for value in values)}</tr>"
        for name, values in rows.items()
    )
    note = "" if differing else "<p>All settings are the same.</p>"
    if "verifier" in differing:
        note = message("Scores of different verifiers do not compare: look at the pictures, and at what judges say.")
    return f'{note}<table class="ds-table">{body}</table>'


def _of_result(read: Callable[[dict[str, Any]], str]) -> Callable[[Run], str]:
    return lambda run: "" if run.result is None else read(run.result)


def _judged(result: dict[str, Any]) -> str:
    return "; ".join(f"{name} {scores['best']['score']:.2f}" for name, scores in result.get("judges", {}).items())


_FIGURES: Final[dict[str, Callable[[Run], str]]] = {
    "best score": _of_result(lambda result: rounded(result["best"]["score"], 4)),
    "first sample": _of_result(lambda result: rounded(result["baseline"]["score"], 4)),
    "judges of the best": _of_result(_judged),
    "NFE spent": _of_result(lambda result: f"{result['nfe']:,}"),
    "candidates": _of_result(lambda result: f"{result['candidates']:,}"),
    "seconds": _of_result(lambda result: f"{result['seconds']:.1f}"),
}
