"""`report.html` of a training, made of the files in its folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from diffscale._util import config
from diffscale._util.files import read_json
from diffscale._util.numbers import rounded
from diffscale.report import charts, page
from diffscale.report.plots import smoothed
from diffscale.report.text import drawing
from diffscale.train import configs, validation
from diffscale.train.run_directory import LOG_FILE, list_checkpoints, read_log, step_of
from diffscale.train.settings import METHODS, TrainConfig

_MOST_ROWS: Final = 12
"""Prompts whose pictures are shown."""
_MOST_MOMENTS: Final = 8
"""Moments of a training at which a picture is shown; of more, every second one or so on."""
_SPREAD: Final = ("recall", "diversity")
_MINOR: Final = ("loss", *_SPREAD)
"""Curves that are folded away where there are others."""
_WINDOWS: Final = 60


def write(folder: Path) -> None:
    """Write the page to `folder`, whose `result.json` is whole; where that fails, it is a warning."""
    with drawing(f"The report {folder / page.REPORT}"):
        page.write(folder, "train.html", **_content(read_json(folder / "result.json") or {}, folder))


def _content(result: dict[str, Any], folder: Path) -> dict[str, Any]:
    settings = configs.resolve(result["method"], folder / "config.yaml", {})
    validations = result.get("validations", [])
    rewarded = list(validations[0].get("deviations", ())) if validations else []
    columns = list(dict.fromkeys(n for each in validations for n in each if n not in ("step", "deviations")))
    curves = _charts(read_log(folder / LOG_FILE), validations, columns, rewarded)
    shown = [drawn for name, drawn in curves if name not in _MINOR]
    folded = [drawn for name, drawn in curves if name in _MINOR]
    return {
        "result": result,
        "base": Path(result["base"]).name,
        "summary": METHODS[result["method"]],
        "rewards": settings.rewards,
        "rewarded": rewarded,
        "warnings": [told] if (told := _parted(result, rewarded)) else [],
        "numbers": _numbers(result, rewarded),
        "rows": _pictures(result, folder, page.PagePictures(folder)),
        "charts": shown or folded,
        "more_charts": folded if shown else [],
        "validations": _table(settings, validations, [n for n in columns if n not in rewarded], folder),
        "columns": columns,
        "ledger": _ledger(result),
        "command": f"diffscale train {config.command_line(settings, '_', {'resume_from_checkpoint', 'output_dir'})} "
        "--output_dir NEW_FOLDER",
        "settings": page.settings_table(settings.model_dump(mode="json")),
    }  # fmt: skip


def _parted(result: Mapping[str, Any], rewarded: Sequence[str]) -> str:
    """What to tell people where rewards rose and one that was held out fell by more than two standard errors."""
    gains = result.get("gains", {})
    rose = [name for name in rewarded if gains.get(name, {}).get("gain", 0) > 0]
    fell = [
        name for name, gain in gains.items()
        if name not in rewarded and gain["gain"] < -2 * (gain["standard_error"] or float("inf"))
    ]  # fmt: skip
    if not (rose and fell):
        return ""
    return (
        f"{', '.join(rose)} rose and {', '.join(fell)}, which took no part in the training, fell: the reward may have "
        "been hacked; train for fewer steps, by --keep_best, or by several rewards."
    )


def _numbers(result: Mapping[str, Any], rewarded: Sequence[str]) -> list[tuple[str, str]]:
    """What a reader looks for first."""
    numbers = []
    for name, gain in result.get("gains", {}).items():
        how = "rewarded" if name in rewarded else "held out"
        says = f"{name}, {how}, from {rounded(gain['before'])} to {rounded(gain['after'])}"
        numbers.append((says, rounded(gain["gain"], sign=True)))
    return [*numbers, ("steps", f"{result['steps']:,}"), ("seconds", f"{result['seconds']:.1f}")]


def _charts(
    log: Sequence[Mapping[str, Any]], validations: Sequence[Mapping[str, Any]], columns: Sequence[str],
    rewarded: Sequence[str],
) -> list[tuple[str, tuple[Any, str]]]:  # fmt: skip
    """Curves over steps, each with its name and caption: of what was logged, and of what validations say."""
    made = []
    for name in ("reward", "loss"):
        if (values := smoothed(log, name, _WINDOWS)) is not None:
            last, mean, deviation = values
            points = [
                (log[i]["step"], {"mean": m, "low": m - d, "high": m + d})
                for i, m, d in zip(last.tolist(), mean.tolist(), deviation.tolist(), strict=True)
            ]
            says = f"The {name} of each step, with its deviation."
            made.append((name, (charts.lines({name: points}, "step", name), says)))
    if len(validations) > 1:
        for name in columns:
            points = [(each["step"], {"mean": each[name]}) for each in validations if name in each]
            if name in rewarded:
                says = f"{name}, which is rewarded, of the validation pictures."
            elif name in _SPREAD:
                says = f"The {name} of the validation pictures: it falls where they come to look alike."
            else:
                says = f"{name}, held out, of the validation pictures."
            made.append((name, (charts.lines({name: points}, "step", name), says)))
    return made


def _table(
    settings: TrainConfig, validations: Sequence[Mapping[str, Any]], held_out: Sequence[str], folder: Path
) -> list[dict[str, Any]]:
    """A row for each step that was validated or has a checkpoint; which weights are given is marked.

    `held_out`: what validations say that is not rewarded; the first validation verifier, which decides, stands first.
    """
    there = {step_of(path): path.name for path in list_checkpoints(folder)}
    seen = {int(each["step"]): each for each in validations}
    steps = sorted({*there, *seen})
    given = steps[-1] if steps else None
    if settings.keep_best and seen and held_out:
        given = max(seen, key=lambda step: float(seen[step][held_out[0]]))
    return [
        {"step": step, "values": seen.get(step, {}), "checkpoint": there.get(step, ""), "given": step == given}
        for step in steps
    ]  # fmt: skip


def _pictures(result: Mapping[str, Any], folder: Path, pictures: page.PagePictures) -> list[dict[str, Any]]:
    """A row for each validation picture, from before the training to after it."""
    home = folder / validation.FOLDER
    named = [path.name for path in home.glob("step-*") if path.name.removeprefix("step-").isdigit()]
    steps = sorted(named, key=lambda name: int(name.removeprefix("step-")))
    thinned = steps[:: 1 + len(steps) // _MOST_MOMENTS]
    moments = [name for name in ("before", *thinned, "after") if (home / name).is_dir()]
    prompts = result.get("validation_prompts", [])
    scores = {name: read_json(home / name / "scores.json", dict[str, list[Any]]) or {} for name in moments}
    rows = []
    for number, prompt in enumerate(prompts[:_MOST_ROWS]):
        shown = []
        for name in moments:
            file = f"{validation.FOLDER}/{name}/{number:03}.png"
            says = [
                f"{who} {rounded(each[number])}" for who, each in scores[name].items()
                if number < len(each) and isinstance(each[number], float)
            ]  # fmt: skip
            shown.append({"title": name.replace("-", " "), "says": "\n".join(says), "source": pictures.small(file),
                          "link": pictures.link(file)})  # fmt: skip
        rows.append({"prompt": prompt, "pictures": shown})
    return rows


def _ledger(result: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = [("steps", f"{result['steps']:,}"), ("rows of data", f"{result['rows']:,}")]
    if result.get("nfe"):
        rows.append(("NFE of searches that were learned from", f"{result['nfe']:,}"))
    if cost := result.get("cost"):
        rows.append(("denoiser evaluations, about (a step backward is two)", f"{cost['evaluations']:,}"))
        rows.append(("FLOPs of the denoiser, about", page.large_number(cost["flops"])))
    rows.append(("pictures rewarded", f"{result['reward'].get('pictures', 0):,}"))
    rows.append(("seconds, in all", f"{result['seconds']:.1f}"))
    for kind, name in (("rewards", "seconds_per_step"), ("decoding for them", "decode_seconds_per_step")):
        rows.append((f"seconds, {kind}", f"{result['reward'].get(name, 0) * result['steps']:.1f}"))
    rows.append(("trained parameters", f"{result['trained_parameters']:,}"))
    return [*rows, ("memory at most", f"{result['peak_memory_bytes'] / 2**30:.2f} GiB")]
